"""What was observed, column by column, beside replicates of it; and what each row weighs when it is left out."""

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

__all__ = ["WITHOUT_ROWS", "Column", "LeftOut", "left_out", "observed_columns"]

REPLICATES, REPLICATED_ROWS = 100, 2000
"""Replicates that are drawn where a tree has none, and rows of each at most."""
MOST_LEFT_OUT = 2000
"""Rows that are left out in turn at most."""
FEWEST_DRAWS = 20
"""Draws that have a tail to fit, at least."""
WITHOUT_ROWS = "The rows are not at hand: give the data to pplgen.load, or to the command."
"""Why something is not shown."""


class Column(NamedTuple):
    """One observed column."""

    name: str
    observed: np.ndarray
    """NaN where missing, shape ``(num_rows,)``; steps of series after one another."""
    replicated: np.ndarray
    """Draws of the posterior predictive distribution, shape ``(num_draws, num_rows)``, or of other rows."""

    @property
    def distance(self) -> float:
        """Largest distance of the two distribution functions (Kolmogorov and Smirnov)."""
        seen, drawn = np.sort(self.observed[np.isfinite(self.observed)]), np.sort(self.replicated, axis=None)
        below = np.searchsorted(drawn, seen, side="right") / len(drawn)
        return float(np.abs(below - np.searchsorted(seen, seen, side="right") / len(seen)).max()) if len(seen) else 0.0


class LeftOut(NamedTuple):
    """Weights that turn a guide's draws into draws of the posterior without a row."""

    num_rows: int
    """How many there are."""
    rows: np.ndarray
    """Which of them were left out in turn, shape ``(num_left_out,)``."""
    weights: np.ndarray
    """Summing to one over the draws, shape ``(num_draws, num_left_out)``."""

    def fits(self, column: Column) -> bool:
        """Tell whether a column and its replicates have a value for each row, two of them seen."""
        shape = (len(self.weights), self.num_rows)
        return column.replicated.shape == shape and np.isfinite(column.observed[self.rows]).sum() > 1

    def transforms(self, column: Column, generator: np.random.Generator) -> np.ndarray:
        """Return the probability, given the other rows, of less than was seen; ties are broken at random.

        Shape ``(num_left_out,)`` less the rows where nothing was seen.
        """
        seen, drawn = column.observed[self.rows], column.replicated[:, self.rows]
        below, same = (((compare(drawn, seen)) * self.weights).sum(axis=0) for compare in (np.less, np.equal))
        return (below + generator.uniform(size=len(seen)) * same)[np.isfinite(seen)]


def observed_columns(fit: FittedPair, tree: xr.DataTree) -> list[Column]:
    """Lay out what was observed, and replicates of it, by columns, those without any value left out.

    The rows of a latent-variable story are held against new ones, for replicates of each row from a code of its own
    would hide what the prior of codes cannot produce. Where a tree lacks replicates for their size, some are drawn.

    Raises
    ------
    InputError
        Where there are no rows, or no replicates and no way to draw any.
    """
    observed = group_of(tree, "observed_data")
    if not len(observed):
        raise InputError(WITHOUT_ROWS)
    columns = []
    for site, values in observed.items():
        wide = values.values.reshape(-1, 1) if values.ndim < 2 else values.values.reshape(-1, values.shape[-1])
        replicated = _replicates(fit, tree, str(site), *wide.shape)
        axis = values.dims[-1] if values.ndim > 1 else None
        labels = [None] if axis is None else values[axis].values if axis in values.coords else range(wide.shape[1])
        own = fit.story is not None and len(observed) == 1
        for j, label in enumerate(labels):
            name = str(site) if label is None else str(label) if own else f"{site}[{label}]"
            columns.append(Column(name, wide[:, j].astype(float), replicated[..., j]))
    return [column for column in columns if np.isfinite(column.observed).any()]


def left_out(fit: FittedPair, tree: xr.DataTree) -> LeftOut:
    """Leave rows out one at a time, by weighing the draws of a guide that is not the posterior.

    The ratios are ``p(x, theta) / q(theta) / p(x_i | theta)``, Pareto-smoothed. Of more than ``MOST_LEFT_OUT`` rows so
    many are left out, evenly taken.

    Raises
    ------
    InputError
        Where rows cannot be left out one at a time.

    References
    ----------
    Magnusson et al. (2019), Bayesian leave-one-out cross-validation for large data.
    """
    densities = list(group_of(tree, "log_likelihood").values())
    if not densities:
        raise InputError("The draws hold no densities of single rows.")
    if fit.pair.structure.row_latent:
        raise InputError("Rows have latents of their own, which would have to be integrated out first.")
    if "row_weights" in group_of(tree, "constant_data"):
        raise InputError("The rows are weighted, and cannot be left out one at a time.")
    density = densities[0].values.reshape(-1, *densities[0].shape[2:])
    num_rows = density.shape[-1]
    if num_rows == 1:
        one = "series" if fit.story is not None and fit.story.takes_series else "row"
        raise InputError(f"The only {one} there is cannot be left out.")
    rows = np.arange(0, num_rows, math.ceil(num_rows / MOST_LEFT_OUT))
    if len(density) < FEWEST_DRAWS:
        raise InputError(f"{len(density)} draws are too few to be weighed.")
    stats = group_of(tree, "sample_stats")
    # a sampler's draws, which have no log_q, are of the posterior already
    ratio = (stats["lp"] - stats["log_q"]).values.reshape(-1) if "log_q" in stats else np.zeros(len(density))
    weights, _ = smoothed_weights(torch.as_tensor(ratio[:, None] - density[:, rows]))
    return LeftOut(num_rows, rows, weights.numpy())


def _replicates(fit: FittedPair, tree: xr.DataTree, site: str, num_rows: int, width: int) -> np.ndarray:
    """Return replicates of an observed site, shape ``(num_draws, rows, width)``."""
    kept = group_of(tree, "posterior_predictive")
    if site in kept and not isinstance(fit.story, LatentStory):
        return kept[site].values.reshape(-1, num_rows, width)
    if fit.story is None or fit.story.takes_series:
        raise InputError("The draws hold no replicates of the data.")
    rows = min(num_rows, REPLICATED_ROWS)
    draws = max(10, min(REPLICATES, MAX_SITE_SIZE // (rows * width)))
    return fit.sample(draws * rows).reshape(draws, rows, width).numpy()
