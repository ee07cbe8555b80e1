"""Checks that training data undergo: enough rows, observed values, and a warning about constant columns."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from pplgen.data.fingerprint import CHUNK_ROWS
from pplgen.data.readers import image_shape
from pplgen.data.table import Table
from pplgen.errors import DataWarning, InputError

__all__ = ["check_training_columns", "check_training_series", "check_training_table", "column_ranges"]


def check_training_table(table: Table) -> None:
    """Raise ``InputError`` for a single row or columns without values; warn of constant columns.

    Constant pixels are the margins of images and cause no warning.
    """
    check_training_columns(table.name, len(table), table.columns, *column_ranges(table.values))


def check_training_series(table: Table) -> None:
    """Raise ``InputError`` for a single step or columns without values; warn of constant columns."""
    ranges = column_ranges(table.values.flatten(0, 1))
    check_training_columns(table.name, table.values.shape[1], table.columns, *ranges, unit="step")


def column_ranges(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return each column's minimum and maximum, inf and -inf for none, given rows ``(num_rows, num_features)``."""
    chunks = values.split(CHUNK_ROWS)
    low = torch.stack([torch.where(chunk.isnan(), torch.inf, chunk).amin(dim=0) for chunk in chunks])
    high = torch.stack([torch.where(chunk.isnan(), -torch.inf, chunk).amax(dim=0) for chunk in chunks])
    return low.amin(dim=0), high.amax(dim=0)


def check_training_columns(
    name: str, num_rows: int, columns: Sequence[str], low: Tensor, high: Tensor, *, unit: str = "row"
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
    if constant and image_shape(columns) is None:
        others = f", and so are {len(constant) - 1} others" if len(constant) > 1 else ""
        message = f"{constant[0]}{others}: it carries no information; consider leaving it out"
        warnings.warn(message, DataWarning, stacklevel=4)
