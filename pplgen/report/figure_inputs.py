"""What the figures of a report share: inputs computed once, style and layout."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pplgen.checks.check import Check
from pplgen.posterior.fitted_pair import FittedPair
from pplgen.report.observed import Column, LeaveOneOut, leave_one_out, observed_columns

__all__ = ["STYLE", "CaptionedFigure", "FigureInputs", "legend_above", "new_figure", "panel_grid"]

STYLE: dict[Any, Any] = {"text.parse_math": False, "font.size": 11.0}
STYLE |= {"axes.spines.top": False, "axes.spines.right": False}
"""Column names are not parsed as mathematics; the font is legible on small screens."""

CaptionedFigure = tuple[Figure, str]
"""A figure and its caption."""


@dataclass(frozen=True)
class FigureInputs:
    """A fit, its draws and its checks, with what several figures use."""

    fit: FittedPair
    tree: xr.DataTree
    checks: tuple[Check, ...]

    @cached_property
    def columns(self) -> list[Column]:
        """Observed columns with their replicates."""
        return observed_columns(self.fit, self.tree)

    @cached_property
    def leave_one_out(self) -> LeaveOneOut:
        """Leave-one-out weights of the draws."""
        return leave_one_out(self.fit, self.tree)


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, size in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def legend_above(figure: Figure, axes: Axes) -> None:
    """Put the legend of one panel above all of them."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)


def panel_grid(num: int, height: float = 2.3) -> tuple[Figure, list[Axes]]:
    """Return a figure with ``num`` panels in two columns, ``height`` inches each."""
    across = min(num, 2)
    lines = -(-num // across)
    figure = new_figure(3.2 * across + (2.3 if across == 1 else 0.1), max(4.2 if num == 1 else 0.0, height * lines))
    grid = list(figure.subplots(lines, across, squeeze=False).flat)
    for axes in grid[num:]:
        axes.remove()
    return figure, grid[:num]
