"""Parse delimited text: the separator, the header, missing rows, and trailing separators."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from itertools import dropwhile, islice

import pandas as pd

from pplgen.data.cell_parsing import is_missing
from pplgen.data.columns import unnamed_columns
from pplgen.data.header_detection import first_line_is_header
from pplgen.data.number_formats import reads_as_number
from pplgen.errors import InputError

__all__ = ["SEPARATORS", "cell_table", "read_cells"]

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars", " ": "spaces"}
"""Separators and their names in messages."""


def read_cells(text: str, where: str, separators: Sequence[str], header: bool | None) -> tuple[pd.DataFrame, str]:
    """Return text cells under their column names, and the separator.

    Empty lines are skipped, except between the values of a single column, where they are missing rows.

    Parameters
    ----------
    text
        Content of the file.
    where
        Name of the file in messages.
    separators
        Separators to try; the first unless the first lines indicate another.
    header
        Whether the first line holds names; ``None``: see ``first_line_is_header``.

    Raises
    ------
    InputError
        Where the file is empty, or rows differ in length.
    """
    separator = _detect_separator(text, separators)
    return cell_table(_split(text, separator), where, separator, header), separator


def cell_table(rows: Iterable[list[str]], where: str, separator: str, header: bool | None) -> pd.DataFrame:
    """Return rows of text cells as a table under their column names."""
    lines = list(dropwhile(lambda line: not line, rows))
    if not lines:
        raise InputError(f"{where}: the file is empty; expected a header and rows of numbers")
    if len(lines[0]) == 1:
        while not lines[-1]:
            del lines[-1]
        lines = [line or [""] for line in lines]
    else:
        lines = [line for line in lines if line]
    if first_line_is_header(lines, separator, header):
        names, lines = _names(lines)
    else:
        names = list(unnamed_columns(len(lines[0])))
    for row, line in enumerate(lines, start=1):
        if len(line) != len(names):
            message = f"{where}, row {row}: the number of cells is {len(line)}; expected {len(names)}"
            raise InputError(f"{message}, separated by {SEPARATORS[separator]}")
    return pd.DataFrame(lines, columns=names, dtype=object)


def _names(lines: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """Return the names in the first line, and the other lines, without the empty cells of trailing separators.

    A header that is one shorter than each row is one of R's, whose rows have names.
    """
    names, *rows = [name.strip() for name in lines[0]], *lines[1:]
    longest = max((len(row) for row in rows), default=0)
    if longest > 1 and longest in (len(names), len(names) + 1):
        ends = [row[-1] for row in rows if len(row) == longest] + names[longest - 1 :]
        if not any(cell.strip() for cell in ends):
            return names[: longest - 1], [row[: longest - 1] for row in rows]
    if rows and all(len(row) == len(names) + 1 for row in rows):
        names = ["", *names]
    return names, rows


def _split(text: str, separator: str) -> Iterable[list[str]]:
    """Split text into cells; several spaces separate as one does."""
    lines: Iterable[str] = io.StringIO(text, newline="")  # line ends within quotes stay
    if separator == " ":
        lines = (re.sub(r"[ \t]+", " ", line).strip() for line in lines)
    return csv.reader(lines, delimiter=separator)


def _detect_separator(text: str, separators: Sequence[str]) -> str:
    """Return the separator that splits header and first row into equally many cells, with the most numeric cells."""
    heads = {}
    for separator in separators:
        try:
            heads[separator] = list(islice(filter(None, _split(text, separator)), 2))
        except csv.Error:  # a cell longer than the limit of csv
            continue

    def score(separator: str) -> tuple[bool, bool, float]:
        first, *rest = heads[separator] or [[""]]
        row = rest[0] if rest else first
        readable = sum(reads_as_number(cell, separator) or is_missing(cell) for cell in row)
        split = len(row) > 1
        return split and len(row) == len(first), split and len(row) == len(first) + 1, readable / len(row)

    return max(heads, key=score, default=separators[0])
