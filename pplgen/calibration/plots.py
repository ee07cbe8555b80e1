"""Plots of a calibration: ECDF difference of ranks, and z-score against contraction."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pplgen.checks.uniformity import ecdf_band
from pplgen.plots.literal_text import literal
from pplgen.plots.palette import COLOURS

__all__ = ["plot_calibration", "plot_contraction", "plot_ecdf_difference"]

COLUMNS = 4
"""Maximum number of panels per row."""


def plot_calibration(ranks: xr.Dataset, num_draws: int, name: str) -> Figure:
    """Plot the ECDF difference of ranks of each quantity, and z-scores against contraction.

    Parameters
    ----------
    ranks
        Dataset of ``Calibration.to_dataset``.
    num_draws
        Number of draws that each truth was ranked among.
    name
        Name of the story or model.
    """
    panels = ranks.sizes["quantity"] + 1
    rows = -(-panels // COLUMNS)
    figure = Figure(figsize=(3.2 * min(panels, COLUMNS), 2.7 * rows + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    every = figure.subplots(rows, min(panels, COLUMNS), squeeze=False).ravel()
    for index, axes in enumerate(every[: panels - 1]):
        one = ranks.isel(quantity=index)
        plot_ecdf_difference(axes, one["rank"].values, num_draws)
        axes.set_title(f"{literal(one['quantity'].item())} (p = {one['p'].item():.2g})", fontsize="small")
    plot_contraction(every[panels - 1], ranks)
    for axes in every[panels:]:
        axes.set_visible(False)
    figure.suptitle(f"Calibration of {literal(name)}: {ranks.sizes['dataset']} data sets, {num_draws} draws per fit")
    return figure


def plot_ecdf_difference(axes: Axes, ranks: np.ndarray, num_draws: int, level: float = 0.95) -> None:
    """Plot the ECDF of ranks minus the uniform one, with its simultaneous band of coverage ``level``."""
    points, low, high = ecdf_band(len(ranks), num_draws, level)
    counts = np.searchsorted(np.sort(ranks), np.round(points * (num_draws + 1)), side="left")
    axes.fill_between(points, low - points, high - points, step="mid", color="0.88", label=f"{level:.0%} band")
    axes.axhline(0, color="0.6", lw=0.8)
    difference = counts / len(ranks) - points
    outside = bool(((difference < low - points) | (difference > high - points)).any())
    axes.plot(points, difference, color=COLOURS[1 if outside else 0], lw=1.4)
    axes.set(xlabel="rank of the truth", ylabel="ECDF minus uniform", xlim=(0, 1))


def plot_contraction(axes: Axes, ranks: xr.Dataset) -> None:
    """Plot z-scores against contraction, a point per data set and quantity, with lines at two standard deviations."""
    for index, name in enumerate(ranks["quantity"].values):
        one = ranks.isel(quantity=index)
        colour = COLOURS[index % len(COLOURS)]
        axes.scatter(
            one["contraction"], one["z_score"], s=6, color=colour, alpha=0.5, linewidths=0, label=literal(name)
        )
    for z_score in (-2, 2):
        axes.axhline(z_score, color="0.6", lw=0.8, ls="--")
    contraction, z = ranks["contraction"].values, ranks["z_score"].values
    x_min = np.nanquantile(contraction[np.isfinite(contraction)], 0.02) if np.isfinite(contraction).any() else 0.0
    z_max = max(3.5, float(np.nanquantile(np.abs(z[np.isfinite(z)]), 0.99))) if np.isfinite(z).any() else 3.5
    axes.set(xlim=(min(-0.05, x_min), 1.05), ylim=(-1.1 * z_max, 1.1 * z_max))
    axes.set(xlabel="contraction", ylabel="z-score")
    axes.set_title("z-score and contraction", fontsize="small")
