"""Checks that training data undergo: enough rows, observed values, and a warning about constant columns."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from pplgen.data.columns import image_shape
from pplgen.data.fingerprint import CHUNK_ROWS
from pplgen.data.table import Table
from pplgen.data.tensors import SCALES, WIDER, in_range
from pplgen.errors import DataWarning, InputError

__all__ = ["check_training_columns", "check_training_series", "check_training_table", "column_ranges"]

SENTINELS = frozenset(sign * (10**digits - 1) for digits in range(2, 8) for sign in (-1.0, 1.0))
"""Numbers that often mark a missing value: 99, 999, ... and -99, -999, ..."""

GAP = 3.0
"""Distance from all other values, in units of their range, beyond which such a number is suspect."""


def check_training_table(table: Table) -> None:
    """Raise ``InputError`` for a single row or columns without values; warn of constant columns.

    Constant pixels are the margins of images and cause no warning.
    """
    ranges = column_ranges(table.values)
    check_training_columns(table.name, len(table), table.columns, *ranges, table.values.dtype)
    _warn_of_sentinels(table.values, table.columns, *ranges)


def check_training_series(table: Table) -> None:
    """Raise ``InputError`` for a single step or columns without values; warn of constant columns."""
    steps = table.values.flatten(0, 1)
    ranges = column_ranges(steps)
    check_training_columns(table.name, table.values.shape[1], table.columns, *ranges, steps.dtype, unit="step")
    _warn_of_sentinels(steps, table.columns, *ranges)


def column_ranges(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return each column's minimum and maximum, inf and -inf for none, given rows ``(num_rows, num_features)``."""
    chunks = values.split(CHUNK_ROWS)
    low = torch.stack([torch.where(chunk.isnan(), torch.inf, chunk).amin(dim=0) for chunk in chunks])
    high = torch.stack([torch.where(chunk.isnan(), -torch.inf, chunk).amax(dim=0) for chunk in chunks])
    return low.amin(dim=0), high.amax(dim=0)


def check_training_columns(
    name: str,
    num_rows: int,
    columns: Sequence[str],
    low: Tensor,
    high: Tensor,
    dtype: torch.dtype,
    *,
    unit: str = "row",
) -> None:
    """Check as ``check_training_table`` does, given the output of ``column_ranges``."""
    if num_rows < 2:
        raise InputError(f"{name}: 1 {unit} is too few to train on; give at least 2")
    constant = []
    for column, minimum, maximum in zip(columns, low.tolist(), high.tolist(), strict=True):
        if minimum > maximum:
            raise InputError(f"column {column!r} has no observed value in {num_rows} {unit}s; leave the column out")
        if minimum == maximum:
            constant.append(f"column {column!r} is constant ({minimum:g})")
        if not in_range(maximum - minimum, dtype):
            message = f"column {column!r} has a range of {maximum - minimum:g}; expected one from {_in_words(dtype)}"
            raise InputError(f"{message}: give it in another unit" + f", or with {WIDER}" * (dtype is torch.float32))
    if constant and image_shape(columns) is None:
        others = f", and so are {len(constant) - 1} others" if len(constant) > 1 else ""
        message = f"{constant[0]}{others}: it carries no information; consider leaving it out"
        warnings.warn(message, DataWarning, stacklevel=4)


def _in_words(dtype: torch.dtype) -> str:
    low, high = SCALES[dtype]
    return f"{low:g} to {high:g} in {dtype}"


def _warn_of_sentinels(values: Tensor, columns: Sequence[str], low: Tensor, high: Tensor) -> None:
    """Warn of a number of nines, such as -999, far from all other values of its column, given rows and their ranges.

    Files of many fields mark missing values by such numbers.
    """
    for column, cells, *ends in zip(columns, values.T, low.tolist(), high.tolist(), strict=True):
        for number in SENTINELS.intersection(ends):
            others = cells[(cells != number) & ~cells.isnan()]
            if not len(others):
                continue
            least, most = others.min().item(), others.max().item()
            if min(abs(number - least), abs(number - most)) > GAP * (most - least):
                count = int((cells == number).sum())
                times = "once" if count == 1 else f"{count} times"
                message = (
                    f"column {column!r}: {number:g} occurs {times}, and other values are from {least:g} to {most:g}"
                )
                warnings.warn(f"{message}; if it marks missing values, write NA instead", DataWarning, stacklevel=5)
