"""Figures of latent variables: map, reconstructions, traversals, interpolation, inpainting, anomaly scores."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from torch import Tensor

from pplgen.errors import InputError
from pplgen.plots.literal_text import literal
from pplgen.plots.palette import COLOURS

__all__ = [
    "MAX_LABELS",
    "plot_anomalies",
    "plot_inpainting",
    "plot_interpolation",
    "plot_latent_map",
    "plot_reconstructions",
    "plot_traversals",
]

MIN_SIDE = 5
"""Minimum side of an image in pixels; rows that are not square images are drawn as bars."""
GAP = 1
"""Pixels between images."""
MISSING = 0.55 * np.array(to_rgb(COLOURS[5])) + 0.45
"""Colour of missing pixels, distinct from every grey."""
MANY_ROWS, MAX_LABELS = 2000, 20
"""Number of rows from which points are drawn small, and maximum number of distinct labels."""


def plot_latent_map(axes: Axes, encoded: xr.Dataset, labels: Any = None, *, by: str = "variance") -> None:
    """Plot the latent means of rows in two dimensions, coloured by label.

    Parameters
    ----------
    axes
        Where to draw.
    encoded
        Result of ``Fit.encode``. A single latent dimension is drawn as a histogram.
    labels
        Integers or strings, one per row; -1 or None where unknown. ``None``: no colours.
    by
        ``variance``: the two latent dimensions of largest variance; ``pca``: the first two principal components.
    """
    if by not in ("variance", "pca"):
        raise InputError(f"by={by!r}: expected one of variance, pca")
    z = encoded["z"].values
    kinds, colours = _groups(labels, len(z))
    z, names = _two_dimensions(z, by)
    size = 5 if len(z) >= MANY_ROWS else 12
    for kind, rows, colour in zip(kinds, (colours == k for k in range(len(kinds))), _shades(kinds), strict=True):
        if z.shape[1] == 1:
            bins = np.histogram_bin_edges(z[:, 0], "auto")
            axes.hist(z[rows, 0], bins=list(bins), color=colour, alpha=0.6, label=literal(kind))
        else:
            axes.scatter(z[rows, 0], z[rows, 1], s=size, color=colour, alpha=0.6, linewidths=0, label=literal(kind))
    axes.set(xlabel=names[0], ylabel="rows" if z.shape[1] == 1 else names[1], title="Latent means of rows")
    if labels is not None:
        legend: dict[str, Any] = {
            "fontsize": "small",
            "frameon": False,
            "loc": "center left",
            "bbox_to_anchor": (1.0, 0.5),
        }
        axes.legend(**legend, handletextpad=0.2, markerscale=1.6)


def plot_reconstructions(axes: Axes, x: Tensor, reconstructed: Tensor, *, num: int | None = None) -> None:
    """Plot the first ``num`` rows above their reconstructions, both of shape ``(num_rows, num_features)``.

    ``None``: 24 images, or five rows as bars.
    """
    image = _side(x.shape[-1]) is not None
    num = min(len(x), (24 if image else 5) if num is None else num)
    per_line = min(num, 8 if image else 5)
    blank = np.full((-num % per_line, x.shape[-1]), np.inf)
    pairs = (np.concatenate([_array(rows)[:num], blank]) for rows in (x, reconstructed))
    lines = np.stack([rows.reshape(-1, per_line, x.shape[-1]) for rows in pairs], axis=1)
    _draw(axes, lines.reshape(-1, per_line, x.shape[-1]), ["row", "decoded"] * len(lines), [])
    axes.set_title("Rows and their reconstructions")


def plot_traversals(axes: Axes, traversed: xr.Dataset) -> None:
    """Plot the result of ``Fit.traverse``, one latent dimension per line."""
    levels = [f"{100 * level:.0f} %" for level in traversed["quantile"].values]
    _draw(axes, traversed["x"].values, [f"z[{d}]" for d in traversed["latent"].values], levels)
    axes.set(title="Each latent dimension over its quantiles, the others fixed")


def plot_interpolation(axes: Axes, interpolated: Tensor) -> None:
    """Plot the result of ``Fit.interpolate``, one pair of rows per line."""
    steps = _array(interpolated)
    _draw(axes, steps[None] if steps.ndim == 2 else steps.swapaxes(0, 1), [], [])
    axes.set_title("Interpolation between rows")


def plot_inpainting(axes: Axes, original: Tensor, masked: Tensor, imputed: Tensor, *, num: int = 8) -> None:
    """Plot rows, their observed entries, and up to ten imputations, one row per line.

    Parameters
    ----------
    axes
        Where to draw.
    original, masked
        Rows before and after entries were set to NaN, shape ``(num_rows, num_features)``.
    imputed
        Result of ``Fit.impute(masked)``.
    num
        Maximum number of rows.
    """
    cells = np.stack([_array(original), _array(masked), *_array(imputed)[:10]], axis=1)[:num]
    _draw(axes, cells, [], ["original", "observed", "draw 1", *(str(s) for s in range(2, cells.shape[1] - 1))])
    axes.set_title("Draws of missing entries given the observed ones")


def plot_anomalies(axes: Axes, scores: xr.Dataset) -> None:
    """Plot the scores returned by ``Fit.anomaly`` beside those of normal rows, and the threshold."""
    threshold, rate = float(scores["threshold"]), scores.attrs["rate"]
    score, normal = scores["score"].values, scores["normal_score"].values
    both = np.concatenate([score, normal])
    bins = np.histogram_bin_edges(both, min(60, max(10, int(math.sqrt(len(both))) * 2)))
    shared: dict[str, Any] = {"bins": bins, "density": True}
    axes.hist(normal, color="0.8", label=str(scores.attrs["calibrated_by"]), **shared)
    flagged = int(scores["flagged"].sum())
    label = f"rows: {flagged:,} of {len(score):,} flagged"
    axes.hist(score, histtype="step", color=COLOURS[0], lw=1.4, label=label, **shared)
    line = f"threshold {threshold:.4g}, false-alarm rate {100 * rate:g} %"
    axes.axvline(threshold, color=COLOURS[1], lw=1.2, ls="--", label=line)
    axes.set(xlabel="score: minus log density (nats)", ylabel="density (1/nat)", title="Anomaly scores")
    axes.set_ylim(top=1.3 * axes.get_ylim()[1])  # room for the legend
    axes.legend(fontsize="small", framealpha=0.85, edgecolor="none")


def _array(values: Any) -> np.ndarray:
    """Return numbers as an array."""
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _groups(labels: Any, num_rows: int) -> tuple[list[str], np.ndarray]:
    """Return the names of the label groups and each row's group index."""
    if labels is None:
        return ["rows"], np.zeros(num_rows, int)
    values = [None if value in (-1, None) else value for value in _array(labels).tolist()]
    if len(values) != num_rows:
        raise InputError(f"labels: {len(values)} for {num_rows} rows; expected one per row")
    known = sorted({value for value in values if value is not None}, key=lambda value: (str(type(value)), value))
    if len(known) > MAX_LABELS:
        raise InputError(f"labels: {len(known)} distinct values; expected at most {MAX_LABELS}, such as classes")
    kinds: list[Any] = [None, *known] if None in values else known
    places = {kind: place for place, kind in enumerate(kinds)}
    return ["unknown" if kind is None else str(kind) for kind in kinds], np.array([places[value] for value in values])


def _shades(kinds: list[str]) -> list[Any]:
    """Return a colour for each group: the palette's, then darker ones; grey if the label is unknown."""
    shades: list[Any] = []
    for kind in kinds:
        k = len(shades) - kinds.count("unknown")
        dark = 1 - 0.35 * (max(k, 0) // len(COLOURS))
        shades.append("0.8" if kind == "unknown" else tuple(dark * np.array(to_rgb(COLOURS[k % len(COLOURS)]))))
    return shades


def _two_dimensions(z: np.ndarray, by: str) -> tuple[np.ndarray, list[str]]:
    """Return at most two latent dimensions or principal components, and their names."""
    if by == "pca" and z.shape[1] > 1:
        centred = z - z.mean(axis=0)
        _, scale, directions = np.linalg.svd(centred, full_matrices=False)
        explained = scale**2 / (scale**2).sum()
        names = [f"principal component {c + 1}: {100 * explained[c]:.0f} %" for c in range(2)]
        return centred @ directions[:2].T, names
    widest = np.sort(np.argsort(-z.var(axis=0), kind="stable")[:2])
    return z[:, widest], [f"z[{d}]" for d in widest]


def _side(num_features: int) -> int | None:
    """Return the side in pixels of rows that are square images, else ``None``."""
    side = math.isqrt(num_features)
    return side if side >= MIN_SIDE and side * side == num_features else None


def _draw(axes: Axes, cells: np.ndarray, lines: list[str], columns: list[str]) -> None:
    """Draw rows in a grid, ``cells`` of shape ``(lines, columns, num_features)``: square images, else bars.

    NaN is a missing entry, infinity an empty cell.
    """
    side = _side(cells.shape[-1])
    height, width = _draw_bars(axes, cells) if side is None else _draw_images(axes, cells, side)
    axes.set_frame_on(False)
    axes.tick_params(length=0, labelsize="small", labeltop=True, labelbottom=False)
    axes.set_yticks((np.arange(len(lines)) + 0.5) * height, list(map(literal, lines)))
    axes.set_xticks((np.arange(len(columns)) + 0.5) * width, list(map(literal, columns)))
    if len(columns) > 6:
        axes.tick_params(axis="x", labelsize="x-small")


def _draw_images(axes: Axes, cells: np.ndarray, side: int) -> tuple[float, float]:
    """Draw images black on white on one grey scale; return the height and width of a cell."""
    lines, columns, _ = cells.shape
    finite = cells[np.isfinite(cells)]
    low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 1.0)
    shade = 1 - (np.where(np.isinf(cells), low, cells) - low) / (high - low or 1.0)
    colour = np.where(np.isnan(shade)[..., None], MISSING, np.nan_to_num(shade)[..., None])
    whole = np.ones((lines, side + GAP, columns, side + GAP, 3))
    whole[:, :side, :, :side] = colour.reshape(lines, columns, side, side, 3).transpose(0, 2, 1, 3, 4)
    whole[:, side:] = whole[:, :, :, side:] = 0.88
    whole = whole.reshape(lines * (side + GAP), columns * (side + GAP), 3)[:-GAP, :-GAP]
    axes.imshow(whole, extent=(0, whole.shape[1], whole.shape[0], 0), interpolation="nearest")
    return side + GAP, side + GAP


def _draw_bars(axes: Axes, cells: np.ndarray) -> tuple[float, float]:
    """Draw each row as bars around zero, each feature on its own scale; return the height and width of a cell."""
    lines, columns, num_features = cells.shape
    blank = np.isinf(cells)
    cells = np.where(blank, 0.0, cells)
    scale = np.nanmax(np.abs(cells), axis=(0, 1), initial=1e-12)
    relative = cells / scale
    positive = np.nanmin(relative, initial=0.0) >= 0
    places = np.arange(num_features) / (1.15 * num_features)
    for line in range(lines):
        base = line + (0.95 if positive else 0.5)
        for column in range(columns):
            colour = COLOURS[0] if column % 2 == 0 else COLOURS[5]
            heights = np.nan_to_num(relative[line, column]) * (0.85 if positive else 0.42)
            axes.bar(column + places, -heights, 0.8 / (1.15 * num_features), base, align="edge", color=colour)
            missing = np.isnan(relative[line, column])
            axes.plot(column + places[missing], np.full(missing.sum(), base), ".", color=COLOURS[1], ms=3)
        axes.axhline(base, color="0.8", lw=0.6, zorder=0)
    axes.set(xlim=(-0.02, columns), ylim=(lines, 0))
    return 1.0, 1.0
