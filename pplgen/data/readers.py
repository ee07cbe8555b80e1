"""Read files, arrays and data frames as a float64 matrix with named columns; errors name column and row."""

from __future__ import annotations

import csv
import importlib
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from torch import Tensor

from pplgen.data.cell_parsing import numeric_columns
from pplgen.data.columns import ALL_COLUMNS, ColumnSelection, unnamed_columns
from pplgen.data.delimited import read_cells, with_points
from pplgen.errors import DataWarning, InputError, first_line, near_names

__all__ = [
    "Columns",
    "as_input_error",
    "as_matrix",
    "check_names",
    "drop_row_counter",
    "from_array",
    "from_file",
    "from_frame",
    "image_shape",
    "import_optional",
    "require_file",
]


class Columns(NamedTuple):
    """A matrix with column names."""

    matrix: np.ndarray
    """float64, shape ``(num_rows, num_features)``; NaN means missing."""
    names: tuple[str, ...]
    categories: Mapping[str, tuple[str, ...]]
    """Categories 0, 1, ... of each column that was text."""


def image_shape(columns: Sequence[str]) -> tuple[int, int] | None:
    """Return height and width of the images in the rows, given columns ``pixel_0_0``, ``pixel_0_1``, ... .

    ``None`` where the columns have other names, or are not all pixels in row-major order.
    """
    match = re.fullmatch(r"pixel_(\d+)_(\d+)", columns[-1]) if len(columns) else None
    if match is None:
        return None
    height, width = int(match[1]) + 1, int(match[2]) + 1
    if height * width != len(columns):
        return None
    expected = (f"pixel_{i}_{j}" for i in range(height) for j in range(width))
    return (height, width) if all(map(str.__eq__, columns, expected)) else None


def from_file(path: Path, names: Iterable[str] = (), selection: ColumnSelection = ALL_COLUMNS) -> Columns:
    """Read a file according to its suffix; ``names`` are alternatives to suggest where there is no such file."""
    require_file(path, names)
    suffix = path.suffix.lower()
    if suffix not in _READERS:
        kind = f"files that end in {suffix!r}" if suffix else "a file without a suffix"
        raise InputError(f"{str(path)!r}: cannot read {kind}; expected one of {', '.join(_READERS)}")
    return _READERS[suffix](path, selection)


def require_file(path: Path, names: Iterable[str] = ()) -> None:
    """Raise ``InputError`` where there is no such file, suggesting similar names in its folder and ``names``."""
    folder = path.parent
    try:
        if path.is_file():
            return
        siblings = [str(folder / entry.name) for entry in folder.iterdir()] if folder.is_dir() else []
    except OSError as error:
        raise InputError(f"{str(path)!r}: cannot be read: {error.strerror}") from None
    alternatives = ", ".join(names)
    expected = f"expected a file or one of {alternatives}" if alternatives else "expected a file"
    raise InputError(f"{str(path)!r}: there is no such file; {expected}{near_names(str(path), [*names, *siblings])}")


@contextmanager
def as_input_error(path: Path, kind: str, *errors: type[Exception]) -> Iterator[None]:
    """Convert a library's errors to an ``InputError``: the file cannot be read or is not of the expected kind."""
    try:
        yield
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{str(path)!r}: cannot be read: {error}") from None
    except errors as error:
        raise InputError(f"{str(path)!r}: not {kind}: {first_line(error)}") from None


def _from_csv(path: Path, selection: ColumnSelection) -> Columns:
    """Read delimited text."""
    default = "\t" if path.suffix.lower() == ".tsv" else ","
    with (
        as_input_error(path, "delimited text in UTF-8", UnicodeDecodeError, csv.Error),
        path.open(newline="", encoding="utf-8-sig") as file,
    ):
        cells, separator = read_cells(file, repr(str(path)), default)
    return _from_selected(with_points(selection.select_frame(cells), repr(str(path)), separator), selection)


def _from_parquet(path: Path, selection: ColumnSelection) -> Columns:
    """Read a Parquet file through pandas."""
    pyarrow = import_optional("pyarrow", repr(str(path)))
    with as_input_error(path, "a Parquet file", pyarrow.ArrowInvalid):
        return from_frame(pd.read_parquet(path), selection)


def _from_numpy(path: Path, selection: ColumnSelection) -> Columns:
    """Read an array from npy, or the only array (or the one named x) from npz; pickles are refused."""
    # numpy and zipfile raise many types of errors; a memory map reads no more than the file contains
    with as_input_error(path, "a plain numeric NumPy file", Exception), path.open("rb") as file:
        if file.read(2) != b"PK":
            loaded: np.ndarray = np.lib.format.open_memmap(path, mode="r")
        else:
            file.seek(0)
            loaded = _only_array(np.load(file, allow_pickle=False), path)
    return Columns(*selection.select_matrix(*from_array(loaded, repr(str(path)))), {})


def _only_array(archive: Any, path: Path) -> np.ndarray:
    """Return the only array of an npz file, or the one named x."""
    with archive:
        names = archive.files
        if "x" not in names and len(names) != 1:
            listed = ", ".join(names) or "none"
            raise InputError(f"{str(path)!r} contains the arrays {listed}; expected exactly one, or one named x")
        return np.asarray(archive["x" if "x" in names else names[0]])


def from_array(source: Any, where: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Convert an array or tensor with one or two axes; columns are named x0, x1, ..."""
    if isinstance(source, Tensor):
        tensor = source.detach().cpu()
        source = tensor.double() if tensor.is_floating_point() else tensor
    try:
        array = np.asarray(source)
    except ValueError:
        raise InputError(f"{where}: its rows differ in length; expected (num_rows, num_features)") from None
    matrix = as_matrix(array, where)
    if 0 in matrix.shape:  # before columns are named: an empty file may claim billions
        message = f"{where}: the data are empty, with shape {matrix.shape}"
        raise InputError(f"{message}; give at least one row and one column")
    return np.array(matrix, dtype="float64"), unnamed_columns(matrix.shape[1])


def as_matrix(array: np.ndarray, where: str) -> np.ndarray:
    """View a numeric array with one or two axes as ``(num_rows, num_features)``."""
    if array.dtype.kind not in "fiub":
        raise InputError(f"{where}: values of type {array.dtype}; expected numbers")
    if array.ndim not in (1, 2):
        raise InputError(f"{where}: shape {array.shape}; expected (num_rows, num_features)")
    return array[:, None] if array.ndim == 1 else array


def from_frame(frame: pd.DataFrame, selection: ColumnSelection = ALL_COLUMNS) -> Columns:
    """Convert a data frame's columns to float64; errors name text columns, or the first cell that is not a number."""
    return _from_selected(selection.select_frame(frame), selection)


def _from_selected(frame: pd.DataFrame, selection: ColumnSelection) -> Columns:
    """Convert all columns except a row counter that was not selected."""
    if selection.only is None:
        frame = drop_row_counter(frame)
    columns = tuple(str(column) for column in frame.columns)
    check_names(columns)
    cells = [frame.iloc[:, j] for j in range(len(columns))]
    matrix, categories = numeric_columns(cells, columns, len(frame), selection.categorical)
    return Columns(matrix, columns, categories)


def check_names(columns: tuple[str, ...]) -> None:
    """Raise ``InputError`` where column names are not unique."""
    if repeated := {column for column in columns if columns.count(column) > 1}:
        raise InputError(f"column {min(repeated)!r} appears more than once; give each column a unique name")


def drop_row_counter(frame: pd.DataFrame) -> pd.DataFrame:
    """Drop, with a warning, the unnamed row counter that R and pandas write as the first column."""
    if frame.shape[1] < 2 or str(frame.columns[0]) not in ("", "rownames", "Unnamed: 0"):
        return frame
    first = pd.to_numeric(frame.iloc[:, 0], errors="coerce")
    if len(first) and first.iloc[0] in (0, 1) and (first.diff().iloc[1:] == 1).all():
        message = f"column {str(frame.columns[0])!r} only counts the rows and is dropped; rename it to keep it"
        warnings.warn(message, DataWarning, stacklevel=3)
        return frame.iloc[:, 1:]
    return frame


def import_optional(module: str, what: str) -> Any:
    """Import an optional package; the error message gives the command to install it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError(f"{what} needs {module.partition('.')[0]}: pip install 'pplgen[data]'") from None


_READERS: dict[str, Callable[[Path, ColumnSelection], Columns]] = {
    ".csv": _from_csv,
    ".tsv": _from_csv,
    ".parquet": _from_parquet,
    ".npy": _from_numpy,
    ".npz": _from_numpy,
}
