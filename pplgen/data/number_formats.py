"""Numbers as people write them: decimal commas, and separators of thousands."""

from __future__ import annotations

import re
import warnings

import pandas as pd

from pplgen.data.cell_parsing import is_number
from pplgen.errors import DataWarning, InputError

__all__ = ["plain_numbers", "reads_as_number"]

_COMMA = re.compile(r"\s*[+-]?(\d+,\d*|,\d+)([eE][+-]?\d+)?\s*")
_GROUPED = re.compile(r"\s*[+-]?[1-9]\d{0,2},\d{3}\s*")
"""A number whose comma may be a separator of thousands."""

_THOUSANDS = re.compile(r"\s*[+-]?[1-9]\d{0,2}(,\d{3})+(\.\d*)?\s*")
_SURE = re.compile(
    r"\s*[+-]?[1-9]\d{0,2}(?:(?:,\d{3})+\.\d*|(?:,\d{3}){2,}|(?:\.\d{3})+,\d*|(?:\.\d{3}){2,}"
    r"|(?:(?P<group>[ '\u00a0\u202f\u2019])\d{3}(?:(?P=group)\d{3})*)(?:[.,]\d*)?)\s*"
)
"""A number whose separators of thousands can be nothing else."""

_MAYBE_GROUPED = re.compile(r"\d[ ',\u00a0\u202f\u2019]\d{3}|\.\d{3}\.\d{3}|\.\d{3},")
"""What occurs in any of them."""


def reads_as_number(cell: str, separator: str) -> bool:
    """Whether a cell is a number, possibly with a decimal comma where the separator is not a comma."""
    if is_number(cell) or _SURE.fullmatch(cell):
        return True
    return (_THOUSANDS if separator == "," else _COMMA).fullmatch(cell) is not None


def plain_numbers(frame: pd.DataFrame, where: str, separator: str) -> pd.DataFrame:
    """Write the numbers among text cells with decimal points and without separators of thousands.

    A comma is a decimal comma where cells are separated otherwise. Where they are separated by commas, it separates
    thousands, if it can do so in all cells of a column; a ``DataWarning`` says so. In tab-separated text it may be
    either; where all numbers could be read so, none is changed.

    Raises
    ------
    InputError
        Where some numbers have a decimal comma and others a point.
    """
    frame = _without_thousands(frame, separator)
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


def _without_thousands(frame: pd.DataFrame, separator: str) -> pd.DataFrame:
    """Remove separators of thousands, column by column; decimal commas stay where cells are not separated by commas."""
    columns = []
    for j in range(frame.shape[1]):
        column = frame.iloc[:, j]
        columns.append(column)
        if not _MAYBE_GROUPED.search("\n".join(column)):
            continue
        patterns = [_SURE]
        if separator == "," and all(_THOUSANDS.fullmatch(cell) for cell in column if "," in cell):
            patterns.append(_THOUSANDS)
        cells = [
            _ungrouped(cell, separator) if any(pattern.fullmatch(cell) for pattern in patterns) else cell
            for cell in column
        ]
        example = next(((cell, new) for cell, new in zip(column, cells, strict=True) if cell != new), None)
        if example is not None:
            read = f"{example[0]!r} is read as {example[1]}, without its separators of thousands"
            warnings.warn(f"column {str(frame.columns[j])!r}: {read}", DataWarning, stacklevel=5)
            columns[-1] = pd.Series(cells, name=column.name, dtype=object)
    return pd.concat(columns, axis=1) if columns else frame


def _ungrouped(cell: str, separator: str) -> str:
    """Remove separators of thousands from a number: all signs but the last, and the last if it occurs before."""
    cell = re.sub("[ '\u00a0\u202f\u2019]", "", cell.strip())
    signs = re.findall("[.,]", cell)
    decimal = ""
    if (
        signs
        and signs.count(signs[-1]) == 1
        and (len(signs) > 1 or not (separator == "," and _THOUSANDS.fullmatch(cell)))
    ):
        decimal = signs[-1]
    whole, _, fraction = cell.partition(decimal) if decimal else (cell, "", "")
    sign = "." if separator == "," else decimal
    return re.sub("[.,]", "", whole) + (f"{sign}{fraction}" if decimal else "")
