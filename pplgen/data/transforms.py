"""Tables made of tables: another scale, black and white for grey, entries removed. NaN is a missing entry."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pplgen.data.columns import unnamed_columns
from pplgen.data.readers import image_shape
from pplgen.data.table import Table, load_data
from pplgen.errors import InputError

__all__ = ["binarise", "keep_every", "mask_entries", "mask_top", "redraw_pixels", "rescale"]


def rescale(data: Any, low: float | None = None, high: float | None = None) -> Table:
    """Map ``low`` to 0 and ``high`` to 1, and all values with them.

    Parameters
    ----------
    data
        Whatever ``load_data`` takes.
    low, high
        Such as 0 and 255 for grey values in bytes. ``None``: the least and the greatest value of all; give numbers
        where several tables are to have one scale.

    Raises
    ------
    InputError
        Where ``high`` is not above ``low``.
    """
    table = load_data(data)
    seen = table.values[~table.values.isnan()]
    low = _bound("low", seen.min() if low is None and len(seen) else low)
    high = _bound("high", seen.max() if high is None and len(seen) else high)
    if high <= low:
        raise InputError(f"low={low:g}, high={high:g}: expected the second above the first")
    return replace(table, values=(table.values - low) / (high - low))


def binarise(data: Any, *, threshold: float | None = None, seed: int = 0) -> Table:
    """Make each pixel 0 or 1, once and for all.

    Parameters
    ----------
    data
        Grey values from 0 to 1, as ``load_data`` takes them.
    threshold
        Pixels above it become 1. ``None``: a pixel becomes 1 with its own value as the probability, as in
        Salakhutdinov and Murray (2008).
    seed
        Of these draws.

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
        place = f"column {table.columns[j]!r}, row {row + 1}: {x[row, j]:g} is no grey value"
        raise InputError(f"{place}; expected numbers from 0 to 1, as pplgen.rescale gives")
    level = _uniform(x, seed) if threshold is None else threshold
    return replace(table, values=torch.where(x.isnan(), x, (x > level).to(x.dtype)))


def redraw_pixels(x: Tensor) -> Tensor:
    """Make each pixel 1 with its own value as the probability, else 0, from torch's generator; NaN stays.

    Done to each batch anew, it is what is called dynamic binarisation (Burda, Grosse and Salakhutdinov 2016).

    Parameters
    ----------
    x
        Grey values from 0 to 1, of any shape.
    """
    return torch.where(x.isnan(), x, (torch.rand_like(x) < x).to(x.dtype))


def mask_entries(data: Any, share: float, *, seed: int = 0) -> Table:
    """Remove entries at random, each with probability ``share``, whatever its value and whatever the others."""
    table = load_data(data)
    if not 0 <= share < 1:
        raise InputError(f"share={share!r}: expected a number from 0 to 1, 1 left out")
    return _without(table, _uniform(table.values, seed) < share)


def mask_top(data: Any, share: float = 0.5, *, shape: tuple[int, int] | None = None) -> Table:
    """Remove the upper part of pictures, for inpainting.

    Parameters
    ----------
    data
        Pictures, row by row in a row's columns, as ``load_data`` takes them.
    share
        How much of the height goes, rounded to whole rows of pixels.
    shape
        Height and width. ``None``: told by columns ``pixel_0_0``, ``pixel_0_1``, ...; those of square pictures may be
        without names.
    """
    table = load_data(data)
    if not 0 <= share <= 1:
        raise InputError(f"share={share!r}: expected a number from 0 to 1")
    height, width = _shape(table, shape)
    gap = torch.zeros(height, width, dtype=torch.bool)
    gap[: round(share * height)] = True
    return _without(table, gap.flatten())


def keep_every(data: Any, step: int = 2, *, shape: tuple[int, int] | None = None) -> Table:
    """Keep every ``step``-th pixel of pictures in height and in width and remove the others, for super-resolution.

    ``data`` and ``shape`` as for ``mask_top``.
    """
    table = load_data(data)
    if isinstance(step, bool) or not isinstance(step, int) or step < 1:
        raise InputError(f"step={step!r}: expected a whole number of at least 1")
    gap = torch.ones(_shape(table, shape), dtype=torch.bool)
    gap[::step, ::step] = False
    return _without(table, gap.flatten())


def _bound(name: str, value: Any) -> float:
    """Return an end of a scale."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{name}={value!r}: expected a finite number")
    return number


def _without(table: Table, gap: Tensor) -> Table:
    """Remove entries."""
    return replace(table, values=table.values.masked_fill(gap, torch.nan))


def _uniform(x: Tensor, seed: int) -> Tensor:
    """Draw a number from [0, 1) for each entry, leaving torch's own generator alone."""
    return torch.rand(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)


def _shape(table: Table, given: tuple[int, int] | None) -> tuple[int, int]:
    """Return height and width of a table's pictures."""
    number = len(table.columns)
    if given is not None:
        height, width = given
        if height < 1 or width < 1 or height * width != number:
            raise InputError(f"shape={tuple(given)!r}: expected height and width of {number} pixels")
        return height, width
    side = math.isqrt(number)
    square = (side, side) if side * side == number and table.columns == unnamed_columns(number) else None
    shape = image_shape(table.columns) or square
    if shape is None:
        raise InputError(f"{table.name}: its {number} columns do not tell height and width of pictures; give shape")
    return shape
