"""Figures of series: signal and states with intervals, regimes, forecasts, residuals, fields of the dynamics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from torch import Tensor

from pplgen.errors import InputError
from pplgen.plots.literal_text import literal
from pplgen.plots.palette import COLOURS
from pplgen.posterior.residuals import autocorrelations

__all__ = [
    "plot_autocorrelations",
    "plot_dynamics",
    "plot_forecast",
    "plot_regimes",
    "plot_residuals",
    "plot_series",
    "plot_states",
]

REGIME_OPACITY = 0.28
"""Opacity of the background of a regime with probability one."""
FAN = {0.9: 0.2, 0.8: 0.35, 0.5: 0.55}
"""Probability of each forecast band, and its opacity; only the first without saved draws."""
LEGEND: dict[str, Any] = {"fontsize": "small", "loc": "upper left", "framealpha": 0.85, "edgecolor": "none"}
"""Style of every legend: legible over bands."""
ARROWS = 14
"""Number of arrows along each axis of a vector field."""
WITHIN = 1.96
"""Standard normal quantile of 97.5 %."""
MANY_STEPS = 500
"""Number of steps from which observations are drawn small."""


def plot_series(axes: Axes, y: Tensor, inferred: xr.Dataset, *, series: int = 0, feature: int = 0) -> None:
    """Plot one column of a series with its smoothed or filtered signal and regimes.

    Parameters
    ----------
    axes
        Where to draw.
    y
        The series, NaN where missing, shape ``(num_series, num_steps, num_features)``.
    inferred
        Result of ``Fit.smooth`` or ``Fit.filter``: the signal with its interval, if present, and regime probabilities
        as background bands.
    series, feature
        Indices of the series and of the column.
    """
    values = y[series, :, feature].cpu().numpy()
    steps = np.arange(len(values))
    name = str(inferred["feature"].values[feature]) if "feature" in inferred.coords else f"x{feature}"
    _plot_observations(axes, steps, values)
    if "y_mean" in inferred:
        label = "signal, 90 %" if "state_mean" in inferred else "imputed"
        _plot_band(axes, inferred, "y", series, feature, COLOURS[0], label)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.15 * (high - low))  # room for the legend
    if "regime_probability" in inferred:
        plot_regimes(axes, inferred, series=series)
    axes.set(xlabel="step", ylabel=literal(name))
    axes.legend(**LEGEND, ncols=4)


def plot_states(axes: Axes, inferred: xr.Dataset, *, series: int = 0, states: Sequence[int] | None = None) -> None:
    """Plot the means of a series' latent states with 90 % intervals; ``None``: all states."""
    for j in range(inferred.sizes["state"]) if states is None else states:
        _plot_band(axes, inferred, "state", series, j, COLOURS[j % len(COLOURS)], f"state {j}")
    axes.set(xlabel="step", ylabel="state, 90 %")
    axes.legend(**LEGEND, ncols=4)


def plot_regimes(axes: Axes, inferred: xr.Dataset, *, series: int = 0) -> None:
    """Shade the background of a series by its regime probabilities, mixing the regimes' colours in proportion."""
    probabilities = inferred["regime_probability"].values[series]
    colours = np.array([to_rgb(COLOURS[(k + 1) % len(COLOURS)]) for k in range(probabilities.shape[1])])
    observed = ~np.isnan(probabilities).any(axis=1, keepdims=True)
    shade = 1 - REGIME_OPACITY * (1 - np.nan_to_num(probabilities) @ colours) * observed
    steps = inferred["time"].values
    ends = (steps[0] - 0.5, steps[-1] + 0.5)
    limits = axes.get_xlim() if axes.has_data() else ends, axes.get_ylim()
    axes.imshow(
        shade[None],
        extent=(*ends, 0, 1),
        transform=axes.get_xaxis_transform(),
        aspect="auto",
        interpolation="nearest",
        zorder=-1,
    )
    for k, colour in enumerate(colours):
        face = 1 - REGIME_OPACITY * (1 - colour)
        axes.fill_between([np.nan], [np.nan], [np.nan], color=face, lw=0, label=f"regime {k}")
    axes.set(xlim=limits[0], ylim=limits[1])


def plot_forecast(
    axes: Axes, y: Tensor, forecast: xr.Dataset, *, series: int = 0, feature: int = 0, past: int | None = None
) -> None:
    """Plot a series and its forecast: the mean, a 90 % band and, with ``keep_draws``, also 50 and 80 % bands.

    Parameters
    ----------
    axes
        Where to draw.
    y
        The series that was forecast, shape ``(num_series, num_steps, num_features)``.
    forecast
        Result of ``Fit.forecast``.
    series, feature
        Indices of the series and of the column.
    past
        Number of past steps to show. ``None``: four times the horizon.
    """
    ahead = forecast["step"].values[series]
    past = 4 * len(ahead) if past is None else past
    values = y[series, : ahead[0], feature].cpu().numpy()[-past:]
    steps = np.arange(ahead[0] - len(values), ahead[0])
    _plot_observations(axes, steps, values)
    has_draws = "y_draw" in forecast
    for mass, opacity in FAN.items() if has_draws else [next(iter(FAN.items()))]:
        if has_draws:
            draws = forecast["y_draw"].values[:, series, :, feature]
            lower, upper = np.quantile(draws, [(1 - mass) / 2, (1 + mass) / 2], axis=0)
        else:
            lower, upper = (forecast[f"y_{end}"].values[series, :, feature] for end in ("lower", "upper"))
        face = 1 - opacity * (1 - np.array(to_rgb(COLOURS[1])))
        axes.fill_between(ahead, lower, upper, color=face, lw=0, label=f"{100 * mass:.0f} %")
    axes.plot(ahead, forecast["y_mean"].values[series, :, feature], color=COLOURS[1], label="forecast mean")
    axes.axvline(ahead[0] - 0.5, color="0.5", lw=0.8, ls="--")
    axes.set(xlabel="step", ylabel=literal(forecast["feature"].values[feature]))
    axes.legend(**LEGEND)


def plot_residuals(axes: Axes, residuals: xr.Dataset, *, series: int = 0, feature: int = 0) -> None:
    """Plot one-step-ahead residuals of one column over time, with the 95 % interval of a standard normal.

    Parameters
    ----------
    axes
        Where to draw.
    residuals
        Result of ``Fit.residuals``.
    series, feature
        Indices of the series and of the column.
    """
    values = residuals["residual"].values[series, :, feature]
    steps = residuals["time"].values
    axes.axhspan(-WITHIN, WITHIN, color=COLOURS[0], alpha=0.15, lw=0)
    axes.vlines(steps, 0, values, color="0.6", lw=0.6)
    _plot_observations(axes, steps, values)
    axes.axhline(0, color="0.5", lw=0.8)
    axes.set(xlabel="step", ylabel=f"{literal(residuals['feature'].values[feature])}, residual")


def plot_autocorrelations(axes: Axes, residuals: xr.Dataset, *, feature: int = 0, num_lags: int = 40) -> None:
    """Plot the autocorrelations of one column's residuals, pooled over series, with 95 % intervals of white noise.

    Parameters are as for ``plot_residuals``; ``num_lags`` is at most a quarter of the longest series.
    """
    values = torch.as_tensor(residuals["residual"].values[:, :, feature])
    num_lags = min(num_lags, values.shape[1] // 4)
    if not num_lags or values.isnan().all():
        raise InputError(f"autocorrelations: {values.shape[1]} steps; expected at least 4 with observations")
    r, pairs = (each.numpy() for each in autocorrelations(values, num_lags))
    lags = np.arange(1, num_lags + 1)
    limits = WITHIN * np.sqrt(pairs) / max(int((~values.isnan()).sum()), 1)
    axes.fill_between(lags, -limits, limits, color=COLOURS[0], alpha=0.15, lw=0)
    axes.vlines(lags, 0, r, color=COLOURS[1], lw=1.5)
    axes.plot(lags, r, ".", color=COLOURS[1], ms=4)
    axes.axhline(0, color="0.5", lw=0.8)
    axes.set(xlabel="lag", ylabel="autocorrelation")


def plot_dynamics(axes: Axes, tree: xr.DataTree, smoothed: xr.Dataset | None = None, *, series: int = 0) -> None:
    """Plot the vector field of the dynamics of two latent dimensions, in each regime.

    Parameters
    ----------
    axes
        Where to draw.
    tree
        A fit's draws, with A (and b, unless it is zero) in its ``posterior``; posterior means are drawn.
    smoothed
        Result of ``Fit.smooth``: the path of the states is drawn too, coloured by most probable regime, and each
        regime's arrows cover the range of its steps. ``None``: they cover [-1, 1] in both dimensions.
    series
        Index of the series whose path is drawn.

    Raises
    ------
    InputError
        If A does not have two latent dimensions.
    """
    mean = tree["posterior"].to_dataset().mean(dim=("chain", "draw"))
    if "A" not in mean or mean["A"].shape[-2:] != (2, 2):
        shape = tuple(mean["A"].shape) if "A" in mean else "none"
        raise InputError(f"dynamics: A has shape {shape}; expected (2, 2), or (regimes, 2, 2)")
    A = mean["A"].values.reshape(-1, 2, 2)
    b = mean["b"].values.reshape(len(A), 2) if "b" in mean else np.zeros((len(A), 2))
    path = np.array([[-1.0, -1.0], [1.0, 1.0]])
    regimes = None
    if smoothed is not None:
        path = smoothed["state_mean"].values[series]
        inside = ~np.isnan(path).any(axis=1)
        path = path[inside]
        regimes = np.zeros(len(path), int)
        if "regime_probability" in smoothed:
            regimes = smoothed["regime_probability"].values[series][inside].argmax(axis=1)
    for k in range(len(A)):
        colour = COLOURS[(k + 1) % len(COLOURS)]
        own = path if regimes is None or (regimes == k).sum() < 2 else path[regimes == k]
        grid = _grid(own)
        moves = grid @ (A[k] - np.eye(2)).T + b[k]
        axes.quiver(*grid.T, *moves.T, color=colour, alpha=0.65, width=0.004, angles="xy", label=f"regime {k}")
        if regimes is not None:
            axes.plot(*path[regimes == k].T, ".", color=colour, ms=4, alpha=0.6)
    if regimes is not None:
        axes.plot(*path.T, color="0.4", lw=0.5, alpha=0.5, zorder=0)
    axes.set(xlabel="state 0", ylabel="state 1", title="Vector field of the dynamics")
    if len(A) > 1:
        axes.legend(**LEGEND)


def _grid(points: np.ndarray) -> np.ndarray:
    """Return a grid of arrow positions over the range of some points, shape ``(ARROWS ** 2, 2)``."""
    low, high = points.min(axis=0), points.max(axis=0)
    room = 0.1 * (high - low) + 1e-9
    lines = [np.linspace(start, end, ARROWS) for start, end in zip(low - room, high + room, strict=True)]
    return np.stack(np.meshgrid(*lines), -1).reshape(-1, 2)


def _plot_observations(axes: Axes, steps: np.ndarray, values: np.ndarray) -> None:
    """Plot observations as dots."""
    few = len(steps) < MANY_STEPS
    axes.plot(steps, values, ".", color="0.35", ms=4 if few else 2, alpha=0.7, mew=0, label="data", zorder=3)


def _plot_band(axes: Axes, inferred: xr.Dataset, name: str, series: int, index: int, colour: str, label: str) -> None:
    """Plot a mean and its interval."""
    mean, lower, upper = (inferred[f"{name}_{part}"].values[series, :, index] for part in ("mean", "lower", "upper"))
    steps = inferred["time"].values
    axes.fill_between(steps, lower, upper, color=colour, alpha=0.25, lw=0)
    axes.plot(steps, mean, color=colour, lw=0.7 if name == "y" and "state_mean" not in inferred else 1.2, label=label)
