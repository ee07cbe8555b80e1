"""What a check is: a number beside its threshold and its source, a verdict, and what to do about it."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

__all__ = ["Check", "Verdict", "beside"]


class Verdict(enum.StrEnum):
    """What a check says."""

    PASS = "pass"
    WARN = "warn"
    FAIL = "fail"
    NOT_APPLICABLE = "not applicable"


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
    """

    name: str
    value: float
    threshold: float
    source: str
    verdict: Verdict
    remedy: str = ""

    @property
    def applies(self) -> bool:
        """Whether there is a verdict."""
        return self.verdict is not Verdict.NOT_APPLICABLE


def beside(name: str, source: str, reason: str) -> Check:
    """Return a check that does not apply."""
    return Check(name, math.nan, math.nan, source, Verdict.NOT_APPLICABLE, reason)
