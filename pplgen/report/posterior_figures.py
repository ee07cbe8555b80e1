"""Figures of a report for any posterior: predictive checks, parameters, leave-one-out diagnostics."""

from __future__ import annotations

import numpy as np

from pplgen.checks.check import not_applicable
from pplgen.checks.importance_weights import ROW_KHAT
from pplgen.checks.predictive import LOO_PARETO_K
from pplgen.errors import InputError
from pplgen.plots.palette import COLOURS
from pplgen.plots.posterior import (
    Scalar,
    distinct,
    most_correlated,
    plot_loo_pit,
    plot_pairs,
    plot_pareto_k,
    plot_predictive,
    plot_prior_posterior,
    scalars,
)
from pplgen.posterior.datatree import group_of
from pplgen.report.figure_inputs import CaptionedFigure, FigureInputs, legend_above, new_figure, panel_grid
from pplgen.story.latent import LatentStory

__all__ = ["loo_pit", "pairs", "pareto_k", "predictive", "prior_posterior"]

MAX_COLUMNS, MAX_PRIORS, MAX_PAIRS, MAX_PITS = 6, 8, 4, 4
"""Maximum numbers of panels, or lines, in a figure."""
MAX_SCALARS = 300
"""Maximum number of scalars considered."""


def predictive(inputs: FigureInputs) -> CaptionedFigure:
    """Plot columns of the data with posterior predictive replicates."""
    columns = inputs.columns
    chosen = sorted(columns, key=lambda column: -column.distance)[:MAX_COLUMNS]
    figure, grid = panel_grid(len(chosen))
    for axes, column in zip(grid, chosen, strict=True):
        plot_predictive(axes, column.observed, column.replicated, column.name)
    legend_above(figure, grid[0])
    which = (
        f"the {len(chosen)} of {len(columns)} columns that differ most" if len(columns) > len(chosen) else "each column"
    )
    return figure, (
        f"Data and {len(chosen[0].replicated):,} replicates from the posterior predictive distribution, {which}. The "
        "blue band contains 90 % of the replicates; where the dark line leaves it, the model does not fit the data."
    )


def prior_posterior(inputs: FigureInputs) -> CaptionedFigure:
    """Plot the prior and posterior density of parameters."""
    prior = group_of(inputs.tree, "prior")
    sites = [name for name in inputs.fit.readable_sites(inputs.tree) if name in prior]
    candidates = distinct(inputs.tree, scalars(inputs.tree, sites)[:MAX_SCALARS])
    if not candidates:
        raise InputError("No parameter has both a prior and a posterior with positive variance.")
    chosen = _balanced_selection(candidates, MAX_PRIORS)
    figure, grid = panel_grid(len(chosen), height=1.9)
    for axes, scalar in zip(grid, chosen, strict=True):
        plot_prior_posterior(axes, inputs.tree, scalar)
    legend_above(figure, grid[0])
    which = f"{len(chosen)} of {len(candidates)} parameters" if len(candidates) > len(chosen) else "Each parameter"
    return figure, f"{which}, prior and posterior. Where the two agree, the data carry no information."


def pairs(inputs: FigureInputs) -> CaptionedFigure:
    """Plot the most correlated parameters in pairs."""
    candidates = distinct(inputs.tree, scalars(inputs.tree, inputs.fit.readable_sites(inputs.tree))[:MAX_SCALARS])
    if len(candidates) < 2:
        raise InputError("Fewer than two distinct parameters have positive variance.")
    chosen = most_correlated(inputs.tree, candidates, MAX_PAIRS)
    figure = new_figure(5.5, 5.0)
    plot_pairs(figure.subplots(len(chosen), len(chosen), squeeze=False), inputs.tree, chosen)
    return figure, (
        f"Draws of the {len(chosen)} parameters with the strongest correlations. A mean-field guide shows none, "
        "whatever the posterior."
    )


def loo_pit(inputs: FigureInputs) -> CaptionedFigure:
    """Plot the ECDF of LOO-PIT values, column by column."""
    if inputs.fit.story is not None and inputs.fit.story.takes_series:
        raise InputError("Steps of a series depend on each other; fit.leave_future_out() scores one-step forecasts.")
    weights = inputs.leave_one_out
    columns = [column for column in inputs.columns if weights.applies_to(column)][:MAX_PITS]
    if not columns:
        raise InputError("No column has one value per row.")
    figure = new_figure(5.5, 4.2)
    axes, inside = figure.subplots(), []
    for column, colour in zip(columns, COLOURS, strict=False):
        values = weights.loo_pit(column, np.random.default_rng(inputs.fit.seed))
        inside.append(plot_loo_pit(axes, values, column.name, colour=colour))
    return figure, (
        "LOO-PIT, P(y_rep <= y_i given the other rows), of each row: uniform if the predictions are calibrated, and "
        f"then inside the band throughout with probability 95 %. {sum(inside)} of {len(inside)} columns are. An upward "
        "slope in the middle means predictions that are too wide, a downward slope too narrow."
    )


def pareto_k(inputs: FigureInputs) -> CaptionedFigure:
    """Plot the Pareto k of each row that the checks used."""
    is_latent = isinstance(inputs.fit.story, LatentStory)
    unavailable = not_applicable("", "", "the given checks did not importance-weight single rows")
    check = {check.name: check for check in inputs.checks}.get(ROW_KHAT if is_latent else LOO_PARETO_K, unavailable)
    if (shapes := check.shapes) is None:
        raise InputError(f"{check.remedy[:1].upper()}{check.remedy[1:]}.")
    figure = new_figure(5.5, 4.2)
    plot_pareto_k(figure.subplots(), shapes.k, shapes.rows, good=shapes.limit)
    kind = "importance weights under the encoder" if is_latent else "leave-one-out weights, corrected for the guide"
    description = f"Pareto k of each row's {kind}, as in the table of checks; rows are counted from 1."
    return figure, f"{description} Above {shapes.limit:.2g} a row's weights are unreliable: {shapes}."


def _balanced_selection(candidates: list[Scalar], num: int) -> list[Scalar]:
    """Choose ``num`` scalars, taking sites in turn, in their given order."""
    counts: dict[str, int] = {}
    turns = []
    for index, scalar in enumerate(candidates):
        counts[scalar.site] = counts.get(scalar.site, -1) + 1
        turns.append((counts[scalar.site], index))
    return [candidates[index] for index in sorted(index for _, index in sorted(turns)[:num])]
