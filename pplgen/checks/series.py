"""Check of one-step-ahead predictions of series: whether they are calibrated, and their errors independent."""

from __future__ import annotations

import numpy as np
from scipy import stats
from torch import Tensor

from pplgen.checks.check import Check, not_applicable
from pplgen.checks.inputs import CheckInputs
from pplgen.checks.residual_tests import FEWEST, correlation_tests, smallest_p_value
from pplgen.errors import InputError
from pplgen.posterior.draws import draw_shared
from pplgen.posterior.residuals import quantile_residuals
from pplgen.story.state_space import StateSpaceStory

__all__ = ["one_step_residuals"]

DRAWS = 50
"""Draws of the parameters."""


def one_step_residuals(inputs: CheckInputs) -> Check:
    """Smallest p-value of tests of one-step-ahead residuals of all series, with Holm's correction.

    A residual is the standard normal quantile of ``P(y_rep <= y_t | y_1:t-1)``. For each column four tests: the
    probabilities are uniform (Kolmogorov-Smirnov); the residuals' autocorrelations are zero at lag one, at all lags
    (Ljung and Box 1978), and at the lag where they are largest, with Bonferroni's correction, which detects a season.
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
    return smallest_p_value(name, source, findings)


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
