"""Convert data frames and arrays to a float64 matrix with named columns; errors name column and row."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from torch import Tensor

from pplgen.data.cell_parsing import numeric_columns
from pplgen.data.columns import ALL_COLUMNS, ColumnSelection, unnamed_columns
from pplgen.data.objects import as_frame, as_pandas, refuse_sparse
from pplgen.errors import DataWarning, InputError

__all__ = [
    "Columns",
    "as_matrix",
    "check_names",
    "drop_row_counter",
    "from_array",
    "from_frame",
    "from_object",
    "from_selected",
    "selected_array",
    "selected_matrix",
]


class Columns(NamedTuple):
    """A matrix with column names."""

    matrix: np.ndarray
    """float64, shape ``(num_rows, num_features)``; NaN means missing."""
    names: tuple[str, ...]
    categories: Mapping[str, tuple[str, ...]]
    """Categories 0, 1, ... of each column that was text."""
    carried: pd.DataFrame | None = None
    """Columns that are no data, such as identifiers, beside their rows."""


def from_object(source: Any, selection: ColumnSelection = ALL_COLUMNS) -> Columns:
    """Convert anything in memory: a data frame of any library, named columns, records, an array or lists."""
    frame = as_frame(source)
    if frame is not None:
        return from_frame(frame, selection)
    return selected_array(source, "the array", selection)


def selected_array(source: Any, where: str, selection: ColumnSelection) -> Columns:
    """Select columns of an array, named x0, x1, ..."""
    return selected_matrix(*from_array(source, where), selection)


def selected_matrix(matrix: np.ndarray, names: tuple[str, ...], selection: ColumnSelection) -> Columns:
    """Select columns of a matrix with named columns."""
    carried = selection.carried_indices(names)
    rest = pd.DataFrame(matrix[:, carried], columns=[names[j] for j in carried]) if carried else None
    return Columns(*selection.select_matrix(matrix, names), {}, rest)


def from_array(source: Any, where: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Convert an array or tensor with one or two axes; columns are named x0, x1, ...; masked entries become NaN."""
    refuse_sparse(source)
    if isinstance(source, Tensor):
        tensor = source.detach().cpu()
        source = tensor.double() if tensor.is_floating_point() else tensor
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Warning: converting a masked element to nan")
            # of lists only numpy.ma sees the masks of the arrays in them
            array = np.ma.array(source) if isinstance(source, (list, tuple)) else np.asanyarray(source)
    except ValueError:
        raise InputError(f"{where}: its rows differ in length; expected (num_rows, num_features)") from None
    matrix = as_matrix(array, where)
    if 0 in matrix.shape:  # before columns are named: an empty file may claim billions
        message = f"{where}: the data are empty, with shape {matrix.shape}"
        raise InputError(f"{message}; give at least one row and one column")
    names = unnamed_columns(matrix.shape[1])
    if matrix.dtype == object:
        cells = np.ma.filled(matrix, None)
        return numeric_columns([pd.Series(column, dtype=object) for column in cells.T], names, len(cells))[0], names
    numbers = matrix.astype("float64")
    return np.array(np.ma.filled(numbers, np.nan)), names


def as_matrix(array: np.ndarray, where: str) -> np.ndarray:
    """View a numeric array with one or two axes as ``(num_rows, num_features)``."""
    if array.dtype.kind not in "fiubO":
        raise InputError(f"{where}: values of type {array.dtype}; expected numbers")
    if array.ndim not in (1, 2):
        flatten = "; flatten each row, array.reshape(len(array), -1)" if array.ndim > 2 else ""
        raise InputError(f"{where}: shape {array.shape}; expected (num_rows, num_features){flatten}")
    return array[:, None] if array.ndim == 1 else array


def from_frame(frame: Any, selection: ColumnSelection = ALL_COLUMNS) -> Columns:
    """Convert a frame's columns to float64; errors name text columns, or the first cell that is not a number.

    ``frame`` is one of pandas or of narwhals. Columns that are not selected are not looked at.
    """
    names = [str(name) for name in frame.columns]
    carried = selection.carried_indices(names)
    rest = as_pandas(frame, carried, numbers=False) if carried else None
    return from_selected(as_pandas(frame, selection.indices(names)), selection, rest)


def from_selected(frame: pd.DataFrame, selection: ColumnSelection, carried: pd.DataFrame | None = None) -> Columns:
    """Convert all columns except a row counter that was not selected."""
    if selection.only is None:
        frame = drop_row_counter(frame)
    columns = tuple(str(column) for column in frame.columns)
    check_names(columns)
    cells = [frame.iloc[:, j] for j in range(len(columns))]
    matrix, categories = numeric_columns(cells, columns, len(frame), selection.categorical)
    return Columns(matrix, columns, categories, carried)


def check_names(columns: tuple[str, ...]) -> None:
    """Raise ``InputError`` where column names are not unique."""
    if len(set(columns)) < len(columns):
        repeated = min(column for column in columns if columns.count(column) > 1)
        raise InputError(f"column {repeated!r} appears more than once; give each column a unique name")


def drop_row_counter(frame: pd.DataFrame) -> pd.DataFrame:
    """Drop, with a warning, the unnamed row counter that R and pandas write as the first column."""
    if frame.shape[1] < 2 or str(frame.columns[0]) not in ("", "rownames", "Unnamed: 0"):
        return frame
    if counts_rows(frame.iloc[:, 0]):
        message = f"column {str(frame.columns[0])!r} only counts the rows and is dropped; rename it to keep it"
        warnings.warn(message, DataWarning, stacklevel=3)
        return frame.iloc[:, 1:]
    return frame


def counts_rows(column: pd.Series) -> bool:
    """Whether a column's cells are 0, 1, 2, ... or 1, 2, 3, ..."""
    numbers = pd.to_numeric(column, errors="coerce")
    return len(numbers) > 0 and numbers.iloc[0] in (0, 1) and bool((numbers.diff().iloc[1:] == 1).all())
