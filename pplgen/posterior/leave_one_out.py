"""Leave-one-out cross-validation by Pareto-smoothed importance sampling (PSIS-LOO)."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import arviz_base
import arviz_stats
import numpy as np
from arviz_stats.utils import ELPDData

from pplgen.posterior.importance_sampling import WeightedDraws

__all__ = ["leave_one_out"]


def leave_one_out(draws: WeightedDraws) -> ELPDData:
    """Estimate the expected log predictive density of each row given the others, by PSIS-LOO.

    Draws come from the guide, not the posterior, so the log weights without row i are
    ``log p(x, theta) - log q(theta) - log p(x_i | theta)``.

    Returns
    -------
    arviz_stats.utils.ELPDData
        ``elpd`` in nats, its standard error ``se``, the effective number of parameters ``p``, and for each row
        ``elpd_i`` and ``pareto_k``.

    References
    ----------
    Magnusson, Riis Andersen, Jonasson and Vehtari (2019), Bayesian leave-one-out cross-validation for large data.
    """
    number = draws.log_likelihood.shape[1]
    tree = arviz_base.from_dict(
        {"posterior": {"theta": np.zeros((1, len(draws.log_ratio)))}, "log_likelihood": {"x": _array(draws)}},
        dims={"x": ["row"]},
        coords={"row": range(number)},
    )
    ratio = draws.log_ratio.double().cpu().numpy()
    with _ignore_arviz_warnings():
        return arviz_stats.loo_approximate_posterior(
            tree, log_p=ratio - ratio.max(), log_q=np.zeros_like(ratio), pointwise=True
        )


def _array(draws: WeightedDraws) -> np.ndarray[Any, Any]:
    """Return the log likelihood as an array with a chain axis."""
    return draws.log_likelihood.double().cpu().numpy()[None]


@contextlib.contextmanager
def _ignore_arviz_warnings() -> Iterator[None]:
    """Silence ArviZ's warnings about the rows' Pareto k, which the result reports."""
    with warnings.catch_warnings():
        for message in ("Estimated shape parameter", "The point-wise LOO is the same"):
            warnings.filterwarnings("ignore", message=message)
        yield
