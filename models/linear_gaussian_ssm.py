r"""Linear Gaussian state space model, with structural time series and autoregressions as special cases.

The story, for series y of T steps and E features with D hidden states; here the second argument is a covariance::

    x_1             ~ Normal(m0, S0)               S0 = diag(s0^2)
    x_t | x_{t-1}   ~ Normal(A x_{t-1}, Q)         Q  = diag(q^2), in an autoregression diag(q^2, 0, ..., 0)
    y_t | x_t       ~ Normal(C x_t + d, R)         R  = diag(r^2 + s^2 / 10^6)

The parameters besides m0 and s0 depend on the form; in all forms but the first each feature has separate states,
and matrices are given for one feature (D = E, 2 E and p E for a level, a trend and p lags):

- ``free``: A, C, d and r. Q = I fixes the states' scale, and zeros above the diagonal of C stacked on A their rotation,
  unless one of them is known.
- ``level``: q and r of a random walk observed with noise, A = C = I, d = 0.
- ``trend``: q and r of a local linear trend, a level with a random walk slope: A = [[1, 1], [0, 1]], C = [1, 0], d = 0,
  with the levels of all features before the slopes.
- ``autoregression``: phi, q and d in h_t = sum_k phi_k h_{t-k} + Normal(0, q^2), y_t = d + h_t; x_t holds h_t and the
  lags h_{t-1}, ..., h_{t-p+1}; r = 0.

With c and s by default the columns' means and standard deviations, and v and u location and scale of the states (c
and s for a level, 0 and .1 s for a slope, 0 and s for an autoregression, 0 and 1 for free states); here the second
argument is a standard deviation::

    m0 ~ Normal(v, 3 u)   s0 ~ LogNormal(log u, 1)   A ~ Normal(1/2 I, 1/2)   C_ej ~ Normal(0, s_e)   phi ~ Normal(0, 1)
    q  ~ LogNormal(log .3 u, 1)                        d ~ Normal(c, s)          r ~ LogNormal(log .5 s, 1)

The observation noise is bounded below by s / 1000; otherwise constant stretches make the likelihood unbounded. States
and missing entries are integrated out exactly. The guide is normal on the unconstrained scale, with a full covariance
up to 100 parameters, else a diagonal one; ``known`` parameters are constants without a prior.

References
----------
Durbin and Koopman (2012), Time Series Analysis by State Space Methods.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pplgen.models._column_scales import ColumnScales, scale_options
from pplgen.models._guides.parameters import Parameters, fix_known, plain_known
from pplgen.models._series_story import SeriesStory
from pplgen.models._starts.loadings import initial_matrices
from torch import Tensor

from pplgen.distributions import LinearGaussianSeries, NormalWithZeros
from pplgen.story import InputError, check_choice, check_count, pyro_method
from pplgen.story.dynamics import LinearGaussian
from pplgen.story.shared_sites import row_distribution, shared_sites

FORMS = ("free", "level", "trend", "autoregression")
MAX_CORRELATED = 100
AXES: dict[str, tuple[str, ...]] = {"m0": ("state",), "s0": ("state",), "A": ("state", "previous_state")}
AXES |= {"C": ("feature", "state"), "phi": ("lag", "feature"), "q": ("noise",), "d": ("feature",), "r": ("feature",)}
OBSERVED = {"y": ("series", "time", "feature"), "centre": ("feature",), "scale": ("feature",)}


class LinearGaussianSSM(ColumnScales, SeriesStory):
    """Linear Gaussian state space model of series, the states integrated out.

    Parameters
    ----------
    num_states, num_features
        Number of states D of the free form, by default 2, and of data columns E.
    form
        ``free``, ``level``, ``trend`` or ``autoregression``.
    order
        Number of lags of an autoregression, by default 1.
    known
        Values of fixed parameters, by name; a number stands for all entries.
    centre, scale
        Centre c and scale s of the priors, in data units: a number or one per feature. Default: the columns' means and
        standard deviations.
    """

    def __init__(
        self,
        num_states: int | None = None,
        num_features: int = 1,
        *,
        form: str = "free",
        order: int | None = None,
        known: Mapping[str, Any] | None = None,
        centre: float | Sequence[float] | None = None,
        scale: float | Sequence[float] | None = None,
    ) -> None:
        E = check_count("num_features", num_features)
        for name, value, owner in (("num_states", num_states, "free"), ("order", order, "autoregression")):
            if value is not None and check_count(name, value) and check_choice("form", form, FORMS) != owner:
                raise InputError(f"{name}={value!r}: only form={owner!r} has this option; form={form!r} was given")
        options = {"num_states": num_states, "form": form, "order": order, "known": plain_known(known)}
        super().__init__(num_features=E, **options, **scale_options(E, centre, scale))
        self.form, self.E = check_choice("form", form, FORMS), E
        self.D = {"free": num_states or 2, "level": E, "trend": 2 * E, "autoregression": (order or 1) * E}[form]
        self.missing: bool | None = None
        self.set_scales(torch.zeros(0, E))
        free = torch.ones(E + self.D, self.D, dtype=torch.bool)
        self.register_buffer("free", free if {"A", "C"} & set(known or ()) else free.tril(), persistent=False)
        sites = shared_sites(self.model)
        size = sum(site["value"].numel() for site in sites.values())
        self.theta = Parameters(sites, self.config["known"], correlated=size <= MAX_CORRELATED)
        self.dims = {name: AXES[name] for name in sites} | OBSERVED

    @classmethod
    def local_level(cls, num_features: int = 1, **options: Any) -> LinearGaussianSSM:
        """Return the local level model, a random walk plus noise, for each feature."""
        return cls(num_features=num_features, form="level", **options)

    @classmethod
    def local_linear_trend(cls, num_features: int = 1, **options: Any) -> LinearGaussianSSM:
        """Return the local linear trend model, random walk level and slope plus noise, for each feature."""
        return cls(num_features=num_features, form="trend", **options)

    @classmethod
    def autoregression(cls, order: int = 1, num_features: int = 1, **options: Any) -> LinearGaussianSSM:
        """Return an autoregression with ``order`` lags, for each feature."""
        return cls(num_features=num_features, form="autoregression", order=order, **options)

    @pyro_method
    @fix_known
    def model(self, y: Tensor | None = None, num_rows: int = 1) -> Tensor:
        """Generate ``num_rows`` series, or score y of shape ``(num_series, num_steps, num_features)``."""
        D, E, c, s = self.D, self.E, self.centre, self.scale
        zero, one = s.new_zeros(D), torch.eye(D).to(s)
        trend, lags = (torch.cat([c, 0 * c]), torch.cat([s, 0.1 * s])), (zero, s.repeat(D // E))
        v, u = {"free": (zero, zero + 1), "level": (c, s), "trend": trend, "autoregression": lags}[self.form]
        A, C, q, d, r = one, one[:E], zero + 1, zero[:E], zero[:E]
        m0 = pyro.sample("m0", dist.Normal(v, 3 * u).to_event(1))
        s0 = pyro.sample("s0", dist.LogNormal(u.log(), 1.0).to_event(1))
        if self.form == "free":
            A = pyro.sample("A", NormalWithZeros(one / 2, s.new_tensor(0.5), self.free[E:]))
            C = pyro.sample("C", NormalWithZeros(s.new_tensor(0.0), s[:, None], self.free[:E]))
        elif self.form == "trend":
            A = one + one.roll(E, 1).triu()
        elif self.form == "autoregression":
            phi = pyro.sample("phi", dist.Normal(zero.reshape(-1, E), 1.0).to_event(2))
            A = torch.cat([torch.diag_embed(phi).transpose(0, 1).reshape(E, D), one[: D - E]])
            u = u[:E]
        if self.form != "free":
            q = pyro.sample("q", dist.LogNormal((0.3 * u).log(), 1.0).to_event(1))
        if self.form in ("free", "autoregression"):
            d = pyro.sample("d", dist.Normal(c, s).to_event(1))
        if self.form != "autoregression":
            r = pyro.sample("r", dist.LogNormal((0.5 * s).log(), 1.0).to_event(1))
        variances = s0.square(), torch.cat([q.square(), zero[len(q) :]]), r.square() + 1e-6 * s.square()
        S0, Q, R = map(torch.diag_embed, variances)
        system = LinearGaussian(m0, S0, A, b=zero, Q=Q, C=C, d=d, R=R)
        num_steps = int(self.num_steps) if y is None else y.shape[1]
        with pyro.plate("data", num_rows if y is None else len(y)):
            return pyro.sample("y", LinearGaussianSeries(system, num_steps, missing=self.missing is not False), obs=y)

    @pyro_method
    def guide(self, y: Tensor | None = None, num_rows: int = 1) -> None:
        """Draw the parameters; no site depends on the series."""
        self.theta.draw_guide()

    @pyro_method
    def state_space(self, y: Tensor) -> LinearGaussian:
        """Return the matrices of the model, without batch or time axes."""
        return row_distribution(self.model, y).parameters

    def observe_missing(self, x: Tensor) -> None:
        """Integrate out missing entries from now on, if there are any."""
        self.missing = bool(self.missing) or bool(x.isnan().any())

    def start(self, y: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """Set c and s, and return the priors' medians; matrices of free states from the columns."""
        steps, w = y.flatten(0, 1), weights.repeat_interleave(y.shape[1])[:, None] / weights.mean()
        self.set_scales(steps, w[:, 0])
        start = {k: s["fn"].base_dist.icdf(y.new_tensor(0.5)) for k, s in shared_sites(self.model, y).items()}
        if self.form == "free":
            start |= initial_matrices(w.sqrt() * (steps - self.centre) / self.scale, self.scale, self.free)
        return start
