r"""Bayesian Markov switching autoregression.

The story, for series y of one feature, K regimes and p lags::

    P_k           ~ Dirichlet(alpha, ..., alpha)                   row k of the transition matrix
    mu_k          ~ Normal(m, w)
    sigma_k^2     ~ scale^2 / ChiSquared(3)
    phi_ki        ~ Normal(0, c),  i = 1, ..., p
    s_1           ~ the stationary distribution of P             at the first step of the series
    s_t | s_{t-1} ~ Categorical(P[s_{t-1}])
    y_t - mu[s_t] = sum_i phi[s_t, i] (y_{t-i} - mu[s_{t-i}]) + Normal(0, sigma[s_t]),  t > p

Normals have standard deviations. What does not switch has no index k, and the prior of the first regime. The density is
conditional on the first p steps. Simulations start at y_t = mu[s_t] for t < 1.

Defaults: m and w are the mean and twice the standard deviation of the data, scale is .15 of the standard deviation, set
by ``initialise``, and c is .5. The path of regimes is summed out exactly, by a chain of windows of the regimes whose
means a step depends on. The guide of the parameters is one normal with full covariance on the unconstrained scale,
initialised by Laplace's approximation; ``known`` parameters are constants without a prior.

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
from pplgen.models._guides.parameters import Parameters, fix_known
from pplgen.models._series_story import RegimeStory
from pplgen.models._starts.hmm_start import autoregressive_start
from pplgen.models._starts.series_checks import check_no_gaps
from torch import Tensor

from pplgen.distributions import MarkovSwitchingAutoregression, inverse_chi
from pplgen.story import InputError, check_count, check_positive, pyro_method
from pplgen.story.dynamics import HiddenMarkov
from pplgen.story.shared_sites import row_distribution, shared_sites

MAX_WINDOWS = 1024  # a chain with a million transitions
OBSERVED = {"y": ("series", "time", "feature"), "prior_scale": ("feature",)}
OBSERVED |= dict.fromkeys(("prior_mean", "prior_mean_scale"), ("regime",))


class MarkovSwitchingAR(RegimeStory):
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
        Prior means m and standard deviations w of the means, in data units: a number, or one per regime.
    prior_scale, coefficient_scale
        Prior scale of the standard deviations, in data units, and prior standard deviation c of the coefficients.
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
        priors = {"prior_mean": prior_mean, "prior_mean_scale": prior_mean_scale, "prior_scale": prior_scale}
        super().__init__(
            *("diag", K, 1, priors, known, concentration),
            order=p,
            switching_mean=bool(switching_mean),
            switching_variance=bool(switching_variance),
            switching_coefficients=bool(switching_coefficients),
            coefficient_scale=check_positive("coefficient_scale", coefficient_scale),
        )
        self.order, self.switching = p, switching
        self.theta = Parameters(shared_sites(self.model), self.config["known"])
        axes = {name: ("regime",) if on else () for name, on in switching.items()}
        self.dims = {"P": ("regime", "next_regime"), **axes, "phi": (*axes["phi"], "lag")} | OBSERVED

    @pyro_method
    @fix_known
    def model(self, y: Tensor | None = None, num_rows: int = 1) -> Tensor:
        """Generate ``num_rows`` series, or score ``y`` of shape ``(num_series, num_steps, 1)``."""
        K, p, switching = self.K, self.order, self.switching
        m, w, scale = self.emission.m[:, 0], self.emission.w[:, 0], self.emission.s
        P = pyro.sample("P", dist.Dirichlet(m.new_full((K, K), self.config["concentration"])).to_event(1))
        mu = pyro.sample("mu", dist.Normal(m, w).to_event(1) if switching["mu"] else dist.Normal(m[0], w[0]))
        sigma = pyro.sample("sigma", inverse_chi(scale.expand(K) if switching["sigma"] else scale[0], 3.0).to_event())
        phi = m.new_zeros(p)
        if p:
            c = m.new_full((K, p) if switching["phi"] else (p,), self.config["coefficient_scale"])
            phi = pyro.sample("phi", dist.Normal(0 * c, c).to_event())
        num_steps = int(self.num_steps) if y is None else y.shape[1]
        memory = p if switching["mu"] else 0  # previous regimes whose means matter
        with pyro.plate("data", num_rows if y is None else len(y)):
            series = MarkovSwitchingAutoregression(
                P, mu.expand(K), sigma.expand(K), phi.expand(K, p), num_steps, memory
            )
            return pyro.sample("y", series, obs=y)

    @pyro_method
    def guide(self, y: Tensor | None = None, num_rows: int = 1) -> None:
        """Draw the parameters; no site depends on the series."""
        self.theta.draw_guide()

    @pyro_method
    def state_space(self, y: Tensor) -> HiddenMarkov:
        """Return the Markov chain of windows of regimes, and the log density of each step in each window."""
        series = row_distribution(self.model, y)
        windows = torch.arange(self.K ** (series.memory + 1), device=y.device)
        return HiddenMarkov(series.chain(), series.log_emission(y), windows % self.K)

    @pyro_method
    def fill(self, y: Tensor, regimes: Tensor) -> Tensor:
        """Continue series past their ends given a path of windows of regimes, ``(num_series, num_steps)``."""
        return row_distribution(self.model, y).continue_series(y, regimes % self.K)

    def start(self, y: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """Set unspecified priors from the data, and return parameters found by EM without the lags."""
        self.emission.learn(y, weights)
        options = self.theta.known_values, self.config["concentration"], self.order, self.switching
        return autoregressive_start(self.emission, y, weights, *options)

    def check_data(self, x: Tensor) -> None:
        """Raise ``InputError`` for data of the wrong shape or missing steps inside a series."""
        super().check_data(x)
        check_no_gaps(x, "MarkovSwitchingAR")

    @property
    def constants(self) -> dict[str, Tensor]:
        """Prior constants m and w, shape ``(K,)``, and s."""
        return {name: value[:, 0] if value.ndim > 1 else value for name, value in self.emission.constants.items()}
