"""Stories as scikit-learn estimators, for pipelines and for users of ``sklearn.mixture``."""

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
"""Number of posterior draws over which predictions are averaged."""


class GaussianMixture(DensityMixin, BaseEstimator):
    """Bayesian Gaussian mixture, ``pplgen.models.GaussianMixture``, with scikit-learn's interface.

    Predictions are averaged over the posterior: ``score_samples`` is the log posterior predictive density of each row
    in nats. NaN is a missing value, integrated out.

    Parameters
    ----------
    n_components
        Number of components.
    covariance_type
        ``"full"``, ``"tied"``, ``"diag"`` or ``"spherical"``.
    weight_concentration_prior
        Dirichlet concentration of the weights; below one, surplus components become empty.
    mean_precision_prior
        Prior precision of the component means, in pseudo-observations.
    n_init
        Number of restarts, fitted as one program; the one with the best ELBO is kept.
    max_iter
        Maximum number of steps per restart.
    random_state
        Seed, generator or ``None``.

    Attributes
    ----------
    fit_ : pplgen.Fit
        The fit, for everything outside scikit-learn's interface.
    weights_, means_, covariances_ : numpy.ndarray
        Posterior means, shapes ``(K,)``, ``(K, D)`` and scikit-learn's for the covariance type.
    lower_bound_ : float
        The final ELBO in nats per row.
    n_iter_ : int
        Number of steps of the best restart.
    converged_ : bool
        Whether the ELBO of the best restart converged.
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
        draws = {str(name): values.values[0] for name, values in posterior.data_vars.items()}
        self.weights_, self.means_ = draws["weights"].mean(axis=0), draws["mu"].mean(axis=0)
        covariances = draws["Sigma"] if "Sigma" in draws else draws["sigma"] ** 2
        self.covariances_ = covariances.mean(axis=0)
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
        """Most probable component of each row, shape ``(num_rows,)``."""
        return self.predict_proba(X).argmax(axis=1)

    def fit_predict(self, X: Any, y: Any = None) -> np.ndarray:
        """Fit, and return the most probable component of each row."""
        return self.fit(X).predict(X)

    def score_samples(self, X: Any) -> np.ndarray:
        """Log posterior predictive density of each row in nats, shape ``(num_rows,)``."""
        rows = self._checked(X)
        return self.fit_.log_likelihood(rows, draws=DRAWS).cpu().double().numpy()

    def score(self, X: Any, y: Any = None) -> float:
        """Mean log posterior predictive density of the rows in nats."""
        return float(self.score_samples(X).mean())

    def sample(self, n_samples: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Draw rows from the posterior predictive distribution, and return the most probable component of each."""
        check_is_fitted(self)
        rows = self.fit_.sample(n_samples).double().numpy()
        return rows, self.predict(rows)

    def bic(self, X: Any = None) -> float:
        """Bayesian information criterion of the training rows at the posterior mean; ``X`` is ignored."""
        check_is_fitted(self)
        return bic(self.fit_)

    def __sklearn_tags__(self) -> Any:
        """Declare that missing values are supported."""
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def _checked(self, X: Any) -> torch.Tensor:
        check_is_fitted(self)
        return self._rows(X, reset=False)

    def _rows(self, X: Any, *, reset: bool) -> torch.Tensor:
        """Validate rows as scikit-learn does, in double precision."""
        minimum = {"ensure_min_samples": 2} if reset else {}
        rows = validate_data(self, X, reset=reset, dtype=np.float64, ensure_all_finite="allow-nan", **minimum)
        return torch.from_numpy(np.array(rows))
