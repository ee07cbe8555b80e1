"""Transform tables: rescale, binarise, mask entries. NaN is a missing entry."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pplgen.data.columns import image_shape, unnamed_columns
from pplgen.data.table import Table, load_data
from pplgen.errors import InputError

__all__ = ["binarise", "keep_every", "mask_entries", "mask_top", "redraw_pixels", "rescale"]


def rescale(data: Any, low: float | None = None, high: float | None = None) -> Table:
    """Rescale all values linearly, mapping ``low`` to 0 and ``high`` to 1.

    Parameters
    ----------
    data
        Any source of ``load_data``.
    low, high
        Values to map to 0 and 1, such as 0 and 255 for 8-bit grey values. ``None``: minimum and maximum of all values;
        give numbers to apply the same scale to several tables.

    Raises
    ------
    InputError
        Where ``high`` is not above ``low``.
    """
    table = load_data(data)
    observed = table.values[~table.values.isnan()]
    low = _as_bound("low", observed.min() if low is None and len(observed) else low)
    high = _as_bound("high", observed.max() if high is None and len(observed) else high)
    if high <= low:
        raise InputError(f"low={low:g}, high={high:g}: expected high > low")
    return replace(table, values=(table.values - low) / (high - low))


def binarise(data: Any, *, threshold: float | None = None, seed: int = 0) -> Table:
    """Binarise each pixel once (static binarisation).

    Parameters
    ----------
    data
        Grey values from 0 to 1, any source of ``load_data``.
    threshold
        Pixels above it become 1. ``None``: a pixel is drawn from the Bernoulli distribution whose probability is its
        value, as in Salakhutdinov and Murray (2008).
    seed
        Seed of the Bernoulli draws.

    Raises
    ------
    InputError
        Where a value is outside of [0, 1].
    """
    table = load_data(data)
    x = table.values
    outside = torch.argwhere((x < 0) | (x > 1))
    if len(outside):
        row, j = outside[0].tolist()
        cell = f"column {table.columns[j]!r}, row {row + 1}: {x[row, j]:g} is not a grey value"
        raise InputError(f"{cell}; expected numbers from 0 to 1, as pplgen.rescale returns")
    level = _uniform(x, seed) if threshold is None else threshold
    return replace(table, values=torch.where(x.isnan(), x, (x > level).to(x.dtype)))


def redraw_pixels(x: Tensor) -> Tensor:
    """Draw each pixel from a Bernoulli distribution whose probability is its value, with torch's generator; NaN stays.

    Applied to each batch, this is dynamic binarisation (Burda, Grosse and Salakhutdinov 2016).

    Parameters
    ----------
    x
        Grey values from 0 to 1, of any shape.
    """
    return torch.where(x.isnan(), x, (torch.rand_like(x) < x).to(x.dtype))


def mask_entries(data: Any, share: float, *, seed: int = 0) -> Table:
    """Remove entries completely at random, each independently with probability ``share``."""
    table = load_data(data)
    if not 0 <= share < 1:
        raise InputError(f"share={share!r}: expected a number in [0, 1)")
    return _mask(table, _uniform(table.values, seed) < share)


def mask_top(data: Any, share: float = 0.5, *, shape: tuple[int, int] | None = None) -> Table:
    """Remove the upper part of images, for inpainting.

    Parameters
    ----------
    data
        One image per row, pixels in row-major order; any source of ``load_data``.
    share
        Fraction of the height to remove, rounded to whole rows of pixels.
    shape
        Height and width of the images. ``None``: inferred from columns ``pixel_0_0``, ``pixel_0_1``, ...; square
        images may have default column names.
    """
    table = load_data(data)
    if not 0 <= share <= 1:
        raise InputError(f"share={share!r}: expected a number in [0, 1]")
    height, width = _height_and_width(table, shape)
    removed = torch.zeros(height, width, dtype=torch.bool)
    removed[: round(share * height)] = True
    return _mask(table, removed.flatten())


def keep_every(data: Any, step: int = 2, *, shape: tuple[int, int] | None = None) -> Table:
    """Keep every ``step``-th pixel of images in height and width and remove the others, for super-resolution.

    ``data`` and ``shape`` as for ``mask_top``.
    """
    table = load_data(data)
    if isinstance(step, bool) or not isinstance(step, int) or step < 1:
        raise InputError(f"step={step!r}: expected a whole number of at least 1")
    removed = torch.ones(_height_and_width(table, shape), dtype=torch.bool)
    removed[::step, ::step] = False
    return _mask(table, removed.flatten())


def _as_bound(name: str, value: Any) -> float:
    """Convert a bound to a finite float."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{name}={value!r}: expected a finite number")
    return number


def _mask(table: Table, removed: Tensor) -> Table:
    """Replace entries by NaN."""
    return replace(table, values=table.values.masked_fill(removed, torch.nan))


def _uniform(x: Tensor, seed: int) -> Tensor:
    """Draw from the uniform distribution on [0, 1) for each entry, without using torch's global generator."""
    return torch.rand(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)


def _height_and_width(table: Table, shape: tuple[int, int] | None) -> tuple[int, int]:
    """Return height and width of a table's images."""
    number = len(table.columns)
    if shape is not None:
        height, width = shape
        if height < 1 or width < 1 or height * width != number:
            raise InputError(f"shape={tuple(shape)!r}: expected height and width of {number} pixels")
        return height, width
    side = math.isqrt(number)
    square = (side, side) if side * side == number and table.columns == unnamed_columns(number) else None
    inferred = image_shape(table.columns) or square
    if inferred is None:
        raise InputError(f"{table.name}: its {number} columns do not determine height and width of images; give shape")
    return inferred
