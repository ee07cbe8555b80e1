r"""Bayesian hidden Markov model.

The story, for series y of T steps, and K regimes::

    pi            ~ Dirichlet(1, ..., 1)
    P_k           ~ Dirichlet(alpha, ..., alpha)              row k of the transition matrix
    theta_k       ~ the prior of the kind of emissions        means mu_k, standard deviations sigma_k, ...
    s_1           ~ Categorical(pi)
    s_t | s_{t-1} ~ Categorical(P[s_{t-1}])
    y_t | s_t     ~ the emissions of regime s_t               Normal(mu[s_t], diag(sigma[s_t]^2))

``_distributions/hmm_emissions.py`` and ``hmm_discrete_emissions.py`` have the kinds of emissions. By default
the priors' scales are set from the columns by ``initialise``.

The path of regimes is summed out exactly, and missing entries are integrated out. The guide of the parameters is normal
on the unconstrained scale, initialised by Laplace's approximation (``_guides/parameters.py``).

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
from pplgen.models._distributions.hmm_discrete_emissions import EMISSIONS
from pplgen.models._distributions.hmm_emissions import per_regime
from pplgen.models._guides.parameters import Parameters, plain_known
from pplgen.models._starts.hmm_start import initial_regimes
from torch import Tensor

from pplgen.distributions.hidden_markov import HiddenMarkovSeries
from pplgen.story.base import InputError, check_choice, check_count, check_per_feature, check_positive, pyro_method
from pplgen.story.dynamics import HiddenMarkov, MarkovChain
from pplgen.story.state_space import StateSpaceStory, series_lengths


class GaussianHMM(StateSpaceStory):
    """Hidden Markov model of series with K regimes, the path of regimes summed out.

    Parameters
    ----------
    num_regimes
        Number of regimes K.
    num_features
        Number of data columns D.
    emission
        ``diag`` or ``full``, normal with a diagonal or a full covariance; ``poisson``, counts; or ``categorical``,
        whole numbers below ``num_categories``.
    num_categories
        Number of categories C of each column, for categorical emissions.
    known
        Values of fixed parameters, as numbers or nested lists: ``pi``, shape ``(K,)``, ``P`` ``(K, K)``, ``mu``,
        ``sigma`` and ``rate`` ``(K, D)``, ``Sigma`` ``(K, D, D)``, ``probability`` ``(K, D, C)``.
    concentration
        Prior concentration alpha of each transition.
    prior_mean
        Prior means m of the means (or rates), in data units: a number, one per feature, or one list per regime.
        Default: the columns' means.
    prior_mean_scale
        Prior standard deviations w of the means, in data units, likewise. Default: twice the columns' standard
        deviations; for rates, the prior mean.
    prior_scale
        Prior scale s of the standard deviations, in data units: a number or one per feature. Default: .15 of the
        columns' standard deviations.
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
        K, D = check_count("num_regimes", num_regimes), check_count("num_features", num_features)
        check_choice("emission", emission, EMISSIONS)
        options = {
            "num_categories": num_categories,
            "prior_mean": per_regime("prior_mean", prior_mean, K, D, positive=emission == "poisson"),
            "prior_mean_scale": per_regime("prior_mean_scale", prior_mean_scale, K, D, positive=True),
            "prior_scale": check_per_feature("prior_scale", prior_scale, D, positive=True),
        }
        super().__init__(
            num_regimes=K,
            num_features=D,
            emission=emission,
            known=plain_known(known),
            concentration=check_positive("concentration", concentration),
            **options,
        )
        self.K = K
        self.emission = EMISSIONS[emission](K, D, options)
        self.theta = Parameters(self._priors(), self.config["known"])
        self.dims = {
            "pi": ("regime",),
            "P": ("regime", "next_regime"),
            **self.emission.dims,
            "y": ("series", "time", "feature"),
            "prior_mean": ("regime", "feature"),
            "prior_mean_scale": ("regime", "feature"),
            "prior_scale": ("feature",),
        }

    def _priors(self) -> dict[str, Any]:
        one = torch.ones_like(self.emission.m[:, 0])
        alpha = self.config["concentration"] * one.expand(self.K, self.K)
        return {"pi": dist.Dirichlet(one), "P": dist.Dirichlet(alpha).to_event(1), **self.emission.priors()}

    @pyro_method
    def model(self, y: Tensor | None = None, num_rows: int = 1) -> Tensor:
        """Generate ``num_rows`` series, or score ``y`` of shape ``(num_series, num_steps, num_features)``."""
        series = self._series(self.theta.draw(self._priors()), int(self.num_steps) if y is None else y.shape[1])
        with pyro.plate("data", num_rows if y is None else len(y)):
            return pyro.sample("y", series, obs=y)

    @pyro_method
    def guide(self, y: Tensor | None = None, num_rows: int = 1) -> None:
        """Draw the parameters; no site depends on the series."""
        self.theta.draw_guide()

    def _series(self, theta: dict[str, Tensor], num_steps: int) -> HiddenMarkovSeries:
        """Return the distribution of series, the regimes summed out."""
        all_regimes = torch.arange(self.K, device=theta["pi"].device)
        return HiddenMarkovSeries(
            theta["pi"].log(), theta["P"].log(), self.emission.distribution(theta, all_regimes), num_steps
        )

    @pyro_method
    def state_space(self, y: Tensor) -> HiddenMarkov:
        """Return the chain of regimes, and the log density of each step in each regime."""
        theta = self.theta.draw(self._priors())
        chain = MarkovChain(theta["pi"].log(), theta["P"].log())
        all_regimes = torch.arange(self.K, device=y.device)
        return HiddenMarkov(chain, self._series(theta, y.shape[1]).log_emission(y), all_regimes)

    @pyro_method
    def fill(self, y: Tensor, regimes: Tensor) -> Tensor:
        """Draw the missing entries of y given the observed ones and a path of regimes, ``(num_series, num_steps)``."""
        filled: Tensor = self.emission.distribution(self.theta.draw(self._priors()), regimes).complete(y)
        return filled

    @torch.no_grad()
    def initialise(self, y: Tensor, labels: Tensor | None = None, weights: Tensor | None = None) -> None:
        """Set unspecified priors from the columns, and the guide by EM and Laplace's approximation."""
        weights = y.new_ones(len(y)) if weights is None else weights.to(y.dtype)
        self.num_steps.fill_(y.shape[1])
        self.observe_missing(y)
        self.emission.learn_scales(y.flatten(0, 1), weights.repeat_interleave(y.shape[1]))
        known = {name: getattr(self.theta, f"known_{name}") for name in self.theta.known}
        self.theta.initialise(initial_regimes(self.emission, y, weights, known, self.config["concentration"]))

        def weighted(y: Tensor) -> None:
            series = self._series(self.theta.draw(self._priors()), y.shape[1])
            pyro.factor("y", weights @ series.log_prob(y))

        self.theta.laplace_start(weighted, y)

    def observe_missing(self, x: Tensor) -> None:
        """Record whether there are partly missing steps."""
        self.emission.observe_missing(x)

    def check_data(self, x: Tensor) -> None:
        """Raise ``InputError`` for data of the wrong shape or outside the emissions' support."""
        super().check_data(x)
        self.emission.check(x)

    def check_training_data(self, x: Tensor) -> None:
        """Raise ``InputError`` for fewer steps than regimes."""
        super().check_training_data(x)
        if (steps := int(series_lengths(x).sum())) < self.K:
            raise InputError(f"{steps} steps are too few for {self.K} regimes; give at least {self.K}")

    @property
    def constants(self) -> dict[str, Tensor]:
        """Prior constants that the emissions use: m and w, shape ``(K, D)``, and s, ``(D,)``."""
        emission = self.emission
        scales = {"prior_mean": emission.m, "prior_mean_scale": emission.w, "prior_scale": emission.s}
        return {name: value for name, value in scales.items() if name in emission.accepted}
