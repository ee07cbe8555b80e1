"""A table, an array or a named data set becomes a validated float tensor; errors name column and row."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pplgen.errors import DataWarning, InputError
from pplgen.readers import NAMED, from_array, from_file, from_frame

__all__ = ["Table", "check_training_table", "load_data", "named_data_sets"]


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
        content = self.values.double().cpu().contiguous().numpy().astype("<f8").tobytes()
        return hashlib.sha256(repr((self.columns, tuple(self.values.shape))).encode() + content).hexdigest()


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
    if matrix.size == 0:
        raise InputError(f"{name}: the data are empty, with shape {matrix.shape}; give at least one row and one column")
    return Table(_as_tensor(matrix, columns, dtype), columns, name)


def named_data_sets() -> tuple[str, ...]:
    """Names that ``load_data`` knows; those of scikit-learn and statsmodels need these packages installed."""
    return tuple(NAMED)


def check_training_table(table: Table) -> None:
    """Refuse a single row; warn of constant columns, which teach nothing."""
    if len(table) < 2:
        raise InputError(f"{table.name}: 1 row is too little to learn from; give at least 2")
    observed = table.values.isfinite()
    low = torch.where(observed, table.values, torch.inf).amin(dim=0)
    high = torch.where(observed, table.values, -torch.inf).amax(dim=0)
    for column, least, most in zip(table.columns, low.tolist(), high.tolist(), strict=True):
        if least > most:
            raise InputError(f"column {column!r} has no observed value in {len(table)} rows; leave the column out")
        if least == most:
            message = f"column {column!r} is constant ({least:g}): it carries no information; consider leaving it out"
            warnings.warn(message, DataWarning, stacklevel=3)


def _as_tensor(matrix: np.ndarray, columns: Sequence[str], dtype: torch.dtype) -> Tensor:
    """Convert to a floating-point type, refusing what becomes infinite and warning where differences are lost."""
    values = torch.from_numpy(np.ascontiguousarray(matrix)).to(dtype)
    infinite = torch.argwhere(values.isinf())
    if len(infinite):
        row, j = infinite[0].tolist()
        raise InputError(f"column {columns[j]!r}, row {row + 1}: {matrix[row, j]:g} is not a finite number in {dtype}")
    for name, wide, narrow in zip(columns, matrix.T, values.double().numpy().T, strict=True):
        observed = ~np.isnan(wide)
        lost = np.abs(wide - narrow)[observed].max(initial=0.0)
        if lost > 0 and lost > 1e-3 * np.std(wide[observed]) > 0:
            message = f"column {name!r} varies too little around its mean for {dtype}; subtract an offset from it"
            warnings.warn(message, DataWarning, stacklevel=3)
    return values
