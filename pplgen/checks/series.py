"""Check of one-step-ahead predictions of series: whether they are calibrated, and their errors independent."""

from __future__ import annotations

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from pplgen.checks.check import Check, Verdict, not_applicable
from pplgen.checks.inputs import CheckInputs
from pplgen.checks.uniformity import holm
from pplgen.errors import InputError
from pplgen.posterior.draws import draw_shared
from pplgen.posterior.residuals import autocorrelations, quantile_residuals
from pplgen.story.state_space import StateSpaceStory

__all__ = ["FEWEST", "correlation_tests", "one_step_residuals"]

LEVEL = 0.01
"""Family-wise level of the tests."""
DRAWS = 50
"""Draws of the parameters."""
FEWEST = 20
"""Minimum number of predicted entries of a column."""
MAX_LAGS = 40
"""Maximum number of lags, at most a quarter of the longest series."""


def one_step_residuals(inputs: CheckInputs) -> Check:
    """Smallest p-value of tests of one-step-ahead residuals of all series, with Holm's correction.

    A residual is the standard normal quantile of ``P(y_rep <= y_t | y_1:t-1)``. For each column four tests: the
    probabilities are uniform (Kolmogorov-Smirnov); the residuals' autocorrelations are zero at all lags (Ljung and Box
    1978); and at the lag where they are largest, with Bonferroni's correction, which detects a season.
    """
    name, source = "one-step-ahead residuals p-value (smallest, Holm)", "Ljung and Box 1978; Dawid 1984; Holm 1979"
    story = inputs.story
    if not isinstance(story, StateSpaceStory) or inputs.one_step_pit is None:
        return not_applicable(name, source, "the data are not series of a state space story")
    if not inputs.num_rows:
        return not_applicable(name, source, inputs.why_no_training_rows or "there are no series")
    y = inputs.rows[0]
    try:
        pit = inputs.one_step_pit(inputs.pair, y, draw_shared(inputs.pair, DRAWS), DRAWS)
    except InputError as reason:
        return not_applicable(name, source, str(reason))
    columns = [str(column) for column in inputs.columns] or [f"column {j + 1}" for j in range(y.shape[-1])]
    findings = [finding for j, column in enumerate(columns) for finding in _tests(pit[..., j], column)]
    if not findings:
        return not_applicable(name, source, f"no column has {FEWEST} predicted entries")
    adjusted = holm([p_value for p_value, _ in findings])
    worst = int(adjusted.argmin())
    value = float(adjusted[worst])
    if value > LEVEL:
        return Check(name, value, LEVEL, source, Verdict.PASS)
    return Check(name, value, LEVEL, source, Verdict.FAIL, findings[worst][1])


def _tests(pit: Tensor, column: str) -> list[tuple[float, str]]:
    """Return p-values of the tests of one column, and what each of them means."""
    values = pit[~pit.isnan()].cpu().numpy()
    if len(values) < FEWEST:
        return []
    sd, mean = float(np.std(values)), float(np.mean(values))
    wide = "too wide" if sd < 12**-0.5 else "too narrow"
    shape = f"P(y_rep <= y | past) has mean {mean:.2f} (expected .5) and sd {sd:.2f} (expected .29)"
    found = [(float(stats.kstest(values, "uniform").pvalue), f"{column}: {shape}: predictions are biased or {wide}")]
    found += correlation_tests(quantile_residuals(pit), column)
    return found


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
