"""Parse table cells as numbers; markers of missing values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from pplgen.errors import InputError

__all__ = ["MISSING", "is_missing", "is_number", "numeric_columns"]

MISSING = frozenset(
    ["", ".", "NA", "N/A", "n/a", "#N/A", "#NA", "<NA>", "NaN", "nan", "NAN", "-nan", "-NaN", "NULL", "null"]
)
"""Markers of a missing cell, without surrounding spaces: those of R, SAS, spreadsheets, databases and pandas."""

_NUMBER = "a number; leave it empty, or write NA, for missing"


def is_missing(cell: Any) -> bool:
    """Whether a text cell marks a missing value."""
    return isinstance(cell, str) and cell.strip() in MISSING


def is_number(cell: Any) -> bool:
    """Whether a cell can be parsed as a number; missing-value markers and 1_000 cannot."""
    try:
        return "_" not in str(cell) and not np.isnan(float(cell))
    except (TypeError, ValueError):
        return False


def numeric_columns(
    columns: Sequence[pd.Series], names: Sequence[str], num_rows: int, categorical: Sequence[str] = ()
) -> tuple[np.ndarray, dict[str, tuple[str, ...]]]:
    """Return columns as float64, shape ``(num_rows, num_columns)``, and the categories of those encoded from text.

    Null cells and missing-value markers become NaN; text in a ``categorical`` column is encoded as 0, 1, ... in
    alphabetical order.

    Raises
    ------
    InputError
        Where columns are mostly text, naming all of them; or where a single cell is not a number, naming it.
    """
    matrix, first, text = np.empty((num_rows, len(columns))), "", dict[str, str]()
    categories = dict[str, tuple[str, ...]]()
    for j, (column, name) in enumerate(zip(columns, names, strict=True)):
        matrix[:, j], invalid = _numbers(column)
        if not invalid:
            continue
        is_text = len(invalid) > num_rows - np.isnan(matrix[:, j]).sum()  # more than there are numbers
        if is_text and name in categorical:
            matrix[:, j], categories[name] = _encode(column)
            continue
        row = invalid[0]
        cell = f"{str(column.iloc[row])!r}"
        if is_text:
            text[name] = f"{name!r} ({cell} in row {row + 1})"
        first = first or f"column {name!r}, row {row + 1}: {cell} is not {_NUMBER}"
    if text:
        subject, hold, them = ("columns", "do", "them") if len(text) > 1 else ("column", "does", "it")
        raise InputError(
            f"{subject} {_join_words(list(text.values()))} {hold} not hold numbers; leave {them} out with --ignore "
            f"{','.join(text)} (in Python ignore={list(text)}), or encode categories as 0, 1, 2, ..."
        )
    if first:
        raise InputError(first)
    return matrix, categories


def _numbers(column: pd.Series) -> tuple[np.ndarray, list[int]]:
    """Return a column's numbers, NaN elsewhere, and the rows of cells that are neither numbers nor missing."""
    if pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_complex_dtype(column.dtype):
        return column.to_numpy(dtype="float64", na_value=np.nan, copy=True), []
    numbers, invalid = np.full(len(column), np.nan), []
    for row, (cell, null) in enumerate(zip(column, column.isna(), strict=True)):
        if null or is_missing(cell):
            continue
        if is_number(cell):
            numbers[row] = float(cell)
        else:
            invalid.append(row)
    return numbers, invalid


def _encode(column: pd.Series) -> tuple[np.ndarray, tuple[str, ...]]:
    """Encode a text column as 0, 1, ...; return the codes and the sorted categories."""
    nullable = zip(column, column.isna(), strict=True)
    cells = [None if null or is_missing(cell) else str(cell).strip() for cell, null in nullable]
    categories = tuple(sorted({cell for cell in cells if cell is not None}))
    codes = {category: code for code, category in enumerate(categories)}
    return np.array([np.nan if cell is None else codes[cell] for cell in cells]), categories


def _join_words(words: list[str]) -> str:
    """Join words with commas and a final "and"; long lists are abbreviated."""
    if len(words) > 6:
        words = [*words[:5], f"{len(words) - 5} others"]
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
