"""Stories as scikit-learn estimators, for pipelines and for those who come from ``sklearn.mixture``."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from pplgen.fitting.compare import bic
from pplgen.fitting.fit import fit
from pplgen.models import GaussianMixture as Story

__all__ = ["GaussianMixture"]

DRAWS = 100
"""Posterior draws that predictions average over."""


class GaussianMixture(DensityMixin, BaseEstimator):
    """Bayesian Gaussian mixture with scikit-learn's interface; ``pplgen.models.GaussianMixture`` is the story.

    Predictions average over the posterior, so ``score_samples`` is the log posterior predictive density of each row in
    nats. NaN in the rows is a missing value, integrated out.

    Parameters
    ----------
    n_components
        Number of components.
    covariance_type
        ``"full"``, ``"tied"``, ``"diag"`` or ``"spherical"``.
    weight_concentration_prior
        Prior concentration of each weight; below one, surplus components empty out.
    mean_precision_prior
        Rows that the prior on a location is worth.
    n_init
        Restarts, fitted as one program; the one with the best evidence bound is kept.
    max_iter
        Steps of each restart at most.
    random_state
        Seed, generator or ``None``.

    Attributes
    ----------
    fit_ : pplgen.Fit
        The fit, for everything that scikit-learn has no name for.
    weights_, means_, covariances_ : numpy.ndarray
        Posterior means, shapes ``(K,)``, ``(K, D)`` and as scikit-learn's for the type.
    lower_bound_ : float
        The final bound in nats per row.
    n_iter_ : int
        Steps of the restart that was kept.
    converged_ : bool
        Whether its bound had stopped improving.
    """

    def __init__(
        self,
        n_components: int = 1,
        *,
        covariance_type: str = "full",
        weight_concentration_prior: float = 1.0,
        mean_precision_prior: float = 0.01,
        n_init: int = 1,
        max_iter: int = 10_000,
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.weight_concentration_prior = weight_concentration_prior
        self.mean_precision_prior = mean_precision_prior
        self.n_init = n_init
        self.max_iter = max_iter
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> GaussianMixture:
        """Fit the posterior to rows ``X``, shape ``(num_rows, num_features)``; ``y`` is ignored."""
        rows = self._rows(X, reset=True)
        story = Story(
            self.n_components,
            rows.shape[1],
            covariance=self.covariance_type,
            concentration=self.weight_concentration_prior,
            mean_precision=self.mean_precision_prior,
        )
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        self.fit_ = fit(story, rows, seed=seed, restarts=self.n_init, steps=self.max_iter, progress=False)
        posterior = self.fit_.to_datatree(DRAWS, groups=["posterior"])["posterior"]
        drawn = {str(name): values.values[0] for name, values in posterior.data_vars.items()}
        self.weights_, self.means_ = drawn["weights"].mean(axis=0), drawn["mu"].mean(axis=0)
        spread = drawn["Sigma"] if "Sigma" in drawn else drawn["sigma"] ** 2
        self.covariances_ = spread.mean(axis=0)
        self.lower_bound_ = self.fit_.elbo / len(rows)
        self.n_iter_ = len(self.fit_.best.history)
        self.converged_ = self.fit_.stop.name == "CONVERGED"
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Posterior probability of each component for each row, shape ``(num_rows, K)``."""
        rows = self._checked(X)
        probabilities: np.ndarray = self.fit_.latents(rows, draws=DRAWS)["z"].values
        return probabilities / probabilities.sum(axis=1, keepdims=True)

    def predict(self, X: Any) -> np.ndarray:
        """Likeliest component of each row, shape ``(num_rows,)``."""
        return self.predict_proba(X).argmax(axis=1)

    def fit_predict(self, X: Any, y: Any = None) -> np.ndarray:
        """Fit, and return the likeliest component of each row."""
        return self.fit(X).predict(X)

    def score_samples(self, X: Any) -> np.ndarray:
        """Log posterior predictive density of each row in nats, shape ``(num_rows,)``."""
        rows = self._checked(X)
        return self.fit_.log_likelihood(rows, draws=DRAWS).cpu().double().numpy()

    def score(self, X: Any, y: Any = None) -> float:
        """Mean log posterior predictive density of the rows in nats."""
        return float(self.score_samples(X).mean())

    def sample(self, n_samples: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Draw rows from the posterior predictive distribution, and the likeliest component of each."""
        check_is_fitted(self)
        rows = self.fit_.sample(n_samples).double().numpy()
        return rows, self.predict(rows)

    def bic(self, X: Any = None) -> float:
        """Schwarz's criterion of the training rows at the posterior mean; smaller is better. ``X`` is ignored."""
        check_is_fitted(self)
        return bic(self.fit_)

    def __sklearn_tags__(self) -> Any:
        """Say that missing values are welcome."""
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def _checked(self, X: Any) -> torch.Tensor:
        check_is_fitted(self)
        return self._rows(X, reset=False)

    def _rows(self, X: Any, *, reset: bool) -> torch.Tensor:
        """Validate rows as scikit-learn does; double precision, as there."""
        minimum = {"ensure_min_samples": 2} if reset else {}
        rows = validate_data(self, X, reset=reset, dtype=np.float64, ensure_all_finite="allow-nan", **minimum)
        return torch.from_numpy(np.array(rows))
