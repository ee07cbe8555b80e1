"""Read files as a float64 matrix with named columns, according to their suffix."""

from __future__ import annotations

import csv
import gzip
import json
import sys
import warnings
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from pplgen.data.arrow_files import read_arrow, read_parquet
from pplgen.data.columns import ALL_COLUMNS, ColumnSelection
from pplgen.data.delimited import cell_table, read_cells
from pplgen.data.frames import Columns, from_frame, from_object, from_selected, selected_array
from pplgen.data.number_formats import plain_numbers
from pplgen.data.objects import as_pandas
from pplgen.data.paths import STDIN, as_input_error, import_optional, require_file, suffix_of
from pplgen.errors import DataWarning, InputError

__all__ = ["FILE_SUFFIXES", "from_file", "from_stdin"]


def from_file(path: Path, names: Iterable[str] = (), selection: ColumnSelection = ALL_COLUMNS) -> Columns:
    """Read a file according to its suffix; ``names`` are alternatives to suggest where there is no such file."""
    require_file(path, names)
    suffix = suffix_of(path)
    if suffix not in _READERS:
        kind = f"files that end in {suffix!r}" if suffix else "a file without a suffix"
        raise InputError(f"{str(path)!r}: cannot read {kind}; expected one of {', '.join(_READERS)}")
    if selection.header is not None and suffix not in (*_SEPARATORS, ".xlsx"):
        raise InputError(f"header={selection.header}: only text and .xlsx files may lack a header, not {suffix}")
    return _READERS[suffix](path, selection)


def from_stdin(selection: ColumnSelection = ALL_COLUMNS) -> Columns:
    """Read delimited text from the standard input."""
    with as_input_error(STDIN, "delimited text in UTF-8", UnicodeDecodeError, csv.Error):
        text = sys.stdin.buffer.read().decode("utf-8-sig")
        return _from_text(text, "the standard input", _SEPARATORS[".csv"], selection)


def _from_delimited(path: Path, selection: ColumnSelection) -> Columns:
    """Read delimited text."""
    with as_input_error(path, "delimited text in UTF-8", UnicodeDecodeError, csv.Error):
        return _from_text(_read_text(path), repr(str(path)), _SEPARATORS[suffix_of(path)], selection)


def _from_text(text: str, where: str, separators: str, selection: ColumnSelection) -> Columns:
    cells, separator = read_cells(text, where, separators, selection.header)
    return _from_cells(cells, where, separator, selection)


def _from_cells(cells: Any, where: str, separator: str, selection: ColumnSelection) -> Columns:
    """Convert cells of text."""
    names = list(cells.columns)
    carried = selection.carried_indices(names)
    rest = as_pandas(cells, carried, numbers=False) if carried else None
    return from_selected(plain_numbers(as_pandas(cells, selection.indices(names)), where, separator), selection, rest)


def _read_text(path: Path) -> str:
    """Read text in UTF-8, compressed or not, with the line ends that it has."""
    if path.suffix.lower() != ".gz":
        with path.open(newline="", encoding="utf-8-sig") as file:
            return file.read()
    with as_input_error(path, "a complete gzip file", EOFError, zlib.error), gzip.open(path) as file:
        return file.read().decode("utf-8-sig")


def _from_jsonl(path: Path, selection: ColumnSelection) -> Columns:
    """Read one JSON object, or one list of numbers, from each line."""
    with as_input_error(path, "one JSON object in each line", ValueError, RecursionError):
        rows = [json.loads(line) for line in _read_text(path).splitlines() if line.strip()]
        if not rows:
            raise InputError(f"{str(path)!r}: the file is empty; expected one JSON object in each line")
        if not isinstance(rows[0], dict):
            return selected_array(rows, repr(str(path)), selection)
        return from_object(rows, selection)


def _from_excel(path: Path, selection: ColumnSelection) -> Columns:
    """Read the first sheet of a workbook, the values that were last computed."""
    openpyxl = import_optional("openpyxl", repr(str(path)), "excel")
    # openpyxl, zipfile and the XML parser raise many types of errors
    with as_input_error(path, "an Excel workbook", Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of styles and validations
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        try:
            sheets = [[list(row) for row in sheet.iter_rows(values_only=True)] for sheet in book.worksheets]
        finally:
            book.close()
    filled = [sheet for sheet in sheets if any(cell is not None for row in sheet for cell in row)]
    if len(filled) > 1:
        message = f"{str(path)!r} has {len(filled)} sheets with content; the first is read"
        warnings.warn(message, DataWarning, stacklevel=5)
    rows = [[_excel_text(cell) for cell in row] for row in (filled or [[]])[0]]
    width = max(map(len, rows), default=0)
    lines = [[*row, *[""] * (width - len(row))] if any(row) else [] for row in rows]
    return _from_cells(cell_table(lines, repr(str(path)), ",", selection.header), repr(str(path)), ",", selection)


def _excel_text(cell: Any) -> str:
    """Return a cell as it would stand in a text file."""
    return "" if cell is None else str(int(cell) if isinstance(cell, bool) else cell)


def _from_arrow(path: Path, selection: ColumnSelection) -> Columns:
    """Read a Feather or Arrow file."""
    return from_frame(read_arrow(path), selection)


def _from_parquet(path: Path, selection: ColumnSelection) -> Columns:
    """Read a Parquet file."""
    return from_frame(read_parquet(path), selection)


def _from_numpy(path: Path, selection: ColumnSelection) -> Columns:
    """Read an array from npy, or the only array (or the one named x) from npz; pickles are refused."""
    # numpy and zipfile raise many types of errors; a memory map reads no more than the file contains
    with as_input_error(path, "a plain numeric NumPy file", Exception), path.open("rb") as file:
        if file.read(2) != b"PK":
            loaded: np.ndarray = np.lib.format.open_memmap(path, mode="r")
        else:
            file.seek(0)
            loaded = _only_array(np.load(file, allow_pickle=False), path)
    if loaded.dtype.names:
        return from_object(loaded, selection)
    return selected_array(loaded, repr(str(path)), selection)


def _only_array(archive: Any, path: Path) -> np.ndarray:
    """Return the only array of an npz file, or the one named x."""
    with archive:
        names = archive.files
        if "x" not in names and len(names) != 1:
            listed = ", ".join(names) or "none"
            raise InputError(f"{str(path)!r} contains the arrays {listed}; expected exactly one, or one named x")
        return np.asarray(archive["x" if "x" in names else names[0]])


_SEPARATORS = {".csv": ",;\t| ", ".tsv": "\t;| ", ".txt": "\t,;| ", ".dat": "\t,;| ", ".psv": "|"}
_SEPARATORS |= {f"{suffix}.gz": separators for suffix, separators in _SEPARATORS.items()}
"""Separators of each kind of text, the most likely first."""

_READERS: dict[str, Callable[[Path, ColumnSelection], Columns]] = {
    **dict.fromkeys(_SEPARATORS, _from_delimited),
    **dict.fromkeys((".parquet", ".pq"), _from_parquet),
    **dict.fromkeys((".feather", ".arrow"), _from_arrow),
    **dict.fromkeys((".jsonl", ".jsonl.gz"), _from_jsonl),
    ".xlsx": _from_excel,
    ".npy": _from_numpy,
    ".npz": _from_numpy,
}
FILE_SUFFIXES = tuple(_READERS)
"""Suffixes of the files that can be read."""
