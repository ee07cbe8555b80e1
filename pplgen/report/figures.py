"""The figures of a report: which apply to a fit, their captions, and why others are missing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import matplotlib as mpl
import xarray as xr

from pplgen.checks.check import Check
from pplgen.errors import InputError
from pplgen.plots import fit as plots
from pplgen.plots.svg import inline_svg
from pplgen.posterior.fitted_pair import FittedPair
from pplgen.report import posterior_figures, story_figures
from pplgen.report.figure_inputs import STYLE, CaptionedFigure, FigureInputs
from pplgen.story.isolation import seeded
from pplgen.story.latent import LatentStory

__all__ = ["ReportFigure", "report_figures"]


@dataclass(frozen=True)
class ReportFigure:
    """A figure of a report, or the reason why it is missing."""

    name: str
    title: str
    caption: str
    """What the figure shows and how to read it; without a figure, why it cannot be shown."""
    svg: str = ""


FigureSpec = tuple[str, str, Callable[[FigureInputs], CaptionedFigure]]
"""Name, title and plotting function, which raises an ``InputError`` with the reason if there is no figure."""


def report_figures(fit: FittedPair, tree: xr.DataTree, checks: tuple[Check, ...]) -> tuple[ReportFigure, ...]:
    """Plot every figure that a fit, its draws and its checks allow, in the order of a report."""
    figures, inputs = [], FigureInputs(fit, tree, checks)
    for name, title, plot in [*_story_figures(fit, tree), *_GENERAL]:
        with mpl.rc_context(STYLE), seeded(fit.seed):
            try:
                figure, caption = plot(inputs)
            except InputError as reason:
                figures.append(ReportFigure(name, title, str(reason)))
                continue
            figures.append(ReportFigure(name, title, caption, inline_svg(figure, name, title, caption)))
    return tuple(figures)


def _story_figures(fit: FittedPair, tree: xr.DataTree) -> tuple[FigureSpec, ...]:
    """Return the figures specific to the kind of story."""
    if isinstance(fit.story, LatentStory):
        return _LATENT
    if fit.story is not None and fit.story.takes_series:
        return _SERIES
    return _MIXTURE if plots.is_gaussian_mixture(tree) else ()


_MIXTURE: tuple[FigureSpec, ...] = (("components", "Components", story_figures.components),)
_SERIES: tuple[FigureSpec, ...] = (
    ("smoothed", "Smoothed series", story_figures.smoothed_series),
    ("residuals", "One-step-ahead residuals", story_figures.residuals),
)
_LATENT: tuple[FigureSpec, ...] = (
    ("codes", "Latent means", story_figures.latent_map),
    ("reconstructions", "Rows and their reconstructions", story_figures.reconstructions),
)
_GENERAL: tuple[FigureSpec, ...] = (
    ("predictive", "Posterior predictive check", posterior_figures.predictive),
    ("prior-posterior", "Prior and posterior", posterior_figures.prior_posterior),
    ("pairs", "Most correlated parameters", posterior_figures.pairs),
    ("loo-pit", "Calibration of leave-one-out predictions (LOO-PIT)", posterior_figures.loo_pit),
    ("pareto-k", "Reliability of importance weights (Pareto k)", posterior_figures.pareto_k),
    ("run", "Fit history", story_figures.history),
)
