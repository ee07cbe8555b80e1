"""Delimited text as a table of cells: what separates them, where names are, gaps, and decimal commas."""

from __future__ import annotations

import csv
import re
import warnings
from itertools import dropwhile, islice
from typing import TextIO

import pandas as pd

from pplgen.data.cells import is_missing, is_number
from pplgen.data.columns import unnamed_columns
from pplgen.errors import DataWarning, InputError

__all__ = ["read_cells", "with_points"]

_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
"""What separates cells, in words."""

_COMMA = re.compile(r"\s*[+-]?(\d+,\d*|,\d+)([eE][+-]?\d+)?\s*")
_GROUPED = re.compile(r"\s*[+-]?[1-9]\d{0,2},\d{3}\s*")
"""A number whose comma may also group thousands."""


def read_cells(file: TextIO, where: str, usual: str) -> tuple[pd.DataFrame, str]:
    """Return cells of text under the names of their columns, and what separates them.

    The first line holds names unless all of it is numbers and words for missing. Empty lines are skipped, but for those
    between the values of a single column, whose rows are missing.

    Parameters
    ----------
    file
        Opened with ``newline=""``, at its start.
    where
        Its name in messages.
    usual
        What separates cells unless the first lines say otherwise, a comma or a tab.

    Raises
    ------
    InputError
        Where there is nothing in it, or rows differ in length.
    """
    separator = _separator(file, usual)
    file.seek(0)
    lines = list(dropwhile(lambda line: not line, csv.reader(file, delimiter=separator)))
    if not lines:
        raise InputError(f"{where}: the file is empty; expected a header and rows of numbers")
    header = lines[0]
    if len(header) == 1:
        while not lines[-1]:
            del lines[-1]
        lines = [line or [""] for line in lines]
    else:
        lines = [line for line in lines if line]
    numbers = [_reads(cell, separator) for cell in header]
    unnamed = all(number or is_missing(cell) for number, cell in zip(numbers, header, strict=True))
    if unnamed and any(cell.strip() for cell in header):
        header = list(unnamed_columns(len(header)))
    else:
        if any(numbers):
            first = separator.join(header)
            warnings.warn(f"the first line, {first!r}, is taken for names of columns", DataWarning, stacklevel=4)
        del lines[0]
    for row, line in enumerate(lines, start=1):
        if len(line) != len(header):
            found = f"the number of cells is {len(line)}, where {len(header)} were expected"
            raise InputError(f"{where}, row {row}: {found}; cells are separated by {_SEPARATORS[separator]}")
    return pd.DataFrame(lines, columns=header, dtype=object), separator


def with_points(frame: pd.DataFrame, where: str, separator: str) -> pd.DataFrame:
    """Write decimal commas as points, in cells that commas do not separate.

    Between tabs a comma may as well group thousands; numbers that could all be meant so stay as they are.

    Raises
    ------
    InputError
        Where some numbers have a comma and others a point.
    """
    if separator == ",":
        return frame
    cells = [(str(name), cell) for j, name in enumerate(frame.columns) for cell in frame.iloc[:, j]]
    commas = [(name, cell) for name, cell in cells if _COMMA.fullmatch(cell)]
    if not commas or (separator == "\t" and all(_GROUPED.fullmatch(cell) for _, cell in commas)):
        return frame
    for name, cell in cells:
        if "." in cell and is_number(cell):
            given = f"{commas[0][1]!r} in column {commas[0][0]!r} and {cell!r} in column {name!r}"
            raise InputError(f"{where}: {given}; expected decimal commas or decimal points, not both")
    return frame.map(lambda cell: cell.replace(",", ".") if _COMMA.fullmatch(cell) else cell)


def _separator(file: TextIO, usual: str) -> str:
    """Return what separates the names of columns, and as many cells of the first row, most of them numbers."""
    heads = {}
    for separator in (usual, *(other for other in _SEPARATORS if other not in (usual, ","))):
        file.seek(0)
        try:
            heads[separator] = list(islice(filter(None, csv.reader(file, delimiter=separator)), 2))
        except csv.Error:  # a cell that is as long as a line
            continue

    def fits(separator: str) -> tuple[bool, float]:
        first, *rest = heads[separator] or [[""]]
        row = rest[0] if rest else first
        readable = sum(_reads(cell, separator) or is_missing(cell) for cell in row)
        return len(row) == len(first) > 1, readable / len(row)

    return max(heads, key=fits, default=usual)


def _reads(cell: str, separator: str) -> bool:
    """Whether a cell reads as a number, with a decimal comma where commas do not separate."""
    return is_number(cell) or (separator != "," and _COMMA.fullmatch(cell) is not None)
