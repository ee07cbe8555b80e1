r"""Switching linear dynamical system.

The story, for T steps of E features, K regimes and D states; mean and scale are by default the columns'::

    pi   ~ Dirichlet(1, ..., 1)      P[k] ~ Dirichlet(1 + stickiness e_k), 10 by default
    m0   ~ Normal(0, 1)              s0   ~ LogNormal(0, 1/2)
    A[k] ~ Normal(1/2 I, 1/4)        b[k] ~ Normal(0, 1)      q[k] ~ LogNormal(log .3, 1)      l[k], W[k] ~ Normal(0, 1)
    C_ej ~ Normal(0, scale_e)        d    ~ Normal(mean, scale)         r ~ LogNormal(log .3 scale, 1)
    s_1        ~ Categorical(pi)            s_t | s_{t-1}      ~ Categorical(P[s_{t-1}])
    x_1        ~ Normal(m0, diag(s0^2))     x_t | x_{t-1}, s_t ~ Normal(A[s_t] x_{t-1} + b[s_t], Q[s_t])
    y_t | x_t  ~ Normal(C x_t + d, diag(r^2))

Priors have standard deviations; the second argument of x and y is a covariance. Q[k] has Cholesky factor B diag(q[k]),
B unit lower triangular with entries l[k], row by row (``covariance="diag"``: B = I). With ``recurrent`` P[s_{t-1}, s_t]
is replaced by P[s_{t-1}, s_t] exp(W[s_t]' x_{t-1}), normalised; with ``switching_emission`` C, d and r depend on s_t.
Missing entries are integrated out, and the regimes given a path x summed out; steps past the end of a series cancel.

The guide of the parameters is independent normals on the unconstrained scale; ``known`` ones have no density. That of a
path is proportional to p(x_1) exp(sum_tk w_tk (f_t log p(x_t | x_{t-1}, s_t = k) + g_t log p(y_t | x_t, s_t = k)) +
sum_t h_t' x_t), with soft regimes w_t, factors f_t, g_t and shifts h_t the outputs of a network of the series; or it is
a chain (``markov``) or independent steps (``mean-field``) that a network outputs.

References
----------
Ghahramani and Hinton (2000), Variational learning for switching state-space models, Neural Computation 12, 831-864.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pplgen.models._column_scales import ColumnScales, scale_options
from pplgen.models._guides.parameters import Parameters, fix_known, plain_known
from pplgen.models._guides.recognition import KINDS, Recognition
from pplgen.models._starts.switching_start import smoothed_regimes, switching_start
from torch import Tensor

from pplgen.distributions import Dynamics, Emission, SwitchingLinearGaussianPath
from pplgen.story.base import check_choice, check_count, check_positive, pyro_method
from pplgen.story.dynamics import HiddenMarkov, MarkovChain, SwitchingLinearGaussian
from pplgen.story.shared_sites import shared_sites, shared_values
from pplgen.story.state_space import step_mask

AXES: dict[str, tuple[str, ...]] = {
    **{"pi": ("regime",), "P": ("regime", "next_regime"), "m0": ("state",), "s0": ("state",), "l": ("regime", "pair")},
    **{"A": ("regime", "state", "previous_state"), **dict.fromkeys(("b", "q", "W"), ("regime", "state"))},
    **{"C": ("feature", "state"), **dict.fromkeys(("d", "r", "centre", "scale"), ("feature",))},
    **{"x": ("series", "time", "state"), "y": ("series", "time", "feature")},
}


class SwitchingLDS(ColumnScales):
    """Linear Gaussian state space model whose dynamics switch between regimes.

    Parameters
    ----------
    num_regimes, num_states, num_features
        Number of regimes K, of dimensions D of the state, and of data columns E.
    recurrent, switching_emission, covariance
        Whether the next regime depends on the state, and C, d and r on the regime; Q is ``full`` or ``diag``.
    stickiness
        Extra prior concentration of transitions from a regime to itself.
    guide
        Guide of the path: ``responsibilities`` (soft regimes), or the simpler, looser ``markov`` and ``mean-field``.
    known
        Values of fixed parameters, by name: a number, or a nested list of the parameter's shape.
    centre, scale
        Centre and scale of the emissions' priors: a number or one per feature. Default: the columns' means and sds.
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
        centre: float | Sequence[float] | None = None,
        scale: float | Sequence[float] | None = None,
    ) -> None:
        sizes = {"num_regimes": num_regimes, "num_states": num_states, "num_features": num_features}
        K, D, E = (check_count(name, value) for name, value in sizes.items())
        options: dict[str, Any] = {"recurrent": bool(recurrent), "switching_emission": bool(switching_emission)}
        options["covariance"] = check_choice("covariance", covariance, ("full", "diag"))
        options["stickiness"] = check_positive("stickiness", stickiness)
        options |= {"guide": check_choice("guide", guide, KINDS), **scale_options(E, centre, scale)}
        super().__init__(num_regimes=K, num_states=D, num_features=E, known=plain_known(known), **options)
        self.K, self.D, self.E = K, D, E
        self.set_scales(torch.zeros(0, E))
        self.theta = Parameters(shared_sites(self.model), self.config["known"], correlated=False)
        self.recognition = Recognition(guide, K, D, E)
        self.dims = AXES | {name: ("regime", *AXES[name]) for name in Emission._fields if switching_emission}
        self.auxiliary = frozenset({"l"})

    @pyro_method
    @fix_known
    def model(self, y: Tensor | None = None, num_rows: int = 1) -> Tensor:
        """Generate ``num_rows`` series, or score ``y`` of shape ``(num_series, num_steps, num_features)``."""
        K, D, mean, scale, lower, W = self.K, self.D, self.centre, self.scale, None, None
        zero, one, sticky = mean.new_zeros(()), mean.new_ones(()), self.config["stickiness"] * torch.eye(K).to(mean)
        emitted = (K, self.E) if self.config["switching_emission"] else (self.E,)
        pi = pyro.sample("pi", dist.Dirichlet(one.expand(K)))
        P = pyro.sample("P", dist.Dirichlet(1 + sticky).to_event())
        m0 = pyro.sample("m0", dist.Normal(zero, one).expand((D,)).to_event())
        s0 = pyro.sample("s0", dist.LogNormal(zero, one / 2).expand((D,)).to_event())
        A = pyro.sample("A", dist.Normal(torch.eye(D).to(mean) / 2, one / 4).expand((K, D, D)).to_event())
        b = pyro.sample("b", dist.Normal(zero, one).expand((K, D)).to_event())
        q = pyro.sample("q", dist.LogNormal((0.3 * one).log(), one).expand((K, D)).to_event())
        C = pyro.sample("C", dist.Normal(zero, scale[:, None]).expand((*emitted, D)).to_event())
        d = pyro.sample("d", dist.Normal(mean, scale).expand(emitted).to_event())
        r = pyro.sample("r", dist.LogNormal((0.3 * scale).log(), one).expand(emitted).to_event())
        if self.config["covariance"] == "full" and D > 1:
            lower = pyro.sample("l", dist.Normal(zero, one).expand((K, D * (D - 1) // 2)).to_event())
        if self.config["recurrent"]:
            W = pyro.sample("W", dist.Normal(zero, one).expand((K, D)).to_event())
        inside = step_mask(mean.new_zeros(num_rows, int(self.num_steps), 1) if y is None else y, at_least=1)
        path = SwitchingLinearGaussianPath(Dynamics(pi, P, m0, s0, A, b, q, lower, W), inside)
        with pyro.plate("data", num_rows if y is None else len(y)):
            x = pyro.sample("x", path)
            return pyro.sample("y", Emission(C, d, r).observations(path, x), obs=y)

    @pyro_method
    def guide(self, y: Tensor | None = None, num_rows: int = 1) -> None:
        """Draw the parameters, and the paths of the state given series."""
        parts = self._parts(self.theta.draw_guide())
        if y is not None:
            with pyro.plate("data", len(y)):
                pyro.sample("x", self.recognition((y - self.centre) / self.scale, y, step_mask(y, at_least=1), *parts))

    def _parts(self, theta: Mapping[str, Any] | None = None) -> tuple[Dynamics, Emission]:
        """Return the parameters at these values, by default those that the sites are conditioned on."""
        theta = shared_values(self.model) | self.theta.known_values if theta is None else theta
        return Dynamics._make(map(theta.get, Dynamics._fields)), Emission._make(map(theta.get, Emission._fields))

    @pyro_method
    def state_space(self, y: Tensor) -> SwitchingLinearGaussian:
        """Return the model at the parameters' values; the recurrence, if any, is ignored."""
        dynamics, (C, d, r) = self._parts()
        (pi, P, m0, s0, A, b, *_), L = dynamics, dynamics.L
        S0, R = s0.square().diag_embed(), r.square().diag_embed()
        return SwitchingLinearGaussian(pi, P, m0, S0, A, b, L @ L.mT, C, d, R)

    @pyro_method
    def regimes_given(self, y: Tensor, x: Tensor) -> HiddenMarkov:
        """Return the hidden Markov chain of regimes given paths x, and series y if the emissions switch."""
        dynamics, emission = self._parts()
        path = SwitchingLinearGaussianPath(dynamics, step_mask(y, at_least=1))
        log_pi, log_P, log_emission = path.chain(x)
        if emission.switches:
            log_emission = log_emission + emission.observations(path, x).log_emission(y)
        return HiddenMarkov(MarkovChain(log_pi, log_P), log_emission, torch.arange(self.K, device=x.device))

    @pyro_method
    def log_transition(self, x: Tensor) -> Tensor:
        """Return log probabilities of the next regime given states x, shape ``(..., K, K)`` or ``(K, K)``."""
        return self._parts()[0].log_transition(x)

    @torch.no_grad()
    def initialise(self, x: Tensor, labels: Tensor | None = None, weights: Tensor | None = None) -> None:
        """Set the parameters by Monte Carlo EM on equally weighted series, and pretrain the network on its regimes."""
        self.num_steps.fill_(x.shape[1])
        w = None if weights is None else weights.repeat_interleave(x.shape[1])
        self.set_scales(x.flatten(0, 1), w)
        mask, switching = step_mask(x, at_least=1), self.config["switching_emission"]
        start, regimes = switching_start(x, mask, self.centre, self.scale, self.K, self.D, switching=switching)
        self.theta.initialise(start, scale=float(mask.sum()) ** -0.5)
        if self.theta.known:
            regimes = smoothed_regimes(x, mask, *self._parts(self.theta.guide_mean()))
        self.recognition.pretrain((x - self.centre) / self.scale, mask, regimes)
