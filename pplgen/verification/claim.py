"""What a claim is, and what becomes of it when it is measured."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pyro

from pplgen.errors import first_line
from pplgen.story.isolation import seeded
from pplgen.verification.sources import NotAtHand, Sources

__all__ = ["Claim", "Estimate", "Outcome", "Result", "measure"]

STANDARD_ERRORS = 4
"""Of a Monte Carlo estimate, that it may be off beside a claim's own tolerance; once in 16,000 it is by chance."""


@dataclass(frozen=True)
class Estimate:
    """A measured value with its Monte Carlo standard error."""

    value: float
    standard_error: float = 0.0


@dataclass(frozen=True)
class Claim:
    """A number that the documentation claims, and the function that measures it.

    Attributes
    ----------
    name : str
        Unique, in lower case with hyphens.
    subject : str
        Story as ``pplgen list`` names it, or what else the claim is about: a module, ``engine``, ``trust``.
    what : str
        What the number is, with its unit. Where two computations are held against each other, how far they are apart.
    claimed : float
        The number.
    tolerance : float
        How far the measured number may be from it, beside ``STANDARD_ERRORS`` of an ``Estimate``.
    basis : str
        Where the tolerance comes from.
    source : str
        Where the number comes from.
    measure : callable
        Takes ``Sources``; returns a number, or an ``Estimate``. Called with generators seeded by 0.
    slow : bool
        Whether it takes more than some seconds.
    """

    name: str
    subject: str
    what: str
    claimed: float
    tolerance: float
    basis: str
    source: str
    measure: Callable[[Sources], float | Estimate] | partial[float] | partial[Estimate]
    slow: bool = False


class Outcome(enum.StrEnum):
    """What becomes of a claim."""

    HOLDS = "holds"
    FAILS = "fails"
    NOT_RUN = "not run"


@dataclass(frozen=True)
class Result:
    """A claim beside what was measured.

    Attributes
    ----------
    claim : Claim
        What was claimed.
    outcome : Outcome
        Whether it holds.
    measured : float
        NaN where nothing was.
    allowed : float
        Tolerance with the standard errors of an estimate; NaN where nothing was measured.
    note : str
        Why it was not run, or what was raised.
    """

    claim: Claim
    outcome: Outcome
    measured: float = math.nan
    allowed: float = math.nan
    note: str = ""


def measure(claim: Claim, sources: Sources) -> Result:
    """Measure and judge; what is raised is a failure with its message, and data that are not at hand are none."""
    try:
        with seeded(0), pyro.get_param_store().scope():
            found = claim.measure(sources)
    except NotAtHand as reason:
        return Result(claim, Outcome.NOT_RUN, note=str(reason))
    except Exception as error:
        return Result(claim, Outcome.FAILS, note=f"{type(error).__name__}: {first_line(error)}")
    estimate = found if isinstance(found, Estimate) else Estimate(float(found))
    allowed = claim.tolerance + STANDARD_ERRORS * estimate.standard_error
    holds = abs(estimate.value - claim.claimed) <= allowed < math.inf
    return Result(claim, Outcome.HOLDS if holds else Outcome.FAILS, estimate.value, allowed)
