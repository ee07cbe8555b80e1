"""A table, an array or a named data set becomes a validated float tensor; errors name column and row."""

from __future__ import annotations

import csv
import hashlib
import importlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pplgen.errors import DataWarning, InputError, near_names

__all__ = ["Table", "check_training_table", "load_data", "named_data_sets"]

_NUMBER = "a number; leave it empty for missing"

Columns = tuple[np.ndarray, tuple[str, ...]]
"""A float64 matrix and the names of its columns."""


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
        Floating-point type of the values. ``None``: the type of a floating-point tensor, torch's default otherwise.

    Returns
    -------
    Table
        Values, column names and the name of the source. Rows in error messages count from 1, the header left out.

    Raises
    ------
    InputError
        Where the source is missing, empty, ragged, not numeric or not finite; an empty cell is a missing value.
    """
    if isinstance(source, Table):
        return Table(source.values.to(dtype), source.columns, source.name)
    if dtype is None:
        floating = isinstance(source, Tensor) and source.is_floating_point()
        dtype = source.dtype if floating else torch.get_default_dtype()
    if isinstance(source, pd.DataFrame):
        values, columns, name = *_from_frame(source), "table"
    elif isinstance(source, (str, Path)) and str(source) in _NAMED:
        values, columns, name = *_NAMED[str(source)](), str(source)
    elif isinstance(source, (str, Path)):
        path = Path(source)
        values, columns, name = *_from_file(path), path.stem
    else:
        values, columns, name = *_from_array(source, "the array"), "array"
    if values.size == 0:
        raise InputError(f"{name}: the data are empty, with shape {values.shape}; give at least one row and one column")
    _refuse_infinities(values, columns)
    return Table(torch.from_numpy(values).to(dtype), columns, name)


def named_data_sets() -> tuple[str, ...]:
    """Names that ``load_data`` knows; those of scikit-learn and statsmodels need these packages installed."""
    return tuple(_NAMED)


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


def _from_file(path: Path) -> Columns:
    """Read a file by its suffix."""
    if not path.is_file():
        folder = path.parent
        beside = [str(folder / entry.name) for entry in folder.iterdir()] if folder.is_dir() else []
        expected = f"expected a file or one of {', '.join(_NAMED)}"
        raise InputError(f"{str(path)!r}: there is no such file; {expected}{near_names(str(path), [*_NAMED, *beside])}")
    suffix = path.suffix.lower()
    if suffix not in _READERS:
        given = f"files that end in {suffix!r}" if suffix else "a file without a suffix"
        raise InputError(f"{str(path)!r}: cannot read {given}; expected one of {', '.join(_READERS)}")
    try:
        return _READERS[suffix](path)
    except OSError as error:
        raise InputError(f"{str(path)!r}: cannot be read: {error}") from None


def _from_csv(path: Path) -> Columns:
    """Read delimited text; the first line is a header unless all of it is numeric."""
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = [line for line in csv.reader(file, delimiter=delimiter) if line]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{str(path)!r}: not delimited text in UTF-8: {error}") from None
    if not lines:
        raise InputError(f"{str(path)!r}: the file is empty; expected a header and rows of numbers")
    header = lines[0]
    if all(_is_number(cell) for cell in header):
        header = [f"x{i}" for i in range(len(header))]
    else:
        del lines[0]
    for row, line in enumerate(lines, start=1):
        if len(line) != len(header):
            raise InputError(
                f"{str(path)!r}, row {row}: the number of cells is {len(line)}, where {len(header)} were expected"
            )
    return _from_frame(pd.DataFrame(lines, columns=header, dtype=object))


def _from_parquet(path: Path) -> Columns:
    """Read a Parquet file through pandas."""
    pyarrow = _import("pyarrow", f"{str(path)!r}")
    try:
        return _from_frame(pd.read_parquet(path))
    except pyarrow.ArrowInvalid as error:
        raise InputError(f"{str(path)!r}: not a Parquet file: {error}") from None


def _from_numpy(path: Path) -> Columns:
    """Read an array from npy, or the only array (or the one called x) from npz; pickles are refused."""
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if not isinstance(loaded, np.ndarray):
                names = loaded.files
                if "x" not in names and len(names) != 1:
                    held = ", ".join(names) or "none"
                    raise InputError(f"{str(path)!r} holds the arrays {held}; expected exactly one, or one called x")
                loaded = loaded["x" if "x" in names else names[0]]
    except InputError:
        raise
    except (ValueError, EOFError, BadZipFile) as error:
        raise InputError(f"{str(path)!r}: not a plain numeric NumPy file: {error}") from None
    return _from_array(loaded, repr(str(path)))


def _from_array(source: Any, where: str) -> Columns:
    """Take an array or tensor of one or two axes; columns are called x0, x1, ..."""
    array = source.detach().cpu().numpy() if isinstance(source, Tensor) else np.asarray(source)
    if array.dtype.kind not in "fiub":
        raise InputError(f"{where}: values of type {array.dtype}; expected numbers")
    if array.ndim not in (1, 2):
        raise InputError(f"{where}: shape {array.shape}; expected (num_rows, num_features)")
    matrix = np.array(array.reshape(len(array), -1) if array.size else array, dtype="float64", ndmin=2)
    return matrix, tuple(f"x{i}" for i in range(matrix.shape[1]))


def _from_frame(frame: pd.DataFrame) -> Columns:
    """Take a table's columns as float64, naming the first cell that is not a number."""
    frame = _without_row_names(frame)
    columns = tuple(str(column) for column in frame.columns)
    if repeated := {column for column in columns if columns.count(column) > 1}:
        raise InputError(f"column {min(repeated)!r} appears more than once; give each column a name of its own")
    numeric = [_numeric_column(frame.iloc[:, j], name) for j, name in enumerate(columns)]
    return (np.column_stack(numeric) if numeric else np.empty((len(frame), 0))), columns


def _numeric_column(column: pd.Series, name: str) -> np.ndarray:
    """Return a column as float64; empty and null cells are NaN."""
    if pd.api.types.is_numeric_dtype(column.dtype):
        return column.to_numpy(dtype="float64", na_value=np.nan, copy=True)
    empty = column.isna() | (column.astype(str).str.strip() == "")
    numbers = np.full(len(column), np.nan)
    for row, cell in enumerate(column):
        if not empty.iloc[row]:
            if not _is_number(cell):
                raise InputError(f"column {name!r}, row {row + 1}: {str(cell)!r} is not {_NUMBER}")
            numbers[row] = float(cell)
    return numbers


def _is_number(cell: Any) -> bool:
    """Whether a cell reads as a number; the word nan does not, for missing cells are empty."""
    try:
        return not np.isnan(float(cell))
    except (TypeError, ValueError):
        return False


def _without_row_names(frame: pd.DataFrame) -> pd.DataFrame:
    """Drop, with a warning, the unnamed row counter that R and pandas write as a first column."""
    if frame.shape[1] < 2 or str(frame.columns[0]) not in ("", "rownames", "Unnamed: 0"):
        return frame
    first = pd.to_numeric(frame.iloc[:, 0], errors="coerce")
    if len(first) and first.iloc[0] in (0, 1) and (first.diff().iloc[1:] == 1).all():
        message = f"column {str(frame.columns[0])!r} only counts the rows and is left out; rename it to keep it"
        warnings.warn(message, DataWarning, stacklevel=3)
        return frame.iloc[:, 1:]
    return frame


def _refuse_infinities(values: np.ndarray, columns: Sequence[str]) -> None:
    """Raise for the first infinite cell."""
    infinite = np.argwhere(np.isinf(values))
    if len(infinite):
        row, j = infinite[0]
        raise InputError(f"column {columns[j]!r}, row {row + 1}: {values[row, j]} is not a finite number")


def _import(module: str, what: str) -> Any:
    """Import an optional package, or say which installation brings it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError(f"{what} needs {module.partition('.')[0]}: pip install 'pplgen[data]'") from None


def _faithful() -> Columns:
    """Read Old Faithful's eruptions and waiting times, in minutes, 272 x 2."""
    with resources.as_file(resources.files("pplgen") / "datasets" / "faithful.csv") as path:
        return _from_csv(path)


def _scikit_learn(name: str) -> Callable[[], Columns]:
    """Return a reader of one of scikit-learn's own data sets, without its labels."""

    def read() -> Columns:
        loaded = getattr(_import("sklearn.datasets", f"data set {name!r}"), f"load_{name}")()
        return np.asarray(loaded.data, dtype="float64"), tuple(map(str, loaded.feature_names))

    return read


def _nile() -> Columns:
    """Read the Nile's yearly flow at Aswan, 1871 to 1970, in 10^8 cubic metres, 100 x 1."""
    nile = _import("statsmodels.datasets.nile", "data set 'nile'")
    return _from_frame(nile.load_pandas().data[["volume"]])


_READERS: dict[str, Callable[[Path], Columns]] = {
    ".csv": _from_csv,
    ".tsv": _from_csv,
    ".parquet": _from_parquet,
    ".npy": _from_numpy,
    ".npz": _from_numpy,
}

_NAMED: dict[str, Callable[[], Columns]] = {
    "faithful": _faithful,
    **{name: _scikit_learn(name) for name in ("digits", "wine", "iris", "breast_cancer")},
    "nile": _nile,
}
