"""Parse delimited text: detect the separator and the header, missing rows, and decimal commas."""

from __future__ import annotations

import csv
import re
import warnings
from itertools import dropwhile, islice
from typing import TextIO

import pandas as pd

from pplgen.data.cell_parsing import is_missing, is_number
from pplgen.data.columns import unnamed_columns
from pplgen.errors import DataWarning, InputError

__all__ = ["read_cells", "with_points"]

_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
"""Separators and their names in messages."""

_COMMA = re.compile(r"\s*[+-]?(\d+,\d*|,\d+)([eE][+-]?\d+)?\s*")
_GROUPED = re.compile(r"\s*[+-]?[1-9]\d{0,2},\d{3}\s*")
"""A number whose comma may be a thousands separator."""


def read_cells(file: TextIO, where: str, default: str) -> tuple[pd.DataFrame, str]:
    """Return text cells under their column names, and the separator.

    The first line is a header unless it consists of numbers and missing-value markers. Empty lines are skipped, except
    between the values of a single column, where they are missing rows.

    Parameters
    ----------
    file
        Text file opened with ``newline=""``, at its start.
    where
        Name of the file in messages.
    default
        Separator unless the first lines indicate another: a comma or a tab.

    Raises
    ------
    InputError
        Where the file is empty, or rows differ in length.
    """
    separator = _detect_separator(file, default)
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
    numbers = [_is_numeric(cell, separator) for cell in header]
    unnamed = all(number or is_missing(cell) for number, cell in zip(numbers, header, strict=True))
    if unnamed and any(cell.strip() for cell in header):
        header = list(unnamed_columns(len(header)))
    else:
        if any(numbers):
            first = separator.join(header)
            warnings.warn(f"the first line, {first!r}, is read as column names", DataWarning, stacklevel=4)
        del lines[0]
    for row, line in enumerate(lines, start=1):
        if len(line) != len(header):
            message = f"{where}, row {row}: the number of cells is {len(line)}; expected {len(header)}"
            raise InputError(f"{message}, separated by {_SEPARATORS[separator]}")
    return pd.DataFrame(lines, columns=header, dtype=object), separator


def with_points(frame: pd.DataFrame, where: str, separator: str) -> pd.DataFrame:
    """Replace decimal commas by points where the separator is not a comma.

    In tab-separated text a comma may be a thousands separator; where all numbers could be read so, none is changed.

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
            both = f"{commas[0][1]!r} in column {commas[0][0]!r} and {cell!r} in column {name!r}"
            raise InputError(f"{where}: {both}; expected decimal commas or decimal points, not both")
    return frame.map(lambda cell: cell.replace(",", ".") if _COMMA.fullmatch(cell) else cell)


def _detect_separator(file: TextIO, default: str) -> str:
    """Return the separator that splits header and first row into equally many cells, with the most numeric cells."""
    heads = {}
    for separator in (default, *(other for other in _SEPARATORS if other not in (default, ","))):
        file.seek(0)
        try:
            heads[separator] = list(islice(filter(None, csv.reader(file, delimiter=separator)), 2))
        except csv.Error:  # a cell longer than the limit of csv
            continue

    def score(separator: str) -> tuple[bool, float]:
        first, *rest = heads[separator] or [[""]]
        row = rest[0] if rest else first
        readable = sum(_is_numeric(cell, separator) or is_missing(cell) for cell in row)
        return len(row) == len(first) > 1, readable / len(row)

    return max(heads, key=score, default=default)


def _is_numeric(cell: str, separator: str) -> bool:
    """Whether a cell is a number, possibly with a decimal comma where the separator is not a comma."""
    return is_number(cell) or (separator != "," and _COMMA.fullmatch(cell) is not None)
