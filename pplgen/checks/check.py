"""What a check is: a number beside its threshold and its source, a verdict, and what to do about it."""

from __future__ import annotations

import enum
import math
from collections import Counter
from dataclasses import dataclass, field
from typing import SupportsIndex, overload

import numpy as np

from pplgen.errors import InputError, near_names

__all__ = ["Check", "Checks", "RowShapes", "Verdict", "beside", "despite"]


class Verdict(enum.StrEnum):
    """What a check says."""

    PASS = "pass"
    WARN = "warn"
    FAIL = "fail"
    NOT_APPLICABLE = "not applicable"


@dataclass(frozen=True)
class RowShapes:
    """Pareto k of the importance weights of single rows, as a check judges them and a picture shows them.

    Attributes
    ----------
    rows : numpy.ndarray
        Which rows, counted from 1, shape ``(num_judged,)``.
    k : numpy.ndarray
        Theirs, infinite where no tail can be fitted, shape ``(num_judged,)``.
    limit : float
        What a row's k should not exceed.
    """

    rows: np.ndarray
    k: np.ndarray
    limit: float

    @property
    def high(self) -> np.ndarray:
        """Whether each row's k exceeds the limit, shape ``(num_judged,)``."""
        return self.k > self.limit

    def __str__(self) -> str:
        found = f"{self.high.sum():,} of {len(self.k):,} rows"
        return f"{found}, worst {self.k.max():.2f}" if self.high.any() else found


@dataclass(frozen=True)
class Check:
    """A named number and what it means.

    Attributes
    ----------
    name : str
        What was computed, with its unit.
    value : float
        The number; NaN where the check does not apply.
    threshold : float
        What it is held against.
    source : str
        Where definition and threshold come from.
    verdict : Verdict
        ``pass``, ``warn``, ``fail`` or ``not applicable``.
    remedy : str
        What was found and what to do about it, or why the check does not apply; where it passed, empty or a note.
    shapes : RowShapes or None
        What a check of the rows' weights judged, row by row.
    """

    name: str
    value: float
    threshold: float
    source: str
    verdict: Verdict
    remedy: str = ""
    shapes: RowShapes | None = field(default=None, compare=False, repr=False)

    @property
    def applies(self) -> bool:
        """Whether there is a verdict."""
        return self.verdict is not Verdict.NOT_APPLICABLE


class Checks(tuple[Check, ...]):
    """Checks in the order of their table, also by name: ``checks["bound gap (nats)"]``; shown as counts of verdicts."""

    __slots__ = ()

    @overload
    def __getitem__(self, key: SupportsIndex | str) -> Check: ...

    @overload
    def __getitem__(self, key: slice) -> Checks: ...

    def __getitem__(self, key: SupportsIndex | slice | str) -> Check | Checks:
        if isinstance(key, slice):
            return Checks(super().__getitem__(key))
        if not isinstance(key, str):
            return super().__getitem__(key)
        found = next((check for check in self if check.name == key), None)
        if found is None:
            names = [check.name for check in self]
            raise InputError(f"check {key!r}: expected one of {', '.join(names)}{near_names(key, names)}")
        return found

    def __repr__(self) -> str:
        counts = Counter(check.verdict for check in self)
        return f"<Checks: {', '.join(f'{counts[verdict]} {verdict}' for verdict in Verdict if counts[verdict])}>"


def despite(verdict: Verdict, value: float, threshold: float, reason: str) -> str:
    """Begin a remedy, or a note, with why a verdict does not follow from the value and the threshold beside it."""
    return f"{verdict}, though {'within' if value <= threshold else 'above'} the threshold: {reason}"


def beside(name: str, source: str, reason: str) -> Check:
    """Return a check that does not apply."""
    return Check(name, math.nan, math.nan, source, Verdict.NOT_APPLICABLE, reason)
