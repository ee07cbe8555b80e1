r"""Bayesian Markov switching autoregression.

The story, for series y of one feature, K regimes and p lags::

    P_k           ~ Dirichlet(alpha, ..., alpha)                   row k of the transition matrix
    mu_k          ~ Normal(m, w)
    sigma_k^2     ~ s^2 / ChiSquared(3)
    phi_i         ~ Normal(0, c),  i = 1, ..., p
    s_1           ~ the stationary distribution of P
    s_t | s_{t-1} ~ Categorical(P[s_{t-1}])
    y_t - mu[s_t] = sum_i phi_i (y_{t-i} - mu[s_{t-i}]) + Normal(0, sigma[s_t]),  t > p

Means, variances and coefficients may each be shared or switch with the regime. The density is conditional on the first
p steps. Simulations start from previous steps at their means.

Defaults: m and w are the mean and twice the standard deviation of the data, s is .15 of the standard deviation, set by
``initialise``. The path of regimes is summed out exactly, by a chain of windows of regimes. The guide of the parameters
is normal on the unconstrained scale, initialised by Laplace's approximation (``_guides/parameters.py``).

References
----------
Hamilton (1989), A new approach to the economic analysis of nonstationary time series and the business cycle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pplgen.models._distributions.hmm_emissions import DiagonalEmission, per_regime
from pplgen.models._guides.parameters import Parameters, plain_known
from pplgen.models._starts.hmm_start import autoregressive_start
from torch import Tensor

from pplgen.distributions import inverse_chi
from pplgen.distributions.switching_autoregression import MarkovSwitchingAutoregression
from pplgen.story.base import InputError, check_count, check_per_feature, check_positive, pyro_method
from pplgen.story.dynamics import HiddenMarkov
from pplgen.story.state_space import StateSpaceStory, series_lengths, step_mask

MAX_WINDOWS = 1024  # a chain with a million transitions


class MarkovSwitchingAR(StateSpaceStory):
    """Autoregression whose mean, variance or coefficients switch between K regimes, the regimes summed out.

    Shorter series are padded by NaN at the end; missing steps inside a series are not supported.

    Parameters
    ----------
    num_regimes, order
        Number of regimes K, and of lags p (0: none).
    switching_mean, switching_variance, switching_coefficients
        Whether each differs between regimes.
    num_features
        Number of data columns; must be 1.
    known
        Values of fixed parameters: ``P``, shape ``(K, K)``, ``mu`` and ``sigma``, ``(K,)`` or, if they do not switch,
        ``()``, and ``phi``, ``(K, p)`` or ``(p,)``.
    concentration
        Prior concentration alpha of each transition.
    prior_mean, prior_mean_scale
        Prior means m and standard deviations w of the means, data units: a number, or one per regime ``[[m1], [m2]]``.
    prior_scale, coefficient_scale
        Prior scale s of the standard deviations, in data units, and prior standard deviation c of the coefficients.
    """

    def __init__(
        self,
        num_regimes: int = 2,
        order: int = 1,
        *,
        switching_mean: bool = True,
        switching_variance: bool = False,
        switching_coefficients: bool = False,
        num_features: int = 1,
        known: Mapping[str, Any] | None = None,
        concentration: float = 1.0,
        prior_mean: float | Sequence[Any] | None = None,
        prior_mean_scale: float | Sequence[Any] | None = None,
        prior_scale: float | None = None,
        coefficient_scale: float = 0.5,
    ) -> None:
        if num_features != 1:
            raise InputError(f"num_features={num_features!r}: MarkovSwitchingAR takes one column of data")
        K, p = check_count("num_regimes", num_regimes), check_count("order", order, minimum=0)
        if switching_mean and K ** (p + 1) > MAX_WINDOWS:
            windows = f"num_regimes={K} and order={p} make {K}^{p + 1} windows of regimes, more than {MAX_WINDOWS:,}"
            raise InputError(f"{windows}; give a lower order, or switching_mean=False")
        switching = {"mu": switching_mean, "sigma": switching_variance, "phi": switching_coefficients and p > 0}
        if K > 1 and not any(switching.values()):
            raise InputError("nothing switches: set switching_mean, switching_variance or switching_coefficients")
        options = {
            "prior_mean": per_regime("prior_mean", prior_mean, K, 1),
            "prior_mean_scale": per_regime("prior_mean_scale", prior_mean_scale, K, 1, positive=True),
            "prior_scale": check_per_feature("prior_scale", prior_scale, 1, positive=True),
        }
        super().__init__(
            num_regimes=K,
            order=p,
            num_features=1,
            switching_mean=bool(switching_mean),
            switching_variance=bool(switching_variance),
            switching_coefficients=bool(switching_coefficients),
            known=plain_known(known),
            concentration=check_positive("concentration", concentration),
            coefficient_scale=check_positive("coefficient_scale", coefficient_scale),
            **options,
        )
        self.K, self.order, self.switching = K, p, switching
        self.emission = DiagonalEmission(K, 1, options)
        self.theta = Parameters(self._priors(), self.config["known"])
        regime: dict[str, tuple[str, ...]] = {name: ("regime",) if on else () for name, on in switching.items()}
        self.dims = {
            "P": ("regime", "next_regime"),
            **regime | {"phi": (*regime["phi"], "lag")},
            "y": ("series", "time", "feature"),
            **dict.fromkeys(("prior_mean", "prior_mean_scale"), ("regime",)),
            "prior_scale": ("feature",),
        }

    def _priors(self) -> dict[str, Any]:
        m, w, s = self.emission.m[:, 0], self.emission.w[:, 0], self.emission.s.expand(self.K)
        alpha = torch.full_like(m, self.config["concentration"]).expand(self.K, self.K)
        c = torch.full_like(m, self.config["coefficient_scale"])[:, None].expand(self.K, self.order)
        index = {name: slice(None) if switches else 0 for name, switches in self.switching.items()}
        priors = {
            "P": dist.Dirichlet(alpha),
            "mu": dist.Normal(m[index["mu"]], w[index["mu"]]),
            "sigma": inverse_chi(s[index["sigma"]], 3.0),
            "phi": dist.Normal(0 * c[index["phi"]], c[index["phi"]]),
        }
        priors |= {name: prior.to_event(len(prior.batch_shape)) for name, prior in priors.items()}
        return {name: prior for name, prior in priors.items() if 0 not in prior.shape()}

    @pyro_method
    def model(self, y: Tensor | None = None, num_rows: int = 1) -> Tensor:
        """Generate ``num_rows`` series, or score ``y`` of shape ``(num_series, num_steps, 1)``."""
        series = self._series(self.theta.draw(self._priors()), int(self.num_steps) if y is None else y.shape[1])
        with pyro.plate("data", num_rows if y is None else len(y)):
            return pyro.sample("y", series, obs=y)

    @pyro_method
    def guide(self, y: Tensor | None = None, num_rows: int = 1) -> None:
        """Draw the parameters; no site depends on the series."""
        self.theta.draw_guide()

    def _series(self, theta: dict[str, Tensor], num_steps: int) -> MarkovSwitchingAutoregression:
        """Return the distribution of series, the regimes summed out."""
        mu, sigma = (theta[name].expand(self.K) for name in ("mu", "sigma"))
        phi = theta["phi"].expand(self.K, self.order) if self.order else mu.new_zeros(self.K, 0)
        memory = self.order if self.switching["mu"] else 0
        return MarkovSwitchingAutoregression(theta["P"], mu, sigma, phi, num_steps, memory)

    @pyro_method
    def state_space(self, y: Tensor) -> HiddenMarkov:
        """Return the Markov chain of windows of regimes, and the log density of each step in each window."""
        series = self._series(self.theta.draw(self._priors()), y.shape[1])
        windows = torch.arange(self.K ** (series.memory + 1), device=y.device)
        return HiddenMarkov(series.chain(), series.log_emission(y), windows % self.K)

    @pyro_method
    def fill(self, y: Tensor, regimes: Tensor) -> Tensor:
        """Continue series past their ends given a path of windows of regimes, ``(num_series, num_steps)``."""
        series = self._series(self.theta.draw(self._priors()), y.shape[1])
        return series.continue_series(y, regimes % self.K)

    @torch.no_grad()
    def initialise(self, y: Tensor, labels: Tensor | None = None, weights: Tensor | None = None) -> None:
        """Set unspecified priors from the data, and the guide by EM and Laplace's approximation."""
        weights = y.new_ones(len(y)) if weights is None else weights.to(y.dtype)
        self.num_steps.fill_(y.shape[1])
        self.emission.learn_scales(y.flatten(0, 1), weights.repeat_interleave(y.shape[1]))
        known = {name: getattr(self.theta, f"known_{name}") for name in self.theta.known}
        alpha = self.config["concentration"]
        self.theta.initialise(autoregressive_start(self.emission, y, weights, known, alpha, self.order, self.switching))

        def weighted(y: Tensor) -> None:
            series = self._series(self.theta.draw(self._priors()), y.shape[1])
            pyro.factor("y", weights @ series.expand(torch.Size([len(y)])).log_prob(y))

        self.theta.laplace_start(weighted, y)

    def check_data(self, x: Tensor) -> None:
        """Raise ``InputError`` for data of the wrong shape or missing steps inside a series."""
        super().check_data(x)
        missing = x[..., 0].isnan() & step_mask(x)
        if missing.any():
            i, t = missing.nonzero()[0].tolist()
            if n := int((~x[i, :, 0].isnan()).nonzero()[0]):
                leading = "a missing step; drop it" if n == 1 else f"{n} missing steps; drop them"
                raise InputError(f"series {i + 1} starts with {leading}")
            where = f"series {i + 1}, step {t + 1}: the value is missing inside the series"
            raise InputError(f"{where}, which MarkovSwitchingAR cannot marginalise; use SwitchingLDS")

    def check_training_data(self, x: Tensor) -> None:
        """Raise ``InputError`` for fewer steps after the first lags than regimes."""
        super().check_training_data(x)
        if (scored := int((series_lengths(x) - self.order).clamp_min(0).sum())) < max(self.K, 2):
            raise InputError(f"{scored} steps after the first {self.order} are too few for {self.K} regimes")

    @property
    def constants(self) -> dict[str, Tensor]:
        """Prior constants m and w, shape ``(K,)``, and s."""
        emission = self.emission
        return {"prior_mean": emission.m[:, 0], "prior_mean_scale": emission.w[:, 0], "prior_scale": emission.s}
