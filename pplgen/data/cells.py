"""Cells of a table as numbers: what reads as one, and what stands for a missing one."""

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


def numeric_columns(
    given: Sequence[pd.Series], names: Sequence[str], num_rows: int, categorical: Sequence[str] = ()
) -> tuple[np.ndarray, dict[str, tuple[str, ...]]]:
    """Return columns as float64, shape ``(num_rows, num_columns)``, and what the words are in those that are coded.

    Null cells and words for missing are NaN; text in a ``categorical`` column is 0, 1, ..., in the order of the words.

    Raises
    ------
    InputError
        Where columns are text, most of their cells being no numbers, naming all of these; or a cell is, naming it.
    """
    matrix, first, text = np.empty((num_rows, len(given))), "", dict[str, str]()
    words = dict[str, tuple[str, ...]]()
    for j, (column, name) in enumerate(zip(given, names, strict=True)):
        matrix[:, j], wrong = _numbers(column)
        if not wrong:
            continue
        is_text = len(wrong) > num_rows - np.isnan(matrix[:, j]).sum()  # more than there are numbers
        if is_text and name in categorical:
            matrix[:, j], words[name] = _coded(column)
            continue
        row = wrong[0]
        told = f"{str(column.iloc[row])!r}"
        if is_text:
            text[name] = f"{name!r} ({told} in row {row + 1})"
        first = first or f"column {name!r}, row {row + 1}: {told} is not {_NUMBER}"
    if text:
        subject, hold, them = ("columns", "do", "them") if len(text) > 1 else ("column", "does", "it")
        raise InputError(
            f"{subject} {_listed(list(text.values()))} {hold} not hold numbers; leave {them} out with --ignore "
            f"{','.join(text)} (in Python ignore={list(text)}), or code categories 0, 1, 2, ..."
        )
    if first:
        raise InputError(first)
    return matrix, words


def _numbers(column: pd.Series) -> tuple[np.ndarray, list[int]]:
    """Return a column's numbers, NaN for all other cells, and the rows of those that are not missing."""
    if pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_complex_dtype(column.dtype):
        return column.to_numpy(dtype="float64", na_value=np.nan, copy=True), []
    numbers, wrong = np.full(len(column), np.nan), []
    for row, (cell, null) in enumerate(zip(column, column.isna(), strict=True)):
        if null or is_missing(cell):
            continue
        if is_number(cell):
            numbers[row] = float(cell)
        else:
            wrong.append(row)
    return numbers, wrong


def _coded(column: pd.Series) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return a column of words as 0, 1, ..., and the words in their order."""
    known = zip(column, column.isna(), strict=True)
    cells = [None if null or is_missing(cell) else str(cell).strip() for cell, null in known]
    words = tuple(sorted({cell for cell in cells if cell is not None}))
    places = {word: place for place, word in enumerate(words)}
    return np.array([np.nan if cell is None else places[cell] for cell in cells]), words


def _listed(words: list[str]) -> str:
    """Join words, the last by and; of many only the first few."""
    if len(words) > 6:
        words = [*words[:5], f"{len(words) - 5} others"]
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
