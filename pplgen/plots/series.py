"""The pictures of series: signal and states with intervals, regimes as bands, forecasts, dynamics as arrows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from torch import Tensor

from pplgen.errors import InputError
from pplgen.plots.palette import COLOURS

__all__ = ["plot_dynamics", "plot_forecast", "plot_regimes", "plot_series", "plot_states"]

STRENGTH = 0.28
"""How much of its colour a certain regime lends the background."""
FAN = {0.9: 0.2, 0.8: 0.35, 0.5: 0.55}
"""Probabilities of the bands of a forecast and how strong their colour is; without draws that were kept, the first."""
LEGEND: dict[str, Any] = {"fontsize": "small", "loc": "upper left", "framealpha": 0.85, "edgecolor": "none"}
"""Of every picture: legible before bands."""
ARROWS = 14
"""Arrows along each axis of a field."""
MANY = 500
"""Steps from which on observations are drawn small."""


def plot_series(axes: Axes, y: Tensor, found: xr.Dataset, *, series: int = 0, feature: int = 0) -> None:
    """Draw one column of a series with what was found of it.

    Parameters
    ----------
    axes
        Where to draw.
    y
        The series, NaN where missing, shape ``(num_series, num_steps, num_features)``.
    found
        What ``Fit.smooth`` or ``Fit.filter`` returned: the signal and its interval are drawn where it has them, and
        the probabilities of regimes as bands behind them.
    series, feature
        Which, counted from 0.
    """
    values = y[series, :, feature].cpu().numpy()
    steps = np.arange(len(values))
    name = str(found["feature"].values[feature]) if "feature" in found.coords else f"x{feature}"
    _plot_seen(axes, steps, values)
    if "y_mean" in found:
        hidden = "state_mean" not in found
        _plot_band(axes, found, "y", series, feature, COLOURS[0], "filled in" if hidden else "signal, 90 %")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.15 * (high - low))  # room for the legend
    if "regime_probability" in found:
        plot_regimes(axes, found, series=series)
    axes.set(xlabel="step", ylabel=name)
    axes.legend(**LEGEND, ncols=4)


def plot_states(axes: Axes, found: xr.Dataset, *, series: int = 0, states: Sequence[int] | None = None) -> None:
    """Draw the means of a series' states with their 90 % intervals, all states unless told which."""
    for j in range(found.sizes["state"]) if states is None else states:
        _plot_band(axes, found, "state", series, j, COLOURS[j % len(COLOURS)], f"state {j}")
    axes.set(xlabel="step", ylabel="state, 90 %")
    axes.legend(**LEGEND, ncols=4)


def plot_regimes(axes: Axes, found: xr.Dataset, *, series: int = 0) -> None:
    """Shade the background of a series by the probabilities of its regimes, their colours mixed in proportion."""
    shares = found["regime_probability"].values[series]
    colours = np.array([to_rgb(COLOURS[(k + 1) % len(COLOURS)]) for k in range(shares.shape[1])])
    shade = 1 - STRENGTH * (1 - np.nan_to_num(shares) @ colours) * ~np.isnan(shares).any(axis=1, keepdims=True)
    steps = found["time"].values
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
        face = 1 - STRENGTH * (1 - colour)
        axes.fill_between([np.nan], [np.nan], [np.nan], color=face, lw=0, label=f"regime {k}")
    axes.set(xlim=limits[0], ylim=limits[1])


def plot_forecast(
    axes: Axes, y: Tensor, forecast: xr.Dataset, *, series: int = 0, feature: int = 0, past: int | None = None
) -> None:
    """Draw a series and its forecast: the mean, and bands that hold 90 % or, with ``keep_draws``, also 50 and 80 %.

    Parameters
    ----------
    axes
        Where to draw.
    y
        The series that was forecast, shape ``(num_series, num_steps, num_features)``.
    forecast
        What ``Fit.forecast`` returned.
    series, feature
        Which, counted from 0.
    past
        Steps of the past to show; four times the horizon where not given.
    """
    ahead = forecast["step"].values[series]
    past = 4 * len(ahead) if past is None else past
    values = y[series, : ahead[0], feature].cpu().numpy()[-past:]
    steps = np.arange(ahead[0] - len(values), ahead[0])
    _plot_seen(axes, steps, values)
    kept = "y_draw" in forecast
    for mass, strength in FAN.items() if kept else [next(iter(FAN.items()))]:
        if kept:
            draws = forecast["y_draw"].values[:, series, :, feature]
            lower, upper = np.quantile(draws, [(1 - mass) / 2, (1 + mass) / 2], axis=0)
        else:
            lower, upper = (forecast[f"y_{end}"].values[series, :, feature] for end in ("lower", "upper"))
        face = 1 - strength * (1 - np.array(to_rgb(COLOURS[1])))
        axes.fill_between(ahead, lower, upper, color=face, lw=0, label=f"{100 * mass:.0f} %")
    axes.plot(ahead, forecast["y_mean"].values[series, :, feature], color=COLOURS[1], label="mean of the forecast")
    axes.axvline(ahead[0] - 0.5, color="0.5", lw=0.8, ls="--")
    axes.set(xlabel="step", ylabel=str(forecast["feature"].values[feature]))
    axes.legend(**LEGEND)


def plot_dynamics(axes: Axes, tree: xr.DataTree, found: xr.Dataset | None = None, *, series: int = 0) -> None:
    """Draw where the dynamics of two latent dimensions lead, in each regime.

    Parameters
    ----------
    axes
        Where to draw.
    tree
        A fit's draws, with A (and b, unless it is zero) in its ``posterior``; their means are drawn.
    found
        What ``Fit.smooth`` returned: the path of the states is drawn too, in the colours of its likeliest regimes, and
        each regime's arrows are drawn where its own steps are. Without it they cover a square around 0.
    series
        Whose path, counted from 0.

    Raises
    ------
    InputError
        Where there is no A of two latent dimensions.
    """
    mean = tree["posterior"].to_dataset().mean(dim=("chain", "draw"))
    if "A" not in mean or mean["A"].shape[-2:] != (2, 2):
        shape = tuple(mean["A"].shape) if "A" in mean else "none"
        raise InputError(f"dynamics: A has shape {shape}; expected (2, 2), or (regimes, 2, 2)")
    A = mean["A"].values.reshape(-1, 2, 2)
    b = mean["b"].values.reshape(len(A), 2) if "b" in mean else np.zeros((len(A), 2))
    path = np.array([[-1.0, -1.0], [1.0, 1.0]])
    regimes = None
    if found is not None:
        path = found["state_mean"].values[series]
        inside = ~np.isnan(path).any(axis=1)
        path = path[inside]
        regimes = np.zeros(len(path), int)
        if "regime_probability" in found:
            regimes = found["regime_probability"].values[series][inside].argmax(axis=1)
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
    axes.set(xlabel="state 0", ylabel="state 1", title="Where the dynamics lead")
    if len(A) > 1:
        axes.legend(**LEGEND)


def _grid(points: np.ndarray) -> np.ndarray:
    """Places of arrows over the range of some points, shape ``(ARROWS ** 2, 2)``."""
    low, high = points.min(axis=0), points.max(axis=0)
    room = 0.1 * (high - low) + 1e-9
    lines = [np.linspace(start, end, ARROWS) for start, end in zip(low - room, high + room, strict=True)]
    return np.stack(np.meshgrid(*lines), -1).reshape(-1, 2)


def _plot_seen(axes: Axes, steps: np.ndarray, values: np.ndarray) -> None:
    """Draw observations as dots."""
    few = len(steps) < MANY
    axes.plot(steps, values, ".", color="0.35", ms=4 if few else 2, alpha=0.7, mew=0, label="data", zorder=3)


def _plot_band(axes: Axes, found: xr.Dataset, name: str, series: int, place: int, colour: str, label: str) -> None:
    """Draw a mean and its interval."""
    mean, lower, upper = (found[f"{name}_{part}"].values[series, :, place] for part in ("mean", "lower", "upper"))
    steps = found["time"].values
    axes.fill_between(steps, lower, upper, color=colour, alpha=0.25, lw=0)
    axes.plot(steps, mean, color=colour, lw=0.7 if name == "y" and "state_mean" not in found else 1.2, label=label)
