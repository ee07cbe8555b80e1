"""Selection of the columns to read from a table: all, some, or the training columns of a fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from pplgen.errors import InputError, near_names

__all__ = ["ALL_COLUMNS", "ColumnSelection", "named_columns", "training_column_indices", "unnamed_columns"]


def unnamed_columns(number: int) -> tuple[str, ...]:
    """Return default column names: x0, x1, ..."""
    return tuple(f"x{i}" for i in range(number))


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
    """

    only: Sequence[str] | None = None
    ignore: Sequence[str] = ()
    extra: Sequence[str] = ()
    categorical: Sequence[str] = ()
    training: Sequence[str] | None = None

    def __post_init__(self) -> None:
        for option in ("only", "ignore"):
            if isinstance(getattr(self, option), str):
                name = getattr(self, option)
                raise InputError(f"{option}={name!r}: expected a list of columns, such as {option}=[{name!r}]")

    def select_frame(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Select columns of a data frame."""
        return frame if self == ALL_COLUMNS else frame.iloc[:, self._indices([str(name) for name in frame.columns])]

    def select_matrix(self, matrix: np.ndarray, columns: tuple[str, ...]) -> tuple[np.ndarray, tuple[str, ...]]:
        """Select columns of an array of shape ``(..., num_features)``."""
        if self == ALL_COLUMNS:
            return matrix, columns
        indices = self._indices(columns)
        return matrix[..., indices], tuple(columns[index] for index in indices)

    def _indices(self, columns: Sequence[str]) -> list[int]:
        """Return the indices of the selected columns.

        Raises
        ------
        InputError
            Where a column does not exist.
        """
        for option, names in (("only", self.only or ()), ("ignore", self.ignore)):
            for name in names:
                if name not in columns:
                    message = f"{option}={name!r}: expected some of the columns {', '.join(columns)}"
                    raise InputError(f"{message}{near_names(name, columns)}")
        auxiliary = {*self.extra, *self.categorical}
        features = [index for index, name in enumerate(columns) if name not in auxiliary]
        if self.training is not None:
            indices = training_column_indices([columns[index] for index in features], self.training)
            features = features if indices is None else [features[index] for index in indices]
        elif self.only is not None:
            features = [index for name in self.only for index in features if columns[index] == name]
        last = [index for index, name in enumerate(columns) if name in auxiliary]
        selected = [*(index for index in features if columns[index] not in self.ignore), *last]
        if not selected:
            raise InputError(f"ignore: no column is left of {', '.join(columns)}")
        return selected if self.only is not None or self.training is not None else sorted(selected)


ALL_COLUMNS = ColumnSelection()
"""Every column."""


def training_column_indices(columns: Sequence[str], training: Sequence[str]) -> list[int] | None:
    """Return the indices of the training columns, ``None`` where either side has default names only.

    Raises
    ------
    InputError
        Where a training column does not exist.
    """
    if any(tuple(names) == unnamed_columns(len(names)) for names in (columns, training)):
        return None
    for name in training:
        if name not in columns:
            raise InputError(f"there is no column {name!r}; expected the training columns {', '.join(training)}")
    return [index for name in training for index, other in enumerate(columns) if other == name]
