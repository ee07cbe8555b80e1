"""Selection of the columns to read from a table: all, some, or the training columns of a fit."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pplgen.errors import DataWarning, InputError, near_names

__all__ = [
    "ALL_COLUMNS",
    "ColumnSelection",
    "image_shape",
    "named_columns",
    "training_column_indices",
    "unnamed_columns",
]


def unnamed_columns(number: int) -> tuple[str, ...]:
    """Return default column names: x0, x1, ..."""
    return tuple(f"x{i}" for i in range(number))


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


def named_columns(*arguments: Any) -> tuple[str, ...]:
    """Return the arguments that are column names, rather than arrays or ``None``."""
    return tuple(each for each in arguments if isinstance(each, str))


@dataclass(frozen=True)
class ColumnSelection:
    """Columns to read from a table.

    Attributes
    ----------
    only
        Names of the columns to read, in this order; ``None`` for all.
    ignore
        Names of columns to leave out.
    extra
        Columns that are read regardless of ``only`` and placed last, such as weights.
    categorical
        Further such columns whose text is encoded as 0, 1, ...: labels or series identifiers.
    training
        Training columns of a fit, read by name in their order; other columns of the table are ignored.
    identifiers
        Columns that are no data and stay beside their rows.
    series
        Column that identifies the series of each row; like an identifier.
    carry_all
        Whether all columns, as they stand in the source, stay beside their rows.
    header
        Whether the first line of text holds the columns' names; ``None``: as its cells suggest.
    """

    only: Sequence[str] | None = None
    ignore: Sequence[str] = ()
    extra: Sequence[str] = ()
    categorical: Sequence[str] = ()
    training: Sequence[str] | None = None
    identifiers: Sequence[str] = ()
    series: str | None = None
    carry_all: bool = False
    header: bool | None = None

    def __post_init__(self) -> None:
        for option in ("only", "ignore"):
            if isinstance(getattr(self, option), str):
                name = getattr(self, option)
                raise InputError(f"{option}={name!r}: expected a list of columns, such as {option}=[{name!r}]")

    def select_matrix(self, matrix: np.ndarray, columns: tuple[str, ...]) -> tuple[np.ndarray, tuple[str, ...]]:
        """Select columns of an array of shape ``(..., num_features)``."""
        indices = self.indices(columns)
        if indices == list(range(len(columns))):
            return matrix, columns
        return matrix[..., indices], tuple(columns[index] for index in indices)

    def carried_indices(self, columns: Sequence[str]) -> list[int]:
        """Return the indices of the columns that stay beside their rows.

        Raises
        ------
        InputError
            Where an identifier does not exist.
        """
        series = () if self.series is None else (self.series,)
        for option, names in (("id", self.identifiers), ("by", series)):
            for name in names:
                if name not in columns:
                    message = f"{option}={name!r}: expected one of the columns {_listed(columns)}"
                    raise InputError(f"{message}{near_names(name, columns)}")
        identifiers = [columns.index(name) for name in (*self.identifiers, *series)]
        return list(range(len(columns))) if self.carry_all else identifiers

    def indices(self, columns: Sequence[str]) -> list[int]:
        """Return the indices of the selected columns.

        Raises
        ------
        InputError
            Where a column does not exist.
        """
        for option, names in (("only", self.only or ()), ("ignore", self.ignore)):
            for name in names:
                if name not in columns:
                    message = f"{option}={name!r}: expected some of the columns {_listed(columns)}"
                    raise InputError(f"{message}{near_names(name, columns)}")
        auxiliary = {*self.extra, *self.categorical}
        set_aside = {*auxiliary, *self.identifiers, self.series}
        features = [index for index, name in enumerate(columns) if name not in set_aside]
        if self.training is not None:
            indices = training_column_indices([columns[index] for index in features], self.training)
            features = features if indices is None else [features[index] for index in indices]
        elif self.only is not None:
            features = [index for name in self.only for index in features if columns[index] == name]
        last = [index for index, name in enumerate(columns) if name in auxiliary]
        selected = [*(index for index in features if columns[index] not in self.ignore), *last]
        if not selected:
            besides = f"besides {self.series!r}" if self.series in columns else f"of {_listed(columns)}"
            raise InputError(f"no data column is left {besides}")
        return selected if self.only is not None or self.training is not None else sorted(selected)


ALL_COLUMNS = ColumnSelection()
"""Every column."""


def training_column_indices(columns: Sequence[str], training: Sequence[str]) -> list[int] | None:
    """Return the indices of the training columns, ``None`` where one side has default names only.

    Columns without names, of an array or a file without a header, are then taken in the order of training; as in
    scikit-learn this is a ``DataWarning`` where the other side has names.

    Raises
    ------
    InputError
        Where a training column does not exist.
    """
    if tuple(columns) == tuple(training):
        return list(range(len(columns)))
    unnamed, untrained = (tuple(names) == unnamed_columns(len(names)) for names in (columns, training))
    if unnamed or untrained:
        if len(columns) == len(training) > 1:
            which = "the rows have no column names, but the fit has" if unnamed else "the fit has no column names"
            names = _listed(training if unnamed else columns)
            message = f"{which}: columns are taken in the order {names}"
            warnings.warn(message, DataWarning, stacklevel=2)
        return None
    for name in training:
        if name not in columns:
            raise InputError(f"there is no column {name!r}; expected the training columns {_listed(training)}")
    return [index for name in training for index, other in enumerate(columns) if other == name]


def _listed(names: Sequence[str]) -> str:
    """List names, at most twenty of them."""
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
