"""Formatting of claimed and measured numbers with significant digits; imports only the standard library."""

from __future__ import annotations

import math

__all__ = ["as_claimed", "as_measured"]


def as_claimed(value: float) -> str:
    """Format a claimed number with all its digits."""
    return f"{value:.11g}"


def as_measured(measured: float | None, claimed: float, allowed: float | None) -> str:
    """Format a measured number with digits down to a hundredth of the tolerance; two digits for a difference.

    Empty if nothing was measured: ``None`` or NaN.
    """
    if measured is None or math.isnan(measured):
        return ""
    if claimed == 0:
        return f"{measured:.2g}"
    if not allowed or not math.isfinite(allowed):
        return as_claimed(measured)
    return f"{measured:.{max(0, 2 - math.floor(math.log10(allowed)))}f}"
