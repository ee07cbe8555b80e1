"""Numbers of claims with as many digits as matter; it imports neither torch nor anything else."""

from __future__ import annotations

import math

__all__ = ["as_claimed", "as_measured"]


def as_claimed(value: float) -> str:
    """Return a claimed number as it was given."""
    return f"{value:.11g}"


def as_measured(measured: float | None, claimed: float, allowed: float | None) -> str:
    """Return a measured number with digits down to a hundredth of what is allowed; of a difference, two.

    Empty where nothing was measured: ``None`` or NaN.
    """
    if measured is None or math.isnan(measured):
        return ""
    if claimed == 0:
        return f"{measured:.2g}"
    if not allowed or not math.isfinite(allowed):
        return as_claimed(measured)
    return f"{measured:.{max(0, 2 - math.floor(math.log10(allowed)))}f}"
