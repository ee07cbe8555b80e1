"""Figures of any posterior: predictive checks, prior and posterior, pairs, LOO-PIT, Pareto k."""

from __future__ import annotations

from collections.abc import Iterable
from textwrap import fill
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from arviz_stats.base import array_stats
from arviz_stats.ecdf_utils import compute_ecdf, ecdf_pit
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

from pplgen.errors import InputError
from pplgen.plots.literal_text import literal
from pplgen.plots.palette import COLOURS
from pplgen.posterior.datatree import group_of
from pplgen.posterior.psis import GOOD_K

__all__ = [
    "Scalar",
    "distinct",
    "most_correlated",
    "plot_fan",
    "plot_loo_pit",
    "plot_pairs",
    "plot_pareto_k",
    "plot_predictive",
    "plot_prior_posterior",
    "scalars",
]

BAND = (0.05, 0.95)
"""Quantiles that bound the band of replicates."""
FAN = {0.9: 0.25, 0.5: 0.5}
"""Probability of each band of a fan chart, and its opacity."""
MAX_VALUES, MAX_BINS = 30, 40
"""Maximum range of integers drawn one by one, and maximum number of bins of other values."""
MAX_PRIOR_RANGE = 12
"""Maximum range of the prior shown, in posterior standard deviations to either side."""
SIMULTANEOUS, SIMULATIONS = 0.95, 500
"""Probability that an ECDF of uniform numbers stays inside its band, and ECDFs simulated to find the band."""
IDENTICAL = 0.999
"""Absolute correlation above which two scalars are redundant, such as the two weights of a mixture."""
ROUNDING = 1e-6
"""Relative rounding error of single precision: a smaller standard deviation counts as zero."""
LABEL_WIDTH = 16
"""Characters per line of an axis label in a pair plot."""
LEGEND: dict[str, Any] = {"fontsize": "small", "frameon": False}


class Scalar(NamedTuple):
    """One element of a site."""

    site: str
    position: tuple[int, ...]
    """Index along the site's own axes."""
    label: str
    """Name as in the table of parameters, ``mu[0, eruptions]``."""

    def draws(self, tree: xr.DataTree, group: str = "posterior") -> np.ndarray:
        """Return the draws, shape ``(num_draws,)``."""
        values: Any = group_of(tree, group)[self.site].values
        return values.reshape(-1, *values.shape[2:])[:, *self.position]


def scalars(tree: xr.DataTree, sites: Iterable[str]) -> list[Scalar]:
    """List the elements of some sites of the posterior group, site after site."""
    elements = []
    for site in sites:
        values = group_of(tree, "posterior")[site]
        axes = [values[dim].values if dim in values.coords else range(values.sizes[dim]) for dim in values.dims[2:]]
        for index in np.ndindex(values.shape[2:]):
            label = ", ".join(str(axis[i]) for axis, i in zip(axes, index, strict=True))
            elements.append(Scalar(site, index, f"{site}[{label}]" if index else site))
    return elements


def distinct(tree: xr.DataTree, chosen: list[Scalar]) -> list[Scalar]:
    """Leave out constant scalars, and those perfectly correlated with an earlier one, such as a second weight."""
    draws = np.stack([scalar.draws(tree) for scalar in chosen]).astype(float) if chosen else np.empty((0, 2))
    sd = draws.std(axis=1)
    varied = sd > ROUNDING * np.abs(draws).max(axis=1)
    draws = (draws - draws.mean(axis=1, keepdims=True)) / np.where(varied, sd, 1.0)[:, None]
    redundant = np.abs(draws @ draws.T) / draws.shape[1] > IDENTICAL
    return [scalar for i, scalar in enumerate(chosen) if varied[i] and not redundant[i, :i].any()]


def most_correlated(tree: xr.DataTree, chosen: list[Scalar], num: int) -> list[Scalar]:
    """Return ``num`` scalars, those with the largest absolute correlations first chosen, in their given order."""
    correlation = np.abs(np.corrcoef(np.stack([scalar.draws(tree) for scalar in chosen]).astype(float)))
    np.fill_diagonal(correlation, -1.0)
    selected: list[int] = []
    for flat in np.argsort(-correlation, axis=None, kind="stable"):
        selected += [int(i) for i in np.unravel_index(flat, correlation.shape) if i not in selected]
        if len(selected) >= num:
            break
    return [chosen[i] for i in sorted(selected[:num])]


def plot_predictive(axes: Axes, observed: np.ndarray, replicated: np.ndarray, name: str = "x") -> None:
    """Plot the distribution of one column with the 90 % band of its replicates in each bin.

    Parameters
    ----------
    axes
        Where to draw.
    observed
        The column, NaN where missing, shape ``(num_rows,)``. Integers in a small range are drawn one by one.
    replicated
        Draws of the posterior predictive distribution, shape ``(num_draws, num_rows)``; the number of
        rows may differ.
    name
        Name of the column.
    """
    finite = observed[np.isfinite(observed)]
    if not len(finite):
        raise InputError(f"column {name!r}: there is no value to draw")
    integers = bool((finite == np.round(finite)).all()) and np.ptp(finite) < MAX_VALUES
    if integers:
        low, high = min(finite.min(), np.quantile(replicated, 0.01)), max(finite.max(), np.quantile(replicated, 0.99))
        edges = np.arange(np.floor(low), min(np.ceil(high), low + 2 * MAX_VALUES) + 2) - 0.5
    else:
        low, high = np.quantile(replicated, [0.005, 0.995])
        ends = (min(finite.min(), low), max(finite.max(), high))
        edges = np.histogram_bin_edges(finite, "auto", range=ends)
        if not 8 <= len(edges) - 1 <= MAX_BINS:
            edges = np.linspace(*ends, np.clip(len(edges), 8, MAX_BINS) + 1)
    width = np.diff(edges)
    densities = np.stack([np.histogram(row, edges)[0] / (len(row) * width) for row in replicated])
    lower, upper = np.quantile(densities, BAND, axis=0)
    axes.stairs(upper, edges, baseline=lower, fill=True, color=(COLOURS[0], 0.35), label="replicates, 90 %")
    axes.stairs(np.median(densities, axis=0), edges, baseline=None, color=COLOURS[0], lw=1)
    axes.stairs(np.histogram(finite, edges)[0] / (len(finite) * width), edges, color="0.15", lw=1.4, label="data")
    axes.set(xlabel=literal(name), ylabel="fraction of rows" if integers else "density")


def plot_fan(axes: Axes, observed: np.ndarray, replicated: np.ndarray, name: str = "y") -> None:
    """Plot one series over time with the median and the 50 and 90 % bands of its replicates.

    Parameters
    ----------
    axes
        Where to draw.
    observed
        The series, NaN where missing, shape ``(num_steps,)``.
    replicated
        Draws of whole series from the posterior predictive distribution, shape ``(num_draws, num_steps)``.
    name
        Label of the y axis.
    """
    steps = np.arange(len(observed))
    for mass, opacity in FAN.items():
        lower, upper = np.quantile(replicated, [(1 - mass) / 2, (1 + mass) / 2], axis=0)
        face = 1 - opacity * (1 - np.array(to_rgb(COLOURS[0])))
        axes.fill_between(steps, lower, upper, color=face, lw=0, label=f"replicates, {100 * mass:.0f} %")
    axes.plot(steps, np.median(replicated, axis=0), color=COLOURS[0], lw=1.2)
    axes.plot(steps, observed, color="0.15", lw=0.6, marker=".", ms=3, label="data")
    axes.set(xlabel="step", ylabel=literal(name))


def plot_prior_posterior(axes: Axes, tree: xr.DataTree, scalar: Scalar) -> None:
    """Plot prior and posterior density of one scalar; a wide prior is cut to the range around the posterior."""
    prior, posterior = scalar.draws(tree, "prior"), scalar.draws(tree)
    centre, sd = np.median(posterior), posterior.std()
    ends = [
        min(posterior.min(), max(np.quantile(prior, 0.05), centre - MAX_PRIOR_RANGE * sd)),
        max(posterior.max(), min(np.quantile(prior, 0.95), centre + MAX_PRIOR_RANGE * sd)),
    ]
    room = 0.05 * (ends[1] - ends[0]) or 1.0
    ends = [ends[0] - room, ends[1] + room]
    for draws, colour, name in ((prior, "0.45", "prior"), (posterior, COLOURS[0], "posterior")):
        # a kernel estimate of a heavy-tailed prior needs a bounded range; the fraction inside scales the density
        inside = draws[(draws >= ends[0]) & (draws <= ends[1])]
        if np.ptp(inside) == 0 if len(inside) > 1 else True:
            axes.axvline(float(inside[0]) if len(inside) else np.nan, color=colour, label=name)
            continue
        grid, density, _ = array_stats.kde(inside, grid_len=128)
        density = density * len(inside) / len(draws)
        axes.fill_between(grid, 0, density, color=colour, alpha=0.3, lw=0)
        axes.plot(grid, density, color=colour, lw=1.4, label=name)
    axes.set(xlabel=literal(scalar.label), xlim=ends, yticks=[])
    axes.set_ylim(bottom=0)


def plot_pairs(grid: np.ndarray, tree: xr.DataTree, chosen: list[Scalar]) -> None:
    """Plot scalars in pairs.

    Parameters
    ----------
    grid
        Axes, shape ``(num, num)``; those above the diagonal are removed.
    tree
        A fit's draws.
    chosen
        ``num`` scalars, such as from ``most_correlated``.
    """
    draws = [scalar.draws(tree) for scalar in chosen]
    for (i, j), axes in np.ndenumerate(grid):
        if j > i:
            axes.remove()
            continue
        if i == j:
            axes.hist(draws[i], bins=25, color=COLOURS[0], alpha=0.6)
            axes.set_yticks([])
        else:
            axes.scatter(draws[j], draws[i], s=4, color=COLOURS[0], alpha=0.25, linewidths=0, rasterized=True)
            with np.errstate(invalid="ignore"):
                correlation = np.corrcoef(draws[j], draws[i])[0, 1]
            axes.set_title(f"r = {correlation:.2f}", fontsize="small", pad=2)
        axes.locator_params(nbins=3)
        axes.tick_params(labelsize="x-small", labelbottom=i == len(chosen) - 1, labelleft=j == 0 and i > 0)
        if i == len(chosen) - 1:
            axes.set_xlabel(literal(fill(chosen[j].label, LABEL_WIDTH)), fontsize="x-small")
        if j == 0:
            axes.set_ylabel(literal(fill(chosen[i].label, LABEL_WIDTH)), fontsize="x-small")


def plot_loo_pit(axes: Axes, values: np.ndarray, name: str = "x", *, colour: str = COLOURS[0]) -> bool:
    """Plot the ECDF of LOO-PIT values minus the uniform CDF, with its simultaneous 95 % band.

    Crosses mark points outside the band.

    Parameters
    ----------
    axes
        Where to draw; several columns with the same number of rows may share one figure and its band.
    values
        LOO-PIT, ``P(y_rep <= y_i | the other rows)``, of each row, shape ``(num_rows,)``.
    name, colour
        Label and colour of the column.

    Returns
    -------
    bool
        Whether the ECDF stays inside the band.

    References
    ----------
    Säilynoja, Bürkner and Vehtari (2022), Graphical test for discrete uniformity and its applications in
    goodness-of-fit evaluation and multiple sample comparison.
    """
    points, _, lower, upper = ecdf_pit(np.full(len(values), 0.5), SIMULTANEOUS, SIMULATIONS)
    ecdf = compute_ecdf(values, points)
    if not axes.lines:
        axes.fill_between(points, lower - points, upper - points, step="mid", color="0.85", lw=0, label="95 % band")
        axes.axhline(0, color="0.5", lw=0.8)
    axes.plot(points, ecdf - points, color=colour, lw=1.4, drawstyle="steps-mid", label=literal(name))
    outside = (ecdf < lower) | (ecdf > upper)
    axes.plot(points[outside], (ecdf - points)[outside], "x", color=colour, ms=7, mew=1.6)
    axes.set(xlabel="LOO-PIT", ylabel="ECDF minus uniform")
    axes.legend(**LEGEND)
    return not outside.any()


def plot_pareto_k(axes: Axes, k: np.ndarray, rows: np.ndarray | None = None, *, good: float = GOOD_K) -> None:
    """Plot Pareto k of all rows, or of ``rows``, shape ``(num_rows,)`` each; those above ``good`` in another colour.

    Non-finite k are drawn at the edges: equal weights below, no tail to fit above.
    """
    finite = k[np.isfinite(k)]
    low, high = (min(finite.min(), 0.0), max(finite.max(), good)) if len(finite) else (0.0, good)
    room = 0.08 * (high - low)
    heights = np.clip(k, low - room, high + room)
    rows = np.arange(len(k)) if rows is None else rows
    for which, colour, marker, name in (
        (k <= good, COLOURS[0], "o", "reliable"),
        (~(k <= good), COLOURS[1], "D", "unreliable"),
    ):
        if which.any():
            label = f"{name}: {which.sum():,} rows"
            axes.scatter(rows[which], heights[which], s=10, color=colour, marker=marker, alpha=0.7, lw=0, label=label)
    for level in (0.5, good):
        axes.axhline(level, color="0.4", lw=0.8, ls="--")
    axes.set(xlabel="row", ylabel="Pareto k", ylim=(low - 2 * room, high + 4 * room))
    axes.legend(**LEGEND, loc="upper right", ncols=2)
