r"""Linear Gaussian state space model, with structural time series and autoregressions as special cases.

The story, for series y of T steps and E features with D hidden states::

    x_1             ~ Normal(m0, S0)               S0 = diag(s0^2)
    x_t | x_{t-1}   ~ Normal(A x_{t-1}, Q)         Q  = diag(q^2)
    y_t | x_t       ~ Normal(C x_t + d, R)         R  = diag(r^2 + s^2 / 10^6)

The learned parameters depend on the form; in all forms but the first each feature has separate states:

- ``free``: A, C, d and r. Q = 1 identifies the states' scale and zeros their rotation: C stacked on A is lower
  triangular, unless A or C is known.
- ``level``: q and r of a random walk observed with noise, y_t = x_t + noise.
- ``trend``: q and r of a local linear trend, a level with a random walk slope: A = [[1, 1], [0, 1]], C = [1, 0].
- ``autoregression``: phi, q and d in y_t - d = sum_k phi_k (y_{t-k} - d) + noise; x_t holds the lags, r = 0.

With c and s the columns' means and standard deviations, and v and u location and scale of the states (c and s for a
level, 0 and .1 s for a slope, 0 and s for an autoregression, 0 and 1 for free states)::

    m0 ~ Normal(v, 3 u)    s0 ~ LogNormal(log u, 1)    q ~ LogNormal(log .3 u, 1)    r ~ LogNormal(log .5 s, 1)
    d  ~ Normal(c, s)      phi ~ Normal(0, 1)          A ~ Normal(1/2 I, 1/2)        C ~ Normal(0, s)

The observation noise is bounded below by s / 1000; otherwise constant stretches make the likelihood unbounded. States
and missing entries are integrated out exactly; the guide is normal on the unconstrained scale.

References
----------
Durbin and Koopman (2012), Time Series Analysis by State Space Methods.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pplgen.models._guides.parameters import Parameters, plain_known
from pplgen.models._starts.kmeans_plus_plus import column_scales
from pplgen.models._starts.loadings import initial_loadings
from torch import Tensor

from pplgen.distributions import LinearGaussianSeries, NormalWithZeros
from pplgen.story.base import InputError, check_choice, check_count, pyro_method
from pplgen.story.dynamics import LinearGaussian
from pplgen.story.state_space import StateSpaceStory

FORMS = ("free", "level", "trend", "autoregression")
MAX_CORRELATED = 100  # number of parameters up to which the guide has a full covariance
VECTORS = {"m0": ("state",), "s0": ("state",), "q": ("noise",), "d": ("feature",), "r": ("feature",)}
AXES = {**VECTORS, "phi": ("lag", "feature"), "A": ("state", "state_other"), "C": ("feature", "state")}
OBSERVED = {"y": ("series", "time", "feature"), "centre": ("feature",), "scale": ("feature",)}


class LinearGaussianSSM(StateSpaceStory):
    """Linear Gaussian state space model of series, the states integrated out.

    Parameters
    ----------
    num_states
        Number of states D of the free form, by default 2.
    num_features
        Number of data columns E.
    form
        ``free``, ``level``, ``trend`` or ``autoregression``.
    order
        Number of lags of an autoregression, by default 1.
    known
        Values of fixed parameters, by name; a number stands for all entries.
    """

    centre: Tensor
    scale: Tensor

    def __init__(
        self,
        num_states: int | None = None,
        num_features: int = 1,
        *,
        form: str = "free",
        order: int | None = None,
        known: Mapping[str, Any] | None = None,
    ) -> None:
        E = check_count("num_features", num_features)
        for name, value, owner in (("num_states", num_states, "free"), ("order", order, "autoregression")):
            if value is not None and check_count(name, value) and check_choice("form", form, FORMS) != owner:
                raise InputError(f"{name}={value!r}: only form={owner!r} has this option; form={form!r} was given")
        super().__init__(num_states=num_states, num_features=E, form=form, order=order, known=plain_known(known))
        self.form, self.E = check_choice("form", form, FORMS), E
        self.D = {"free": num_states or 2, "level": E, "trend": 2 * E, "autoregression": (order or 1) * E}[form]
        self.missing: bool | None = None
        self.register_buffer("centre", torch.zeros(E))
        self.register_buffer("scale", torch.ones(E))
        full = torch.ones(E + self.D, self.D, dtype=torch.bool)
        self.register_buffer("free", full if {"A", "C"} & set(known or ()) else full.tril(), persistent=False)
        priors = self._priors()
        size = sum(prior.shape().numel() for prior in priors.values())
        self.theta = Parameters(priors, self.config["known"], correlated=size <= MAX_CORRELATED)
        self.dims = {name: AXES[name] for name in priors} | OBSERVED

    @classmethod
    def local_level(cls, num_features: int = 1, *, known: Any = None) -> LinearGaussianSSM:
        """Return the local level model, a random walk plus noise, for each feature."""
        return cls(num_features=num_features, form="level", known=known)

    @classmethod
    def local_linear_trend(cls, num_features: int = 1, *, known: Any = None) -> LinearGaussianSSM:
        """Return the local linear trend model, random walk level and slope plus noise, for each feature."""
        return cls(num_features=num_features, form="trend", known=known)

    @classmethod
    def autoregression(cls, order: int = 1, num_features: int = 1, *, known: Any = None) -> LinearGaussianSSM:
        """Return an autoregression with ``order`` lags, for each feature."""
        return cls(num_features=num_features, form="autoregression", order=order, known=known)

    @pyro_method
    def model(self, y: Tensor | None = None, num_rows: int = 1) -> Tensor:
        """Generate ``num_rows`` series, or score y of shape ``(num_series, num_steps, num_features)``."""
        theta, T = self.theta.draw(self._priors()), int(self.num_steps) if y is None else y.shape[1]
        series = LinearGaussianSeries(self._assemble(theta), T, missing=self.missing is not False)
        with pyro.plate("data", num_rows if y is None else len(y)):
            return pyro.sample("y", series, obs=y)

    @pyro_method
    def guide(self, y: Tensor | None = None, num_rows: int = 1) -> None:
        """Draw the parameters; no site depends on the series."""
        self.theta.draw_guide()

    @pyro_method
    def state_space(self, y: Tensor) -> LinearGaussian:
        """Return the matrices of the model, without batch or time axes."""
        return self._assemble(self.theta.draw(self._priors()))

    def _priors(self) -> dict[str, Any]:
        """Return the priors of the parameters of this form."""
        c, s, (v, u) = self.centre, self.scale, self._units()
        priors: dict[str, Any] = {"m0": dist.Normal(v, 3 * u), "s0": dist.LogNormal(u.log(), 1.0)}
        if self.form == "free":
            priors["A"] = NormalWithZeros(torch.eye(self.D).to(s) / 2, s.new_tensor(0.5), self.free[self.E :])
            priors["C"] = NormalWithZeros(s.new_tensor(0.0), s[:, None], self.free[: self.E])
        elif self.form == "autoregression":
            lags = s.new_zeros(self.D).reshape(-1, self.E)
            priors |= {"phi": dist.Normal(lags, 1.0), "q": dist.LogNormal((0.3 * s).log(), 1.0)}
        else:
            priors["q"] = dist.LogNormal((0.3 * u).log(), 1.0)
        if self.form in ("free", "autoregression"):
            priors["d"] = dist.Normal(c, s)
        if self.form != "autoregression":
            priors["r"] = dist.LogNormal((0.5 * s).log(), 1.0)
        return {name: prior.to_event(len(prior.batch_shape)) for name, prior in priors.items()}

    def _units(self) -> tuple[Tensor, Tensor]:
        """Return location v and scale u of the states."""
        c, s = self.centre, self.scale
        if self.form == "free":
            return s.new_zeros(self.D), s.new_ones(self.D)
        if self.form == "trend":
            return torch.cat([c, 0 * c]), torch.cat([s, 0.1 * s])
        return (c, s) if self.form == "level" else (s.new_zeros(self.D), s.repeat(self.D // self.E))

    def _assemble(self, theta: Mapping[str, Tensor]) -> LinearGaussian:
        """Assemble the matrices from the parameters."""
        E, D, zero = self.E, self.D, self.scale.new_zeros(self.D)
        one = torch.eye(D, dtype=zero.dtype, device=zero.device)
        A, C, q, r = one, one[:E], theta.get("q", 1 + zero), theta.get("r", zero[:E])
        if self.form == "free":
            A, C = theta["A"], theta["C"]
        elif self.form == "trend":
            A = one + one.roll(E, 1).triu()
        elif self.form == "autoregression":
            lags = torch.diag_embed(theta["phi"])  # one matrix (E, E) for each lag
            A = torch.cat([lags.transpose(0, 1).reshape(E, D), one[: D - E]])
            q = torch.cat([q, zero[E:]])
        d = theta.get("d", zero[:E])
        variances = theta["s0"].square(), q.square(), r.square() + 1e-6 * self.scale.square()
        S0, Q, R = (torch.diag_embed(variance) for variance in variances)
        return LinearGaussian(theta["m0"], S0, A, zero, Q, C, d, R)

    @property
    def constants(self) -> dict[str, Tensor]:
        """The columns' means c and standard deviations s, in data units, shape ``(num_features,)`` each."""
        return {"centre": self.centre, "scale": self.scale}

    def observe_missing(self, x: Tensor) -> None:
        """Integrate out missing entries from now on, if there are any."""
        self.missing = bool(self.missing) or bool(x.isnan().any())

    @torch.no_grad()
    def initialise(self, y: Tensor, labels: Tensor | None = None, weights: Tensor | None = None) -> None:
        """Set c and s from the columns, and the guide to Laplace's approximation."""
        self.observe_missing(y)
        self.num_steps.fill_(y.shape[1])
        weights = y.new_ones(len(y)) if weights is None else weights.to(y.dtype)
        steps, w = y.flatten(0, 1), weights.repeat_interleave(y.shape[1])[:, None] / weights.mean()
        self.centre, self.scale = column_scales(steps, w[:, 0])
        v, u = self._units()
        start = {"m0": v, "s0": u, "q": 0.3 * u, "d": self.centre, "r": 0.5 * self.scale}
        if self.form == "autoregression":
            start |= {"q": 0.3 * self.scale, "phi": torch.zeros_like(u).reshape(-1, self.E)}
        elif self.form == "free":
            start["A"] = (0.7 * torch.eye(self.D) + 0.3 * torch.randn(self.D, self.D)).to(u) * self.free[self.E :]
            start["C"] = self.scale[:, None] * initial_loadings(w.sqrt() * (steps - self.centre) / self.scale, self.D)
        self.theta.initialise(start)

        def weighted(y: Tensor) -> None:
            series = LinearGaussianSeries(self.state_space(y), y.shape[1], missing=bool(self.missing))
            pyro.factor("y", weights @ series.log_prob(y))

        self.theta.laplace_start(weighted, y)
