"""Which pictures a report shows of a fit, what each is, and why another is not there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pplgen.errors import InputError
from pplgen.fitted import Fit
from pplgen.isolation import seeded
from pplgen.latent import LatentStory
from pplgen.latent_plots import plot_latent_map, plot_reconstructions
from pplgen.mixtures import GOOD_K
from pplgen.palette import COLOURS
from pplgen.plots import PANELS, codes_and_rows, plot_elbo, plot_mixture, plot_smoothed, shows_mixture
from pplgen.posterior_plots import (
    Scalar,
    plot_fan,
    plot_loo_pit,
    plot_pairs,
    plot_pareto_k,
    plot_predictive,
    plot_prior_posterior,
    related,
    scalars,
)
from pplgen.replicates import WITHOUT_ROWS, code_ks, left_out, observed_columns
from pplgen.svg import inline_svg

__all__ = ["Picture", "pictures"]

MOST_COLUMNS, MOST_PRIORS, MOST_PAIRS, MOST_PITS = 6, 12, 4, 4
"""Panels, or lines, of a picture at most."""
MOST_SCALARS = 300
"""Scalars among which correlated ones are looked for."""
STYLE = {"text.parse_math": False, "font.size": 11.0, "axes.spines.top": False, "axes.spines.right": False}
"""Names of columns are nobody's mathematics; pictures are looked at on telephones too."""


@dataclass(frozen=True)
class Picture:
    """A picture of a report, or why there is none."""

    name: str
    title: str
    caption: str
    """What there is to be seen and how to read it; without a picture, why it cannot be shown."""
    svg: str = ""


def pictures(fit: Fit, tree: xr.DataTree) -> tuple[Picture, ...]:
    """Draw every picture that a fit and its draws allow, in the order of a report."""
    drawn = []
    builders = [*_own(fit, tree), *_GENERAL]
    for builder in builders:
        name = builder.__name__.strip("_").replace("_", "-")
        title = str(builder.__doc__).rstrip(".")
        with mpl.rc_context(STYLE), seeded(fit.seed):
            try:
                figure, caption = builder(fit, tree)
            except InputError as reason:
                drawn.append(Picture(name, title, str(reason)))
                continue
            drawn.append(Picture(name, title, caption, inline_svg(figure, name, title, caption)))
    return tuple(drawn)


Drawn = tuple[Figure, str]


def _own(fit: Fit, tree: xr.DataTree) -> list[Callable[[Fit, xr.DataTree], Drawn]]:
    """Return what is drawn of a fit's own family."""
    if isinstance(fit.story, LatentStory):
        return [_codes, _reconstructions]
    if fit.story is not None and fit.story.takes_series:
        return [_smoothed]
    return [_components] if shows_mixture(tree) else []


def _components(fit: Fit, tree: xr.DataTree) -> Drawn:
    """Components."""
    figure = _figure(5.5, 4.2)
    plot_mixture(figure.subplots(), tree)
    weights = tree["posterior"]["weights"].mean(("chain", "draw")).values
    told = ", ".join(f"{weight:.2f}" for weight in weights[:12])
    return figure, (
        f"Rows, and components at their posterior means. The weights of the {len(weights)} components are {told}"
        + (", ..." if len(weights) > 12 else "")
        + ". With more than two columns the two that differ most between components are shown."
    )


def _smoothed(fit: Fit, tree: xr.DataTree) -> Drawn:
    """What is known of each step."""
    if not fit.has_rows:
        raise InputError(WITHOUT_ROWS)
    panels = min(PANELS, fit.pair.data[0].shape[-1])
    figure = _figure(6.5, 2.4 + 1.3 * panels)
    plot_smoothed(figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0], fit)
    return figure, (
        "The first series with what the whole of it says of each step, within 90 % intervals. Shaded backgrounds, where "
        "there are any, are regimes, their colours mixed by their probabilities."
    )


def _codes(fit: Fit, tree: xr.DataTree) -> Drawn:
    """Map of codes."""
    if not fit.has_rows:
        raise InputError(WITHOUT_ROWS)
    codes, labels, _ = codes_and_rows(fit)
    figure = _figure(5.5, 4.2)
    plot_latent_map(figure.subplots(), codes, labels)
    coloured = " Colours are the rows' classes, which the fit was not told." if labels is not None else ""
    return figure, f"Mean codes of {codes.sizes['row']:,} rows, in the two entries that differ most.{coloured}"


def _reconstructions(fit: Fit, tree: xr.DataTree) -> Drawn:
    """Rows and what their codes keep of them."""
    if not fit.has_rows:
        raise InputError(WITHOUT_ROWS)
    shown = codes_and_rows(fit)[2]
    figure = _figure(5.5, 4.2)
    plot_reconstructions(figure.subplots(), shown, fit.reconstruct(shown))
    return figure, "Rows in the upper lines; below each what is decoded from its mean code."


def _elbo(fit: Fit, tree: xr.DataTree) -> Drawn:
    """Bound over the steps of the fit."""
    if not len(fit.best.history):
        raise InputError("The run keeps no history of the ELBO.")
    figure = _figure(5.5, 4.2)
    plot_elbo(figure.subplots(), fit)
    return figure, (
        f"The ELBO over {len(fit.best.history):,} steps, with the noise of its running mean; it ended at {fit.elbo:.2f} "
        f"± {fit.best.elbo_error:.2f} nats. A curve that still rises has not converged."
    )


def _predictive(fit: Fit, tree: xr.DataTree) -> Drawn:
    """Data against the posterior predictive distribution."""
    columns = [column for column in observed_columns(fit, tree) if np.isfinite(column.observed).any()]
    chosen = sorted(columns, key=lambda column: -column.distance)[:MOST_COLUMNS]
    figure, grid = _grid(len(chosen))
    for axes, column in zip(grid, chosen, strict=True):
        plot_predictive(axes, column.observed, column.replicated, column.name)
    grid[0].legend(fontsize="small", frameon=False)
    some = f"the {len(chosen)} of {len(columns)} columns that differ most" if len(columns) > len(chosen) else "each column"
    return figure, (
        f"Data and {len(chosen[0].replicated):,} replicates from the posterior predictive distribution, {some}. Where "
        "grey leaves the blue band, which holds 90 % of the replicates, the model does not produce what was seen."
    )


def _fan(fit: Fit, tree: xr.DataTree) -> Drawn:
    """Data over time against replicates."""
    if fit.story is None or not fit.story.takes_series:
        raise InputError("The rows are no series.")
    columns = observed_columns(fit, tree)[:PANELS]
    (site,) = tree["observed_data"].data_vars.values()
    length = int(np.flatnonzero(np.isfinite(site.values[0]).any(axis=-1))[-1]) + 1
    figure = _figure(6.5, 2.4 + 1.3 * len(columns))
    for column, axes in zip(columns, figure.subplots(len(columns), 1, sharex=True, squeeze=False)[:, 0], strict=True):
        plot_fan(axes, column.observed[:length], column.replicated[:, :length], column.name)
        axes.label_outer()
    figure.axes[0].legend(fontsize="small", frameon=False, ncols=3)
    return figure, "The first series before whole series that the fit would have produced in its place."


def _prior_posterior(fit: Fit, tree: xr.DataTree) -> Drawn:
    """What the data changed."""
    if "prior" not in tree:
        raise InputError("The draws hold no prior.")
    sites = [name for name in fit.readable_sites(tree) if name in tree["prior"]]
    found = scalars(tree, sites)
    if not found:
        raise InputError("All parameters belong to single rows, or were learned without a prior.")
    chosen = _spread(found, MOST_PRIORS)
    figure, grid = _grid(len(chosen), height=1.9)
    for axes, scalar in zip(grid, chosen, strict=True):
        plot_prior_posterior(axes, tree, scalar)
    grid[0].legend(fontsize="small", frameon=False)
    some = f"{len(chosen)} of {len(found)} parameters" if len(found) > len(chosen) else "Each parameter"
    return figure, f"{some} before the data and after. Where the two agree, the data said nothing."


def _pairs(fit: Fit, tree: xr.DataTree) -> Drawn:
    """Parameters that move together."""
    found = scalars(tree, fit.readable_sites(tree))
    chosen = related(tree, found[:MOST_SCALARS], MOST_PAIRS) if found else []
    if len(chosen) < 2:
        raise InputError("There are no two parameters to lay beside each other.")
    figure = _figure(5.5, 5.0)
    plot_pairs(figure.subplots(len(chosen), len(chosen), squeeze=False), tree, chosen)
    return figure, (
        f"Draws of the {len(chosen)} parameters with the strongest correlations. A guide whose factors are independent "
        "shows none, whatever the posterior is like."
    )


def _loo_pit(fit: Fit, tree: xr.DataTree) -> Drawn:
    """Calibration of leave-one-out predictions (LOO-PIT)."""
    if fit.story is not None and fit.story.takes_series:
        raise InputError("Steps of a series are not independent; fit.leave_future_out() scores one-step-ahead forecasts.")
    weights, _ = left_out(fit, tree)
    columns = [each for each in observed_columns(fit, tree) if each.replicated.shape == weights.shape][:MOST_PITS]
    if not columns:
        raise InputError("The draws hold no replicates of all rows.")
    figure = _figure(5.5, 4.2)
    axes, inside = figure.subplots(), []
    for column, colour in zip(columns, COLOURS, strict=False):
        values = column.transforms(weights, np.random.default_rng(fit.seed))
        inside.append(plot_loo_pit(axes, values, column.name, colour=colour))
    return figure, (
        "How many of the others' predictions lie below each row, as an ECDF less the uniform one. "
        f"{sum(inside)} of {len(inside)} columns stay inside the band, as 95 % of calibrated ones do; a slope upwards in "
        "the middle means predictions that are too wide, downwards too narrow."
    )


def _pareto_k(fit: Fit, tree: xr.DataTree) -> Drawn:
    """Rows whose importance weights can be trusted (Pareto k)."""
    if isinstance(fit.story, LatentStory):
        k, of = code_ks(fit), "of its code's importance weights, which the encoder proposes"
    else:
        k, of = left_out(fit, tree)[1], "of the weights that leave it out, corrected for the guide"
    figure = _figure(5.5, 4.2)
    plot_pareto_k(figure.subplots(), k)
    bad = int((~(k <= GOOD_K)).sum())
    return figure, f"Pareto k of each row: {of}. {bad:,} of {len(k):,} lie above {GOOD_K}."


_GENERAL: tuple[Callable[[Fit, xr.DataTree], Drawn], ...] = (
    _predictive,
    _fan,
    _prior_posterior,
    _pairs,
    _loo_pit,
    _pareto_k,
    _elbo,
)


def _figure(width: float, height: float) -> Figure:
    """Return an empty figure, in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


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
