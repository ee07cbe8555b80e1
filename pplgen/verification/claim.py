"""Numerical claims, and the outcome of measuring them."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pyro

from pplgen.errors import first_line
from pplgen.story.isolation import seeded
from pplgen.verification.data_sources import NotAvailable, Sources

__all__ = ["Claim", "Estimate", "Outcome", "Result", "measure"]

STANDARD_ERRORS = 4
"""Monte Carlo standard errors allowed in addition to a claim's tolerance; exceeded by chance once in 16,000."""


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
        Unique name, in lower case with hyphens.
    subject : str
        Story, by its name in ``pplgen list``, or another subject: a module, ``engine``, ``trust``.
    what : str
        Description of the number, with its unit; for two computations of the same quantity, their difference.
    claimed : float
        Claimed value.
    tolerance : float
        Allowed difference of the measured value, in addition to ``STANDARD_ERRORS`` of an ``Estimate``.
    basis : str
        Origin of the tolerance.
    source : str
        Origin of the claimed value.
    measure : callable
        Takes ``Sources``; returns a number or an ``Estimate``. Random generators are seeded with 0.
    slow : bool
        Whether measuring takes more than a few seconds.
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
    """Outcome of a claim."""

    HOLDS = "holds"
    FAILS = "fails"
    NOT_RUN = "not run"


@dataclass(frozen=True)
class Result:
    """A claim and its measured value.

    Attributes
    ----------
    claim : Claim
        The claim.
    outcome : Outcome
        Whether it holds.
    measured : float
        Measured value; NaN if there is none.
    allowed : float
        Tolerance plus the standard errors of an estimate; NaN if nothing was measured.
    note : str
        Why it was not run, or the exception.
    """

    claim: Claim
    outcome: Outcome
    measured: float = math.nan
    allowed: float = math.nan
    note: str = ""


def measure(claim: Claim, sources: Sources) -> Result:
    """Measure a claim; an exception is a failure with its message, unless data or packages are not available."""
    try:
        with seeded(0), pyro.get_param_store().scope():
            measured = claim.measure(sources)
    except NotAvailable as reason:
        return Result(claim, Outcome.NOT_RUN, note=str(reason))
    except Exception as error:
        return Result(claim, Outcome.FAILS, note=f"{type(error).__name__}: {first_line(error)}")
    estimate = measured if isinstance(measured, Estimate) else Estimate(float(measured))
    allowed = claim.tolerance + STANDARD_ERRORS * estimate.standard_error
    holds = abs(estimate.value - claim.claimed) <= allowed < math.inf
    return Result(claim, Outcome.HOLDS if holds else Outcome.FAILS, estimate.value, allowed)
