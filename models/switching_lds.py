r"""Switching linear dynamical system.

The story, for series y of T steps with E features, K regimes and D states::

    s_1       ~ Categorical(pi)            s_t | s_{t-1}      ~ Categorical(P[s_{t-1}])
    x_1       ~ Normal(m0, diag(s0^2))     x_t | x_{t-1}, s_t ~ Normal(A[s_t] x_{t-1} + b[s_t], Q[s_t])
    y_t | x_t ~ Normal(C x_t + d, diag(r^2))

With ``recurrent`` p(s_t | s_{t-1}, x_{t-1}) is proportional to P[s_{t-1}, s_t] exp(W[s_t] x_{t-1}) (Linderman et al.
2017); with ``switching_emission`` C, d and r depend on the regime s_t. Q has Cholesky factor B diag(q), B unit lower
triangular with entries l (``covariance="diag"``: zero).

Priors, with m and s the columns' means and standard deviations::

    pi ~ Dirichlet(1)    P[k] ~ Dirichlet(1 + stickiness e_k)    m0, b, l, W ~ Normal(0, 1)    A[k] ~ Normal(1/2 I, 1/4)
    s0 ~ LogNormal(0, 1/2)      q ~ LogNormal(log .3, 1)      r ~ LogNormal(log(.3 s), 1)
    C  ~ Normal(0, s)           d ~ Normal(m, s)

The guide draws the parameters, then each path x from a Gaussian chain: a recognition network outputs soft regimes, and
the chain is the exact posterior under the dynamics averaged over them (``_guides/recognition.py``). Given a path the
regimes are a hidden Markov chain, summed out in log2 T rounds.

References
----------
Ghahramani and Hinton (2000), Variational learning for switching state-space models, Neural Computation 12, 831-864.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pplgen.models._guides.parameters import Parameters, plain_known
from pplgen.models._guides.recognition import KINDS, Recognition
from pplgen.models._starts.kmeans_plus_plus import column_scales
from pplgen.models._starts.switching_start import smoothed_regimes, switching_start
from torch import Tensor

from pplgen.distributions.switching_observations import Emission, SwitchingObservations
from pplgen.distributions.switching_path import Dynamics, SwitchingLinearGaussianPath
from pplgen.story.base import check_choice, check_count, check_positive, pyro_method
from pplgen.story.dynamics import HiddenMarkov, MarkovChain, SwitchingLinearGaussian
from pplgen.story.state_space import StateSpaceStory, step_mask


class SwitchingLDS(StateSpaceStory):
    """Linear Gaussian state space model whose dynamics switch between regimes.

    Parameters
    ----------
    num_regimes
        Number of regimes K.
    num_states
        Dimension D of the state.
    num_features
        Number of data columns E.
    recurrent
        Whether the next regime depends on the state.
    switching_emission
        Whether C, d and r depend on the regime.
    covariance
        Covariance of the state noise of each regime: ``full`` or ``diag``.
    stickiness
        Extra prior concentration of transitions from a regime to itself.
    guide
        Guide of the path: ``responsibilities``, or the simpler and looser ``markov`` and ``mean-field``.
    known
        Values of fixed parameters, by name: a number, or a nested list of the parameter's shape.
    """

    def __init__(
        self,
        num_regimes: int = 2,
        num_states: int = 2,
        num_features: int = 2,
        *,
        recurrent: bool = False,
        switching_emission: bool = False,
        covariance: str = "full",
        stickiness: float = 10.0,
        guide: str = "responsibilities",
        known: Mapping[str, Any] | None = None,
    ) -> None:
        K, D = check_count("num_regimes", num_regimes), check_count("num_states", num_states)
        super().__init__(
            num_regimes=K,
            num_states=D,
            num_features=check_count("num_features", num_features),
            recurrent=bool(recurrent),
            switching_emission=bool(switching_emission),
            covariance=check_choice("covariance", covariance, ("full", "diag")),
            stickiness=check_positive("stickiness", stickiness),
            guide=check_choice("guide", guide, KINDS),
            known=plain_known(known),
        )
        self.K, self.D, self.E = K, D, num_features
        self.register_buffer("m", torch.zeros(num_features))
        self.register_buffer("s", torch.ones(num_features))
        self.theta = Parameters(self._priors(), self.config["known"], correlated=False)
        self.recognition = Recognition(guide, K, D, self.E)
        emitted = ("regime",) if switching_emission else ()
        self.dims = {
            "pi": ("regime",),
            "P": ("regime", "next_regime"),
            **dict.fromkeys(("m0", "s0"), ("state",)),
            "A": ("regime", "state", "previous_state"),
            **dict.fromkeys(("b", "q", "W"), ("regime", "state")),
            "l": ("regime", "pair"),
            "C": (*emitted, "feature", "state"),
            **dict.fromkeys(("d", "r"), (*emitted, "feature")),
            "x": ("series", "time", "state"),
            "y": ("series", "time", "feature"),
            **dict.fromkeys(("column_mean", "column_scale"), ("feature",)),
        }
        self.auxiliary = frozenset({"l"})

    def _priors(self) -> dict[str, Any]:
        K, D, one, config = self.K, self.D, torch.ones_like(self.s[0]), self.config
        emitted = (K, self.E) if config["switching_emission"] else (self.E,)
        sticky = one + config["stickiness"] * torch.eye(K, dtype=one.dtype, device=one.device)
        priors = {
            "pi": dist.Dirichlet(one.expand(K)),
            "P": dist.Dirichlet(sticky).to_event(1),
            "m0": dist.Normal(0 * one, one).expand((D,)).to_event(1),
            "s0": dist.LogNormal(0 * one, 0.5 * one).expand((D,)).to_event(1),
            "A": dist.Normal(torch.eye(D).to(one) / 2, one / 4).expand((K, D, D)).to_event(3),
            "b": dist.Normal(0 * one, one).expand((K, D)).to_event(2),
            "q": dist.LogNormal((0.3 * one).log(), one).expand((K, D)).to_event(2),
            "C": dist.Normal(0 * one, self.s.unsqueeze(-1)).expand((*emitted, D)).to_event(len(emitted) + 1),
            "d": dist.Normal(self.m, self.s).expand(emitted).to_event(len(emitted)),
            "r": dist.LogNormal((0.3 * self.s).log(), one).expand(emitted).to_event(len(emitted)),
        }
        if config["covariance"] == "full" and D > 1:
            priors["l"] = dist.Normal(0 * one, one).expand((K, D * (D - 1) // 2)).to_event(2)
        if config["recurrent"]:
            priors["W"] = dist.Normal(0 * one, one).expand((K, D)).to_event(2)
        return priors

    @pyro_method
    def model(self, y: Tensor | None = None, num_rows: int = 1) -> Tensor:
        """Generate ``num_rows`` series, or score ``y`` of shape ``(num_series, num_steps, num_features)``."""
        theta = self.theta.draw(self._priors())
        path = SwitchingLinearGaussianPath(Dynamics.from_theta(theta), self._inside(y, num_rows))
        with pyro.plate("data", num_rows if y is None else len(y)):
            x = pyro.sample("x", path)
            return pyro.sample("y", Emission.from_theta(theta).observations(path, x), obs=y)

    @pyro_method
    def guide(self, y: Tensor | None = None, num_rows: int = 1) -> None:
        """Draw the parameters, and the paths of the state given series."""
        theta = self.theta.draw_guide()
        if y is not None:
            parts = Dynamics.from_theta(theta), Emission.from_theta(theta)
            with pyro.plate("data", len(y)):
                pyro.sample("x", self.recognition((y - self.m) / self.s, y, self._inside(y), *parts))

    def _inside(self, y: Tensor | None, num_rows: int = 1) -> Tensor:
        """Return the mask of steps that belong to their series, shape ``(num_series, T)``."""
        if y is None:
            return torch.ones(num_rows, int(self.num_steps), dtype=torch.bool, device=self.m.device)
        return step_mask(y, at_least=1)

    @pyro_method
    def state_space(self, y: Tensor) -> SwitchingLinearGaussian:
        """Return the model at the parameters' values; the recurrence, if any, is ignored."""
        theta = self.theta.draw(self._priors())
        dynamics, emission = Dynamics.from_theta(theta), (theta["C"], theta["d"], torch.diag_embed(theta["r"].square()))
        start = theta["pi"], theta["P"], dynamics.m0, dynamics.L0 @ dynamics.L0.mT
        return SwitchingLinearGaussian(*start, dynamics.A, dynamics.b, dynamics.L @ dynamics.L.mT, *emission)

    @pyro_method
    def regimes_given(self, y: Tensor, x: Tensor) -> HiddenMarkov:
        """Return the hidden Markov chain of regimes given paths x, and series y if the emissions switch."""
        theta = self.theta.draw(self._priors())
        dynamics, emission = Dynamics.from_theta(theta), Emission.from_theta(theta)
        path = SwitchingLinearGaussianPath(dynamics, self._inside(y))
        log_pi, log_P, log_emission = path.chain(x)
        if len(emission.C) > 1:
            log_emission = log_emission + SwitchingObservations(path, x, emission).log_emission(y)
        return HiddenMarkov(MarkovChain(log_pi, log_P), log_emission, torch.arange(self.K, device=x.device))

    @pyro_method
    def log_transition(self, x: Tensor) -> Tensor:
        """Return log probabilities of the next regime given states x, shape ``(..., K, K)`` or ``(K, K)``."""
        return Dynamics.from_theta(self.theta.draw(self._priors())).log_transition(x)

    @property
    def constants(self) -> dict[str, Tensor]:
        """Means m and standard deviations s of the columns, shape ``(E,)`` each."""
        return {"column_mean": self.m, "column_scale": self.s}

    @torch.no_grad()
    def initialise(self, x: Tensor, labels: Tensor | None = None, weights: Tensor | None = None) -> None:
        """Set the parameters by Monte Carlo EM on equally weighted series, and pretrain the network on its regimes."""
        self.num_steps.fill_(x.shape[1])
        step_weights = None if weights is None else weights.repeat_interleave(x.shape[1])
        self.m, self.s = column_scales(x.flatten(0, 1), step_weights)
        mask, scaled = self._inside(x), (x - self.m) / self.s
        start, regimes = switching_start(scaled, mask, self.K, self.D)
        per_column = {"C": self.s[:, None] * start["C"], "d": self.m + self.s * start["d"], "r": self.s * start["r"]}
        if self.config["switching_emission"]:
            per_column = {name: value.expand(self.K, *value.shape) for name, value in per_column.items()}
        self.theta.initialise(start | per_column, scale=float(mask.sum()) ** -0.5)
        if self.theta.known:
            theta = self.theta.guide_mean()
            regimes = smoothed_regimes(x, mask, Dynamics.from_theta(theta), Emission.from_theta(theta))
        self.recognition.pretrain(scaled, mask, regimes)
