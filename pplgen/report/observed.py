"""Observed columns with their replicates, and leave-one-out importance weights of the draws."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
import xarray as xr

from pplgen.errors import InputError
from pplgen.posterior.datatree import MAX_SITE_SIZE, group_of
from pplgen.posterior.fitted_pair import FittedPair
from pplgen.posterior.psis import smoothed_weights
from pplgen.story.latent import LatentStory

__all__ = ["NO_ROWS", "Column", "LeaveOneOut", "leave_one_out", "observed_columns"]

REPLICATES, MAX_REPLICATED_ROWS = 100, 2000
"""Number of replicates drawn if the tree has none, and maximum number of rows of each."""
MAX_LEFT_OUT = 2000
"""Maximum number of rows left out in turn."""
MIN_DRAWS = 20
"""Minimum number of draws for a Pareto fit of the tail."""
NO_ROWS = "The training data are not available: pass them to pplgen.load, or to the command."
"""Reason why a figure or a check is missing."""


class Column(NamedTuple):
    """One observed column."""

    name: str
    observed: np.ndarray
    """Values, NaN where missing, shape ``(num_rows,)``; series are concatenated."""
    replicated: np.ndarray
    """Posterior predictive draws, shape ``(num_draws, num_rows)``; for new rows, their number may differ."""

    @property
    def distance(self) -> float:
        """Kolmogorov-Smirnov distance between observed and replicated values."""
        seen, replicated = np.sort(self.observed[np.isfinite(self.observed)]), np.sort(self.replicated, axis=None)
        cdf = np.searchsorted(replicated, seen, side="right") / len(replicated)
        return float(np.abs(cdf - np.searchsorted(seen, seen, side="right") / len(seen)).max()) if len(seen) else 0.0


class LeaveOneOut(NamedTuple):
    """Importance weights that turn a guide's draws into draws from the posterior without a row."""

    num_rows: int
    """Number of rows."""
    rows: np.ndarray
    """Indices of the rows left out in turn, shape ``(num_left_out,)``."""
    weights: np.ndarray
    """Normalised over the draws, shape ``(num_draws, num_left_out)``."""

    def applies_to(self, column: Column) -> bool:
        """Return whether a column has a replicate of each row, and at least two observed values."""
        shape = (len(self.weights), self.num_rows)
        return column.replicated.shape == shape and np.isfinite(column.observed[self.rows]).sum() > 1

    def loo_pit(self, column: Column, generator: np.random.Generator) -> np.ndarray:
        """Return LOO-PIT values, P(y_rep <= y_i given the other rows); ties are randomised.

        Shape ``(num_left_out,)``, without rows whose value is missing.
        """
        seen, replicated = column.observed[self.rows], column.replicated[:, self.rows]
        below, same = (((compare(replicated, seen)) * self.weights).sum(axis=0) for compare in (np.less, np.equal))
        return (below + generator.uniform(size=len(seen)) * same)[np.isfinite(seen)]


def observed_columns(fit: FittedPair, tree: xr.DataTree) -> list[Column]:
    """Return observed columns with their replicates, without columns that have no value.

    The rows of a latent-variable story are compared with new rows, because replicates from each row's own latent
    variables would hide a misfit of the prior. If a tree lacks replicates because of their size, some are drawn.

    Raises
    ------
    InputError
        If there are no rows, or no replicates and no way to draw any.
    """
    observed = group_of(tree, "observed_data")
    if not len(observed):
        raise InputError(NO_ROWS)
    columns = []
    for site, values in observed.items():
        wide = values.values.reshape(-1, 1) if values.ndim < 2 else values.values.reshape(-1, values.shape[-1])
        replicated = _replicates(fit, tree, str(site), *wide.shape)
        axis = values.dims[-1] if values.ndim > 1 else None
        labels = [None] if axis is None else values[axis].values if axis in values.coords else range(wide.shape[1])
        single_site = fit.story is not None and len(observed) == 1
        for j, label in enumerate(labels):
            name = str(site) if label is None else str(label) if single_site else f"{site}[{label}]"
            columns.append(Column(name, wide[:, j].astype(float), replicated[..., j]))
    return [column for column in columns if np.isfinite(column.observed).any()]


def leave_one_out(fit: FittedPair, tree: xr.DataTree) -> LeaveOneOut:
    """Compute leave-one-out weights of the draws (PSIS-LOO), corrected for a guide that is not the posterior.

    The ratios ``p(x, theta) / q(theta) / p(x_i | theta)`` are Pareto-smoothed. At most ``MAX_LEFT_OUT`` evenly spaced
    rows are left out.

    Raises
    ------
    InputError
        If rows cannot be left out one at a time.

    References
    ----------
    Magnusson et al. (2019), Bayesian leave-one-out cross-validation for large data.
    """
    densities = [each for each in group_of(tree, "log_likelihood").values() if each.dims[2:] == ("row",)]
    if not densities:
        raise InputError("The draws have no log density of single rows.")
    if fit.pair.structure.row_latent:
        raise InputError("Each row has its own latent variables, which must be integrated out first.")
    if "row_weights" in group_of(tree, "constant_data"):
        raise InputError("Weighted rows cannot be left out one at a time.")
    if len(densities) > 1 and fit.pair.structure.enumerates:
        raise InputError("Several observed sites of a row share discrete latents.")
    density = np.sum([each.values for each in densities], axis=0).reshape(-1, *densities[0].shape[2:])
    num_rows = density.shape[-1]
    if num_rows == 1:
        one = "series" if fit.story is not None and fit.story.takes_series else "row"
        raise InputError(f"The data have a single {one}, which cannot be left out.")
    rows = np.arange(0, num_rows, math.ceil(num_rows / MAX_LEFT_OUT))
    if len(density) < MIN_DRAWS:
        raise InputError(f"{len(density)} draws are too few to be importance-weighted; expected {MIN_DRAWS} or more.")
    stats = group_of(tree, "sample_stats")
    # draws of a sampler have no log_q and are already from the posterior
    ratio = (stats["lp"] - stats["log_q"]).values.reshape(-1) if "log_q" in stats else np.zeros(len(density))
    weights, _ = smoothed_weights(torch.as_tensor(ratio[:, None] - density[:, rows]))
    return LeaveOneOut(num_rows, rows, weights.numpy())


def _replicates(fit: FittedPair, tree: xr.DataTree, site: str, num_rows: int, width: int) -> np.ndarray:
    """Return posterior predictive replicates of an observed site, shape ``(num_draws, rows, width)``."""
    saved = group_of(tree, "posterior_predictive")
    if site in saved and not isinstance(fit.story, LatentStory):
        return saved[site].values.reshape(-1, num_rows, width)
    if fit.story is None or fit.story.takes_series:
        raise InputError("The draws have no posterior predictive replicates.")
    rows = min(num_rows, MAX_REPLICATED_ROWS)
    draws = max(10, min(REPLICATES, MAX_SITE_SIZE // (rows * width)))
    return fit.sample(draws * rows).reshape(draws, rows, width).numpy()
