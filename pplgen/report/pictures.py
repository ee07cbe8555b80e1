"""Which pictures a report shows of a fit, what each is, and why another is not there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pplgen.checks.check import Check, beside
from pplgen.checks.predictive import LOO
from pplgen.checks.weights import OF_ROWS
from pplgen.errors import InputError
from pplgen.plots import fit as plots
from pplgen.plots.latent import plot_latent_map, plot_reconstructions
from pplgen.plots.palette import COLOURS
from pplgen.plots.posterior import (
    Scalar,
    distinct,
    plot_fan,
    plot_loo_pit,
    plot_pairs,
    plot_pareto_k,
    plot_predictive,
    plot_prior_posterior,
    related,
    scalars,
)
from pplgen.plots.svg import inline_svg
from pplgen.posterior.datatree import group_of
from pplgen.posterior.fitted_pair import FittedPair
from pplgen.report.observed import WITHOUT_ROWS, Column, LeftOut, left_out, observed_columns
from pplgen.story.isolation import seeded
from pplgen.story.latent import LatentStory

__all__ = ["Picture", "pictures"]

MOST_COLUMNS, MOST_PRIORS, MOST_PAIRS, MOST_PITS = 6, 8, 4, 4
"""Panels, or lines, of a picture at most."""
MOST_SCALARS = 300
"""Scalars among which correlated ones are looked for."""
STYLE: dict[Any, Any] = {"text.parse_math": False, "font.size": 11.0}
STYLE |= {"axes.spines.top": False, "axes.spines.right": False}
"""Names of columns are nobody's mathematics; pictures are looked at on telephones too."""


@dataclass(frozen=True)
class Picture:
    """A picture of a report, or why there is none."""

    name: str
    title: str
    caption: str
    """What there is to be seen and how to read it; without a picture, why it cannot be shown."""
    svg: str = ""


@dataclass(frozen=True)
class _Material:
    """A fit, its draws and its checks, with what several pictures are made of."""

    fit: FittedPair
    tree: xr.DataTree
    checks: tuple[Check, ...]

    @cached_property
    def columns(self) -> list[Column]:
        return observed_columns(self.fit, self.tree)

    @cached_property
    def left_out(self) -> LeftOut:
        return left_out(self.fit, self.tree)


Drawn = tuple[Figure, str]
"""A figure and its caption."""
Named = tuple[str, str, Callable[[_Material], Drawn]]
"""Name and title of a picture, and what draws it or says in an ``InputError`` why there is none."""


def pictures(fit: FittedPair, tree: xr.DataTree, checks: tuple[Check, ...]) -> tuple[Picture, ...]:
    """Draw every picture that a fit, its draws and its checks allow, in the order of a report."""
    drawn, inputs = [], _Material(fit, tree, checks)
    for name, title, draw in [*_own(fit, tree), *_GENERAL]:
        with mpl.rc_context(STYLE), seeded(fit.seed):
            try:
                figure, caption = draw(inputs)
            except InputError as reason:
                drawn.append(Picture(name, title, str(reason)))
                continue
            drawn.append(Picture(name, title, caption, inline_svg(figure, name, title, caption)))
    return tuple(drawn)


def _components(of: _Material) -> Drawn:
    figure = _figure(5.5, 4.2)
    plots.plot_mixture(figure.subplots(), of.tree)
    weights = group_of(of.tree, "posterior")["weights"].mean(("chain", "draw")).values
    told = ", ".join(f"{weight:.2f}" for weight in weights[:12])
    return figure, (
        f"Rows, and components at their posterior means. The weights of the {len(weights)} components are {told}"
        + (", ..." if len(weights) > 12 else "")
        + ". With more than two columns the two that differ most between components are shown."
    )


def _smoothed(of: _Material) -> Drawn:
    if not of.fit.has_rows:
        raise InputError(WITHOUT_ROWS)
    panels = min(plots.PANELS, of.fit.pair.data[0].shape[-1])
    figure = _figure(5.5, 2.4 + 1.3 * panels)
    plots.plot_smoothed(figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0], of.fit)
    return figure, (
        "The first series with what the whole of it says of each step, within 90 % intervals. Shaded backgrounds, "
        "where there are any, are regimes, their colours mixed by their probabilities."
    )


def _codes(of: _Material) -> Drawn:
    if not of.fit.has_rows:
        raise InputError(WITHOUT_ROWS)
    codes, labels = plots.latent_means(of.fit)
    figure = _figure(5.5, 4.2)
    plot_latent_map(figure.subplots(), codes, labels)
    coloured = " Colours are the classes of rows." if labels is not None else ""
    return figure, f"Mean codes of {codes.sizes['row']:,} rows, in the two entries that differ most.{coloured}"


def _reconstructions(of: _Material) -> Drawn:
    if not of.fit.has_rows:
        raise InputError(WITHOUT_ROWS)
    shown = plots.decoded_rows(of.fit)
    figure = _figure(5.5, 4.2)
    plot_reconstructions(figure.subplots(), shown, of.fit.reconstruct(shown))
    return figure, "Rows in the upper lines; below each what is decoded from its mean code."


def _run(of: _Material) -> Drawn:
    if of.fit.chains is not None:
        if "lp" not in group_of(of.tree, "sample_stats"):
            raise InputError(WITHOUT_ROWS)
        figure = _figure(5.5, 4.2)
        plots.plot_chains(figure.subplots(), of.tree)
        return figure, "Each chain's log density over its draws. Chains that have mixed look like the same noise."
    if not len(of.fit.best.history):
        raise InputError("The run keeps no history of the ELBO.")
    figure = _figure(5.5, 4.2)
    plots.plot_elbo(figure.subplots(), of.fit)
    return figure, (
        f"The ELBO over {len(of.fit.best.history):,} steps, with the noise of its running mean; it ended at "
        f"{of.fit.elbo:.2f} ± {of.fit.best.elbo_error:.2f} nats. A curve that still rises has not converged."
    )


def _predictive(of: _Material) -> Drawn:
    columns = of.columns
    chosen = sorted(columns, key=lambda column: -column.distance)[:MOST_COLUMNS]
    figure, grid = _grid(len(chosen))
    for axes, column in zip(grid, chosen, strict=True):
        plot_predictive(axes, column.observed, column.replicated, column.name)
    _legend_above(figure, grid[0])
    some = (
        f"the {len(chosen)} of {len(columns)} columns that differ most" if len(columns) > len(chosen) else "each column"
    )
    return figure, (
        f"Data and {len(chosen[0].replicated):,} replicates from the posterior predictive distribution, {some}. The "
        "blue band holds 90 % of the replicates; where the dark line leaves it, the model does not produce the data."
    )


def _fan(of: _Material) -> Drawn:
    columns = of.columns[: plots.PANELS]
    (site,) = group_of(of.tree, "observed_data").values()
    length = int(np.flatnonzero(np.isfinite(site.values[0]).any(axis=-1))[-1]) + 1
    figure = _figure(5.5, 2.4 + 1.3 * len(columns))
    for column, axes in zip(columns, figure.subplots(len(columns), 1, sharex=True, squeeze=False)[:, 0], strict=True):
        plot_fan(axes, column.observed[:length], column.replicated[:, :length], column.name)
        axes.label_outer()
    _legend_above(figure, figure.axes[0])
    return figure, "The first series before whole series that the fit would have produced in its place."


def _prior_posterior(of: _Material) -> Drawn:
    prior = group_of(of.tree, "prior")
    sites = [name for name in of.fit.readable_sites(of.tree) if name in prior]
    found = distinct(of.tree, scalars(of.tree, sites)[:MOST_SCALARS])
    if not found:
        raise InputError("No parameter has both a prior and a posterior with any spread.")
    chosen = _spread(found, MOST_PRIORS)
    figure, grid = _grid(len(chosen), height=1.9)
    for axes, scalar in zip(grid, chosen, strict=True):
        plot_prior_posterior(axes, of.tree, scalar)
    _legend_above(figure, grid[0])
    some = f"{len(chosen)} of {len(found)} parameters" if len(found) > len(chosen) else "Each parameter"
    return figure, f"{some} before the data and after. Where the two agree, the data said nothing."


def _pairs(of: _Material) -> Drawn:
    found = distinct(of.tree, scalars(of.tree, of.fit.readable_sites(of.tree))[:MOST_SCALARS])
    if len(found) < 2:
        raise InputError("There are no two parameters with a spread of their own.")
    chosen = related(of.tree, found, MOST_PAIRS)
    figure = _figure(5.5, 5.0)
    plot_pairs(figure.subplots(len(chosen), len(chosen), squeeze=False), of.tree, chosen)
    return figure, (
        f"Draws of the {len(chosen)} parameters with the strongest correlations. A guide whose factors are independent "
        "shows none, whatever the posterior is like."
    )


def _loo_pit(of: _Material) -> Drawn:
    if of.fit.story is not None and of.fit.story.takes_series:
        raise InputError("Steps of a series depend on each other; fit.leave_future_out() scores one-step forecasts.")
    without = of.left_out
    columns = [column for column in of.columns if without.fits(column)][:MOST_PITS]
    if not columns:
        raise InputError("No column has one value to a row.")
    figure = _figure(5.5, 4.2)
    axes, inside = figure.subplots(), []
    for column, colour in zip(columns, COLOURS, strict=False):
        values = without.transforms(column, np.random.default_rng(of.fit.seed))
        inside.append(plot_loo_pit(axes, values, column.name, colour=colour))
    return figure, (
        "The probability of less than was seen in each row, predicted from the other rows: uniform if the predictions "
        "are calibrated, and then inside the band throughout with probability 95 %. So are "
        f"{sum(inside)} of {len(inside)} columns. A slope upwards in the middle means predictions that are too wide, "
        "downwards too narrow."
    )


def _pareto_k(of: _Material) -> Drawn:
    coded = isinstance(of.fit.story, LatentStory)
    unknown = beside("", "", "the checks at hand have not weighed rows one by one")
    found = {check.name: check for check in of.checks}.get(OF_ROWS if coded else LOO, unknown)
    if (shapes := found.shapes) is None:
        raise InputError(f"{found.remedy[:1].upper()}{found.remedy[1:]}.")
    figure = _figure(5.5, 4.2)
    plot_pareto_k(figure.subplots(), shapes.k, shapes.rows, good=shapes.limit)
    proposed = "its codes, which the encoder proposes" if coded else "the draws without it, corrected for the guide"
    told = f"Pareto k of rows, counted from 1, of the importance weights of {proposed}, as in the table of checks."
    return figure, f"{told} Above {shapes.limit:.2g} a row's are not to be trusted: {shapes}."


def _figure(width: float, height: float) -> Figure:
    """Return an empty figure, in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _legend_above(figure: Figure, axes: Axes) -> None:
    """Put the legend of one panel over all of them."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)


def _grid(num: int, height: float = 2.3) -> tuple[Figure, list[Axes]]:
    """Return a figure with so many panels, two beside each other."""
    across = min(num, 2)
    lines = -(-num // across)
    figure = _figure(3.2 * across + (2.3 if across == 1 else 0.1), max(4.2 if num == 1 else 0.0, height * lines))
    grid = list(figure.subplots(lines, across, squeeze=False).flat)
    for axes in grid[num:]:
        axes.remove()
    return figure, grid[:num]


def _spread(found: list[Scalar], num: int) -> list[Scalar]:
    """Choose scalars of all sites in turn, and keep their order."""
    places: dict[str, int] = {}
    turns = []
    for place, scalar in enumerate(found):
        places[scalar.site] = places.get(scalar.site, -1) + 1
        turns.append((places[scalar.site], place))
    return [found[place] for place in sorted(place for _, place in sorted(turns)[:num])]


def _own(fit: FittedPair, tree: xr.DataTree) -> tuple[Named, ...]:
    """Return what is drawn of a fit's own family."""
    if isinstance(fit.story, LatentStory):
        return _CODED
    if fit.story is not None and fit.story.takes_series:
        return _SERIES
    return _MIXTURE if plots.shows_mixture(tree) else ()


_MIXTURE: tuple[Named, ...] = (("components", "Components", _components),)
_SERIES: tuple[Named, ...] = (
    ("smoothed", "What is known of each step", _smoothed),
    ("fan", "Data over time against replicates", _fan),
)
_CODED: tuple[Named, ...] = (
    ("codes", "Map of codes", _codes),
    ("reconstructions", "Rows and what their codes keep of them", _reconstructions),
)
_GENERAL: tuple[Named, ...] = (
    ("predictive", "Data against the posterior predictive distribution", _predictive),
    ("prior-posterior", "What the data changed", _prior_posterior),
    ("pairs", "Parameters that move together", _pairs),
    ("loo-pit", "Calibration of leave-one-out predictions (LOO-PIT)", _loo_pit),
    ("pareto-k", "Rows whose importance weights can be trusted (Pareto k)", _pareto_k),
    ("run", "How the fit went", _run),
)
