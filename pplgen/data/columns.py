"""Which columns of a table are read: all, only some, or those that a fit was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from pplgen.errors import InputError, near_names

__all__ = ["ALL_COLUMNS", "ColumnSelection", "named_columns", "training_column_indices", "unnamed_columns"]


def unnamed_columns(number: int) -> tuple[str, ...]:
    """Names of columns that came without any: x0, x1, ..."""
    return tuple(f"x{i}" for i in range(number))


def named_columns(*given: Any) -> tuple[str, ...]:
    """Return what is the name of a column, among values that may be columns themselves, or ``None``."""
    return tuple(each for each in given if isinstance(each, str))


@dataclass(frozen=True)
class ColumnSelection:
    """Columns that are taken from a table.

    Attributes
    ----------
    only
        Names of those that are, in this order; ``None`` for all.
    ignore
        Names of those that are not.
    extra
        Columns that are read whatever ``only`` says, last, such as that of weights.
    categorical
        Further ones beside the data, whose text is coded 0, 1, ...: those of labels or series.
    training
        Columns of a fit, which are taken in their order from a table that has them among others.
    """

    only: Sequence[str] | None = None
    ignore: Sequence[str] = ()
    extra: Sequence[str] = ()
    categorical: Sequence[str] = ()
    training: Sequence[str] | None = None

    def __post_init__(self) -> None:
        for option in ("only", "ignore"):
            if isinstance(getattr(self, option), str):
                given = getattr(self, option)
                raise InputError(f"{option}={given!r}: expected a list of columns, such as {option}=[{given!r}]")

    def select_frame(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Take the columns of a frame."""
        return frame if self == ALL_COLUMNS else frame.iloc[:, self._places([str(name) for name in frame.columns])]

    def select_matrix(self, matrix: np.ndarray, columns: tuple[str, ...]) -> tuple[np.ndarray, tuple[str, ...]]:
        """Take the columns of numbers, shape ``(..., num_features)``."""
        if self == ALL_COLUMNS:
            return matrix, columns
        places = self._places(columns)
        return matrix[..., places], tuple(columns[place] for place in places)

    def _places(self, columns: Sequence[str]) -> list[int]:
        """Return where the columns are that are taken.

        Raises
        ------
        InputError
            Where one is not there.
        """
        for option, names in (("only", self.only or ()), ("ignore", self.ignore)):
            for name in names:
                if name not in columns:
                    given = f"{option}={name!r}: expected some of the columns {', '.join(columns)}"
                    raise InputError(f"{given}{near_names(name, columns)}")
        others = {*self.extra, *self.categorical}
        own = [place for place, name in enumerate(columns) if name not in others]
        if self.training is not None:
            places = training_column_indices([columns[place] for place in own], self.training)
            own = own if places is None else [own[place] for place in places]
        elif self.only is not None:
            own = [place for name in self.only for place in own if columns[place] == name]
        beside = [place for place, name in enumerate(columns) if name in others]
        kept = [*(place for place in own if columns[place] not in self.ignore), *beside]
        if not kept:
            raise InputError(f"ignore: no column is left of {', '.join(columns)}")
        return kept if self.only is not None or self.training is not None else sorted(kept)


ALL_COLUMNS = ColumnSelection()
"""Every column."""


def training_column_indices(columns: Sequence[str], trained: Sequence[str]) -> list[int] | None:
    """Return where the training columns are among others, ``None`` where either side has no names of its own.

    Raises
    ------
    InputError
        Where one of them is not there.
    """
    if any(tuple(names) == unnamed_columns(len(names)) for names in (columns, trained)):
        return None
    for name in trained:
        if name not in columns:
            raise InputError(f"there is no column {name!r}; expected the training columns {', '.join(trained)}")
    return [place for name in trained for place, other in enumerate(columns) if other == name]
