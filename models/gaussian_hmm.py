r"""Bayesian hidden Markov model.

The story, for series y of T steps with D features, and K regimes::

    pi            ~ Dirichlet(1, ..., 1)
    P_k           ~ Dirichlet(alpha, ..., alpha)               row k of P
    mu_k          ~ Normal(m, w)                               emission: diag and full
    sigma_k^2     ~ scale^2 / ChiSquared(3)                    diag
    Sigma_k       ~ InverseWishart(D + 2, diag(scale^2))       full, independent of mu_k
    rate_k        ~ Gamma(m^2 / w^2, m / w^2)                  poisson: prior mean m, standard deviation w
    probability_k ~ Dirichlet(1, ..., 1), for each column      categorical
    s_1           ~ Categorical(pi)                            s_t | s_{t-1} ~ Categorical(P[s_{t-1}])
    y_t | s_t = k ~ Normal(mu_k, diag(sigma_k^2)), Normal(mu_k, Sigma_k), Poisson(rate_k) or Categorical(probability_k)

w is a standard deviation; scale, ``prior_scale`` over K^(1/D), keeps a regime from collapsing onto a point. The path of
regimes is summed out exactly, and missing entries are integrated out. The guide of the parameters is one normal with
full covariance on the unconstrained scale, initialised by Laplace's approximation; ``known`` parameters are constants
without a prior.

References
----------
Rabiner (1989), A tutorial on hidden Markov models and selected applications in speech recognition.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pplgen.models._guides.parameters import Parameters, fix_known
from pplgen.models._series_story import RegimeStory
from pplgen.models._starts.hmm_start import initial_regimes
from pplgen.models._starts.series_checks import check_entries
from pyro import poutine
from torch import Tensor

from pplgen.distributions import HiddenMarkovSeries, InverseWishart, MarginalIndependent, inverse_chi
from pplgen.distributions.missing import MarginalNormal, WholeRowNormal
from pplgen.story import pyro_method
from pplgen.story.dynamics import HiddenMarkov, MarkovChain
from pplgen.story.shared_sites import row_distribution, shared_sites

MEANS = ("regime", "feature")
AXES = {"pi": ("regime",), "P": ("regime", "next_regime"), "mu": MEANS, "sigma": MEANS, "rate": MEANS}
AXES |= {"Sigma": (*MEANS, "other_feature"), "probability": (*MEANS, "category")}
OBSERVED = {"y": ("series", "time", "feature"), "prior_scale": ("feature",)}
OBSERVED |= {"prior_mean": MEANS, "prior_mean_scale": MEANS}


class GaussianHMM(RegimeStory):
    """Hidden Markov model of series with K regimes and normal or other emissions, the path of regimes summed out.

    Parameters
    ----------
    num_regimes, num_features
        Number of regimes K, and of data columns D.
    emission
        ``diag`` or ``full``, normal with a diagonal or a full covariance; ``poisson``, counts; or ``categorical``.
    num_categories
        Number C of categories of each column, coded as whole numbers below it; ``categorical`` emissions need it.
    known
        Values of fixed parameters, as numbers or nested lists: ``pi``, shape ``(K,)``, ``P`` ``(K, K)``, ``mu``,
        ``sigma`` and ``rate`` ``(K, D)``, ``Sigma`` ``(K, D, D)``, ``probability`` ``(K, D, C)``.
    concentration
        Prior concentration alpha of each transition.
    prior_mean, prior_mean_scale
        Prior means m of the means (or rates) and their standard deviations w, in data units: a number, one per
        feature, or one list per regime. Default: means and twice the standard deviations of columns; rates: w = m.
    prior_scale
        Prior scale of the standard deviations: a number or one per feature. Default: .15 of the columns'.
    """

    def __init__(
        self,
        num_regimes: int = 2,
        num_features: int = 1,
        *,
        emission: str = "diag",
        num_categories: int | None = None,
        known: Mapping[str, Any] | None = None,
        concentration: float = 1.0,
        prior_mean: float | Sequence[Any] | None = None,
        prior_mean_scale: float | Sequence[Any] | None = None,
        prior_scale: float | Sequence[float] | None = None,
    ) -> None:
        priors = {"prior_mean": prior_mean, "prior_mean_scale": prior_mean_scale, "prior_scale": prior_scale}
        priors["num_categories"] = num_categories
        super().__init__(emission, num_regimes, num_features, priors, known, concentration, emission=emission)
        self.partly_missing = False
        sites = shared_sites(self.model)
        self.theta = Parameters(sites, self.config["known"])
        self.dims = {name: AXES[name] for name in sites} | OBSERVED

    @pyro_method
    @fix_known
    def model(self, y: Tensor | None = None, num_rows: int = 1) -> Tensor:
        """Generate ``num_rows`` series, or score ``y`` of shape ``(num_series, num_steps, num_features)``."""
        K, D, kind, m, w = self.K, self.D, self.config["emission"], self.emission.m, self.emission.w
        scale = (self.emission.s / K ** (1 / D)).expand(K, D)
        pi = pyro.sample("pi", dist.Dirichlet(m.new_ones(K)))
        P = pyro.sample("P", dist.Dirichlet(m.new_full((K, K), self.config["concentration"])).to_event(1))
        if kind in ("diag", "full"):
            mu = pyro.sample("mu", dist.Normal(m, w).to_event(2))
        if kind == "diag":
            sigma = pyro.sample("sigma", inverse_chi(scale, 3.0).to_event(2))
            emission = MarginalIndependent(dist.Normal(mu, sigma))
        elif kind == "full":
            Sigma = pyro.sample("Sigma", InverseWishart(D + 2, scale).to_event(1))
            normal = MarginalNormal if self.partly_missing else WholeRowNormal
            emission = normal(mu, scale_tril=torch.linalg.cholesky(Sigma))
        elif kind == "poisson":
            rate = pyro.sample("rate", dist.Gamma((m / w).square(), m / w.square()).to_event(2))
            emission = MarginalIndependent(dist.Poisson(rate))
        else:
            ones = m.new_ones(K, D, self.config["num_categories"])
            probability = pyro.sample("probability", dist.Dirichlet(ones).to_event(2))
            emission = MarginalIndependent(dist.Categorical(probability))
        num_steps = int(self.num_steps) if y is None else y.shape[1]
        with pyro.plate("data", num_rows if y is None else len(y)):
            return pyro.sample("y", HiddenMarkovSeries(pi.log(), P.log(), emission, num_steps), obs=y)

    @pyro_method
    def guide(self, y: Tensor | None = None, num_rows: int = 1) -> None:
        """Draw the parameters; no site depends on the series."""
        self.theta.draw_guide()

    @pyro_method
    def state_space(self, y: Tensor) -> HiddenMarkov:
        """Return the chain of regimes, and the log density of each step in each regime."""
        series = row_distribution(self.model, y)
        chain = MarkovChain(series.log_initial, series.log_transition)
        return HiddenMarkov(chain, series.log_emission(y), torch.arange(self.K, device=y.device))

    @pyro_method
    def fill(self, y: Tensor, regimes: Tensor) -> Tensor:
        """Draw the missing entries of y given the observed ones and a path of regimes, ``(num_series, num_steps)``."""
        return row_distribution(self.model, y).complete(y, regimes)

    def start(self, y: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """Set unspecified priors from the columns, and return parameters found by EM."""
        self.emission.learn(y, weights)
        options = self.emission, y, weights, self.theta.known_values, self.config["concentration"]
        return initial_regimes(lambda at: row_distribution(poutine.condition(self.model, at), y), *options)

    def observe_missing(self, x: Tensor) -> None:
        """Record whether there are partly missing steps, each of which needs its own Cholesky factor."""
        gap = x.isnan()
        self.partly_missing |= bool((gap.any(-1) & ~gap.all(-1)).any())

    def check_data(self, x: Tensor) -> None:
        """Raise ``InputError`` for data of the wrong shape or outside the emissions' support."""
        super().check_data(x)
        check_entries(self.config["emission"], x, self.config["num_categories"])
