"""Cells of a table as numbers: what reads as one, and what stands for a missing one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from pplgen.errors import InputError

__all__ = ["MISSING", "is_missing", "is_number", "numeric_column"]

MISSING = frozenset(
    ["", ".", "NA", "N/A", "n/a", "#N/A", "#NA", "<NA>", "NaN", "nan", "NAN", "-nan", "-NaN", "NULL", "null"]
)
"""Words for a missing cell, spaces around them left out: those of R, SAS, spreadsheets, data bases and pandas."""

_NUMBER = "a number; leave it empty, or write NA, for missing"


def is_missing(cell: Any) -> bool:
    """Whether a cell of text says that its value is missing."""
    return isinstance(cell, str) and cell.strip() in MISSING


def is_number(cell: Any) -> bool:
    """Whether a cell reads as a number; words for missing do not, and 1_000 does not."""
    try:
        return "_" not in str(cell) and not np.isnan(float(cell))
    except (TypeError, ValueError):
        return False


def numeric_column(column: pd.Series, name: str) -> np.ndarray:
    """Return a column as float64; null cells and words for missing are NaN.

    Raises
    ------
    InputError
        Where a cell is neither, naming the first.
    """
    if pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_complex_dtype(column.dtype):
        return column.to_numpy(dtype="float64", na_value=np.nan, copy=True)
    numbers = np.full(len(column), np.nan)
    for row, (cell, null) in enumerate(zip(column, column.isna(), strict=True)):
        if not (null or is_missing(cell)):
            if not is_number(cell):
                raise InputError(f"column {name!r}, row {row + 1}: {str(cell)!r} is not {_NUMBER}")
            numbers[row] = float(cell)
    return numbers
