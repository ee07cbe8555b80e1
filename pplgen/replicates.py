"""What was observed, column by column, beside replicates of it; and what each row weighs when it is left out."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pyro
import torch
import xarray as xr

from pplgen.errors import InputError
from pplgen.fitted import Fit
from pplgen.isolation import seeded
from pplgen.latent import LatentStory
from pplgen.mixtures import smoothed_weights
from pplgen.pair import rows_of
from pplgen.posterior import LARGEST
from pplgen.scores import latent_densities

__all__ = ["WITHOUT_ROWS", "Column", "code_ks", "left_out", "observed_columns"]

REPLICATES, REPLICATED_ROWS = 100, 2000
"""Replicates that are drawn where a tree has none, and rows of each at most."""
ROWS, CODES = 1000, 200
"""Rows that are weighed at most, evenly taken, and codes of each."""
MOST_LEFT_OUT = 5000
"""Rows that are left out in turn at most."""
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

    def transforms(self, weights: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Return the probability that draws of some weights lie below what was seen, ties broken at random.

        ``weights`` have the shape of ``replicated``, of as many rows as were observed; missing ones are left out.
        """
        seen = np.isfinite(self.observed)
        below = ((self.replicated < self.observed) * weights).sum(axis=0)[seen]
        same = ((self.replicated == self.observed) * weights).sum(axis=0)[seen]
        return below + generator.uniform(size=len(below)) * same


def observed_columns(fit: Fit, tree: xr.DataTree) -> list[Column]:
    """Lay out what was observed, and replicates of it, by columns.

    The rows of a latent-variable story are held against new ones, for each row's replicates from a code of its own would
    hide what the prior of codes cannot produce. Where a tree's replicates are left out for their size, some are drawn.

    Raises
    ------
    InputError
        Where there are no rows, or no replicates and no way to draw any.
    """
    observed = tree["observed_data"].data_vars if "observed_data" in tree else {}
    if not observed:
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
    return columns


def left_out(fit: Fit, tree: xr.DataTree) -> tuple[np.ndarray, np.ndarray]:
    """Weigh draws so that they become draws of the posterior without a row, from a guide that is not the posterior.

    The ratios are ``p(x, theta) / q(theta) / p(x_i | theta)``, Pareto-smoothed.

    Returns
    -------
    weights : numpy.ndarray
        Summing to one over the draws, shape ``(num_draws, num_rows)``.
    pareto_k : numpy.ndarray
        Shape ``(num_rows,)``; above .7 a row's weights are not to be trusted.

    Raises
    ------
    InputError
        Where rows cannot be left out one at a time.

    References
    ----------
    Magnusson et al. (2019), Bayesian leave-one-out cross-validation for large data.
    """
    if "log_likelihood" not in tree:
        raise InputError("The draws hold no densities of single rows.")
    if fit.pair.structure.row_latent:
        raise InputError("Rows have latents of their own, which would have to be integrated out before one is left out.")
    if fit.pair.weights is not None or "row_weights" in tree.get("constant_data", {}):
        raise InputError("The rows are weighted, and cannot be left out one at a time.")
    (density,) = tree["log_likelihood"].data_vars.values()
    if density.shape[-1] == 1:
        raise InputError("One row cannot be left out of the only one there is.")
    if density.shape[-1] > MOST_LEFT_OUT:
        raise InputError(f"{density.shape[-1]:,} rows are too many to be left out one at a time.")
    ratio = (tree["sample_stats"]["lp"] - tree["sample_stats"]["log_q"]).values[0]
    weights, k = smoothed_weights(torch.as_tensor(ratio[:, None] - density.values[0]))
    return weights.numpy(), k.numpy()


def code_ks(fit: Fit) -> np.ndarray:
    """Return Pareto k of the importance weights of each row's code, of at most ``ROWS`` rows."""
    if not fit.has_rows:
        raise InputError(WITHOUT_ROWS)
    assert isinstance(fit.story, LatentStory), "only they have codes"
    step = max(1, math.ceil(fit.pair.num_rows / ROWS))
    rows = tuple(rows_of(value, slice(None, None, step), fit.pair.num_rows) for value in fit.pair.data)
    with seeded(fit.seed), fit.pair.isolated(), torch.no_grad(), pyro.validation_enabled(False):
        return torch.cat([smoothed_weights(weights)[1] for weights in latent_densities(fit.pair, rows, CODES)]).numpy()


def _replicates(fit: Fit, tree: xr.DataTree, site: str, num_rows: int, width: int) -> np.ndarray:
    """Return replicates of an observed site, shape ``(num_draws, rows, width)``."""
    kept = "posterior_predictive" in tree and site in tree["posterior_predictive"]
    if kept and not isinstance(fit.story, LatentStory):
        return tree["posterior_predictive"][site].values.reshape(-1, num_rows, width)
    if fit.story is None or fit.story.takes_series:
        raise InputError("The draws hold no replicates of the data.")
    rows = min(num_rows, REPLICATED_ROWS)
    draws = max(10, min(REPLICATES, LARGEST // (rows * width)))
    return fit.sample(draws * rows).reshape(draws, rows, width).numpy()
