"""A table, an array or a named data set becomes a validated float tensor; errors name column and row."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pplgen.errors import DataWarning, InputError
from pplgen.readers import NAMED, from_array, from_file, from_frame

__all__ = [
    "Fingerprint",
    "Table",
    "as_finite",
    "check_shape",
    "check_training_columns",
    "check_training_table",
    "load_data",
    "named_data_sets",
    "warn_of_rounding",
]


@dataclass(frozen=True)
class Table:
    """Rows of named, numeric columns.

    Attributes
    ----------
    values
        Float tensor of shape ``(num_rows, num_features)``; NaN means missing, infinities never occur.
    columns
        One name per feature.
    name
        Where the data came from, in a word: a data set's name, a file's stem, or ``"array"``.
    """

    values: Tensor
    columns: tuple[str, ...]
    name: str

    def __len__(self) -> int:
        return len(self.values)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of columns, shape and float64 values, in hexadecimal."""
        return str(Fingerprint(self.columns, tuple(self.values.shape)).add(self.values))


class Fingerprint:
    """SHA-256 of columns, shape and float64 values; the rows are added in order, in any number of pieces.

    Parameters
    ----------
    columns
        One name per feature.
    shape
        ``(num_rows, num_features)`` of all rows together.
    """

    def __init__(self, columns: tuple[str, ...], shape: tuple[int, ...]) -> None:
        self._hash = hashlib.sha256(repr((columns, shape)).encode())

    def add(self, values: Tensor) -> Self:
        """Add the next rows, of shape ``(num_rows, num_features)``."""
        self._hash.update(values.double().cpu().numpy().astype("<f8", copy=False).ravel().data)
        return self

    def __str__(self) -> str:
        return self._hash.hexdigest()


def load_data(source: Any, *, dtype: torch.dtype | None = None) -> Table:
    """Read a numeric table.

    Parameters
    ----------
    source
        The name of a data set (``named_data_sets``), the path of a ``.csv``, ``.tsv``, ``.parquet``, ``.npy`` or
        ``.npz`` file, a pandas ``DataFrame``, an array or tensor of shape ``(num_rows,)`` or
        ``(num_rows, num_features)``, or a ``Table``.
    dtype
        Floating-point type of the values. ``None``: that of a float32 or float64 tensor, torch's default otherwise.

    Returns
    -------
    Table
        Values, column names and the name of the source. Rows in error messages count from 1, the header left out.

    Raises
    ------
    InputError
        Where the source is missing, empty, ragged, not numeric or not finite; an empty cell is a missing value.
    """
    if dtype is None:
        values = source.values if isinstance(source, Table) else source
        wide = isinstance(values, Tensor) and values.dtype in (torch.float32, torch.float64)
        dtype = values.dtype if wide else torch.get_default_dtype()
    if isinstance(source, Table):
        matrix, columns, name = source.values.double().cpu().numpy(), source.columns, source.name
    elif isinstance(source, pd.DataFrame):
        matrix, columns, name = *from_frame(source), "table"
    elif isinstance(source, (str, Path)) and str(source) in NAMED:
        matrix, columns, name = *NAMED[str(source)](), str(source)
    elif isinstance(source, (str, Path)):
        path = Path(source)
        matrix, columns, name = *from_file(path), path.stem
    else:
        matrix, columns, name = *from_array(source, "the array"), "array"
    check_shape(name, matrix.shape)
    return Table(_as_tensor(matrix, columns, dtype), columns, name)


def named_data_sets() -> tuple[str, ...]:
    """Names that ``load_data`` knows; those of scikit-learn and statsmodels need these packages installed."""
    return tuple(NAMED)


def check_shape(name: str, shape: tuple[int, ...]) -> None:
    """Refuse data without rows or without columns."""
    if 0 in shape:
        raise InputError(f"{name}: the data are empty, with shape {shape}; give at least one row and one column")


def check_training_table(table: Table) -> None:
    """Refuse a single row and columns without values; warn of constant columns, which teach nothing."""
    observed = table.values.isfinite()
    low = torch.where(observed, table.values, torch.inf).amin(dim=0)
    high = torch.where(observed, table.values, -torch.inf).amax(dim=0)
    check_training_columns(table.name, len(table), table.columns, low, high)


def check_training_columns(name: str, num_rows: int, columns: Sequence[str], low: Tensor, high: Tensor) -> None:
    """Do what ``check_training_table`` does, given each column's least and greatest value, inf and -inf for none."""
    if num_rows < 2:
        raise InputError(f"{name}: 1 row is too little to learn from; give at least 2")
    for column, least, most in zip(columns, low.tolist(), high.tolist(), strict=True):
        if least > most:
            raise InputError(f"column {column!r} has no observed value in {num_rows} rows; leave the column out")
        if least == most:
            message = f"column {column!r} is constant ({least:g}): it carries no information; consider leaving it out"
            warnings.warn(message, DataWarning, stacklevel=4)


def as_finite(matrix: np.ndarray, columns: Sequence[str], dtype: torch.dtype, *, first_row: int = 1) -> Tensor:
    """Convert to a floating-point type, refusing what is or becomes infinite; rows count from ``first_row``."""
    values = torch.from_numpy(np.ascontiguousarray(matrix)).to(dtype)
    # a finite sum, cheap to take, rules infinities out
    infinite = values.new_empty(0) if values.sum().isfinite() else torch.argwhere(values.isinf())
    if len(infinite):
        row, j = infinite[0].tolist()
        given = f"column {columns[j]!r}, row {first_row + row}: {matrix[row, j]:g}"
        raise InputError(f"{given} is not a finite number in {dtype}")
    return values


def warn_of_rounding(column: str, lost: float, spread: float, dtype: torch.dtype) -> None:
    """Warn where ``dtype`` changes values by as much as a thousandth of their standard deviation, ``spread``."""
    if lost > 0 and lost > 1e-3 * spread > 0:
        message = f"column {column!r} varies too little around its mean for {dtype}; subtract an offset from it"
        warnings.warn(message, DataWarning, stacklevel=4)


def _as_tensor(matrix: np.ndarray, columns: Sequence[str], dtype: torch.dtype) -> Tensor:
    """Convert to a floating-point type, refusing what becomes infinite and warning where differences are lost."""
    values = as_finite(matrix, columns, dtype)
    for name, wide, narrow in zip(columns, matrix.T, values.double().numpy().T, strict=True):
        observed = ~np.isnan(wide)
        lost = np.abs(wide - narrow)[observed].max(initial=0.0)
        warn_of_rounding(name, lost, np.std(wide[observed]) if lost > 0 else 0.0, dtype)
    return values
