"""Tests of residuals that are standard normal and independent under the model, and the check that they make."""

from __future__ import annotations

import torch
from scipy import stats
from torch import Tensor

from pplgen.checks.check import Check, Verdict
from pplgen.checks.uniformity import holm
from pplgen.posterior.residuals import autocorrelations

__all__ = ["FEWEST", "correlation_tests", "smallest_p_value"]

LEVEL = 0.01
"""Family-wise level of the tests of a check."""
FEWEST = 20
"""Minimum number of entries of a column."""
MAX_LAGS = 40
"""Maximum number of lags, at most a quarter of the longest series."""


def smallest_p_value(
    name: str, source: str, findings: list[tuple[float, str]], verdict: Verdict = Verdict.FAIL
) -> Check:
    """Return the check of p-values, each with what it means, by Holm's correction; ``verdict`` where one is small."""
    adjusted = holm([p_value for p_value, _ in findings])
    worst = int(adjusted.argmin())
    value = float(adjusted[worst])
    if value > LEVEL:
        return Check(name, value, LEVEL, source, Verdict.PASS)
    return Check(name, value, LEVEL, source, verdict, findings[worst][1])


def correlation_tests(residuals: Tensor, column: str) -> list[tuple[float, str]]:
    """Return p-values of autocorrelation, at lag one, all lags and the strongest, and what each of them means.

    Parameters
    ----------
    residuals
        Standard normal under the model, shape ``(num_series, T)``, NaN where missing.
    column
        Name of the column.
    """
    number = int((~residuals.isnan()).sum())
    num_lags = min(MAX_LAGS, residuals.shape[1] // 4)
    r, pairs = autocorrelations(residuals, num_lags) if num_lags else (torch.zeros(0), torch.zeros(0))
    r, pairs = r[pairs > 0], pairs[pairs > 0]
    if not len(r):
        return []
    squares = number * (number + 2) * r.square() / pairs
    strongest = int(squares.argmax())
    where = f"{column}: residuals are correlated, most at lag {strongest + 1} (r = {float(r[strongest]):.2f})"
    more = "more lags, states or regimes" if strongest == 0 else f"a season of {strongest + 1} steps, or more lags"
    remedy = f"{where}; give the model {more}"
    first = float(stats.chi2.sf(float(squares[0]), 1))
    adjacent = f"{column}: residuals of adjacent steps are correlated (r = {float(r[0]):.2f}); give the model more lags"
    box = float(stats.chi2.sf(float(squares.sum()), len(r)))
    single = min(1.0, len(r) * float(stats.chi2.sf(float(squares[strongest]), 1)))
    return [(first, f"{adjacent}, states or regimes"), (box, remedy), (single, remedy)]
