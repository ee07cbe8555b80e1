"""Decide whether the first line of a table of text holds the columns' names."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence

from pplgen.data.cell_parsing import is_missing
from pplgen.data.number_formats import reads_as_number
from pplgen.errors import DataWarning

__all__ = ["first_line_is_header"]

_FEW = 3
"""Columns of integers up to which 0, 1, 2 may as well be the first row."""


def first_line_is_header(lines: Sequence[Sequence[str]], separator: str, header: bool | None) -> bool:
    """Whether the first of several lines of cells is a header.

    It is one where a cell is neither a number nor a marker of a missing value, or all cells are empty. Numbers are one
    where they count 0, 1, 2, ... as pandas writes for a frame without names, with an empty cell first for its index. In
    all doubtful cases a ``DataWarning`` says how the line is read.

    Parameters
    ----------
    lines
        Cells of all lines, at least one.
    separator
        What separated them.
    header
        Whether it is one, if specified; ``None``: detected.
    """
    if header is not None:
        return header
    first, *rest = lines
    numbers = [reads_as_number(cell, separator) for cell in first]
    unnamed = all(number or is_missing(cell) for number, cell in zip(numbers, first, strict=True))
    if not unnamed or not any(cell.strip() for cell in first):
        if any(numbers):
            _warn(first, separator, "column names", "header=False (--no-header) reads it as a row")
        return True
    if not rest or not _counts(first):
        return False
    if (
        _counts_rows(first, rest)
        or len(first) > _FEW
        or not all(map(_is_integer, (cell for row in rest for cell in row)))
    ):
        _warn(first, separator, "column names", "header=False (--no-header) reads it as a row")
        return True
    _warn(first, separator, "a row", "header=True (--header) reads it as column names")
    return False


def _counts(cells: Sequence[str]) -> bool:
    """Whether cells are 0, 1, 2, ..., perhaps after an empty one."""
    start = 1 if not cells[0].strip() else 0
    return len(cells) > start and [cell.strip() for cell in cells[start:]] == [
        str(i) for i in range(len(cells) - start)
    ]


def _counts_rows(first: Sequence[str], rest: Sequence[Sequence[str]]) -> bool:
    """Whether the first cell is empty, and those below count the rows."""
    below = [row[0].strip() if row else "" for row in rest]
    return not first[0].strip() and below in ([str(i + start) for i in range(len(rest))] for start in (0, 1))


def _is_integer(cell: str) -> bool:
    return re.fullmatch(r"\s*[+-]?\d*\s*", cell) is not None


def _warn(first: Sequence[str], separator: str, role: str, otherwise: str) -> None:
    line = separator.join(first)
    line = line if len(line) <= 60 else f"{line[:60]} ..."
    warnings.warn(f"the first line, {line!r}, is read as {role}; {otherwise}", DataWarning, stacklevel=6)
