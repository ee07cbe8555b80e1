"""Checks of residuals of rows: whether covariates, groups, or the order of the rows predict them.

A residual is the standard normal quantile of an entry's LOO-PIT (Dunn and Smyth 1996, where nothing is left out), so
that residuals of any likelihood are independent standard normals if the model is right.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from pplgen.checks.check import Check, Verdict, not_applicable
from pplgen.checks.inputs import CheckInputs
from pplgen.checks.leave_one_out_pit import LeaveOneOutPit, leave_one_out_pit
from pplgen.checks.residual_tests import FEWEST, correlation_tests, smallest_p_value
from pplgen.story.state_space import StateSpaceStory

__all__ = ["residuals_against_covariates", "residuals_in_order"]

MAX_COVARIATES = 50
"""Maximum number of columns of covariates, evenly spaced."""
ROWS_PER_GROUP = 5
"""Smallest average number of rows of a group."""
SORTED = 0.99
"""Rank correlation of a column with the row number above which the rows are sorted by it."""
DUNN = "Dunn and Smyth 1996; Holm 1979"


def residuals_against_covariates(inputs: CheckInputs) -> Check:
    """Smallest p-value of tests that covariates do not predict residuals or their squares, with Holm's correction.

    Covariates are arguments with an entry per row that the model does not observe. For numbers, Spearman's rank
    correlation with the covariate and with its distance from the median, which detects a curve; for groups, integers,
    the test of Kruskal and Wallis.
    """
    name = "residuals against covariates p-value (smallest, Holm)"
    pit = inputs.once(leave_one_out_pit)
    if isinstance(pit, str):
        return not_applicable(name, DUNN, pit)
    covariates = dict(_covariates(inputs, pit))
    findings = [
        finding
        for label, residuals in _residuals(pit)
        for which, values in covariates.items()
        for finding in _tests(residuals, values, f"{label}: {{}} depends on {which}")
    ]
    if not findings:
        reason = "the model has no covariates" if not covariates else f"no column has {FEWEST} entries"
        return not_applicable(name, DUNN, reason)
    return smallest_p_value(name, DUNN, findings)


def residuals_in_order(inputs: CheckInputs) -> Check:
    """Smallest p-value of tests that residuals do not depend on the order of the rows, with Holm's correction.

    Autocorrelations at lag one, at all lags together (Ljung and Box 1978) and at the strongest, and rank correlation
    with the row number. Without covariates this is a warning: exchangeable rows may have been sorted by what they are.
    Series have a check of their own.
    """
    name, source = "residuals in the order of rows p-value (smallest, Holm)", "Ljung and Box 1978; Dunn and Smyth 1996"
    if isinstance(inputs.story, StateSpaceStory):
        return not_applicable(name, source, "the rows are series, see one-step-ahead residuals")
    pit = inputs.once(leave_one_out_pit)
    if isinstance(pit, str):
        return not_applicable(name, source, pit)
    if pit.spacing > 1:
        return not_applicable(name, source, f"one row in {pit.spacing} is replicated")
    values = inputs.replicates.values.double().cpu().numpy()
    if any(_sorted(column) for column in values.T):
        return not_applicable(name, source, "the rows are sorted by their values")
    findings = [finding for label, residuals in _residuals(pit) for finding in _order_tests(residuals, label)]
    if not findings:
        return not_applicable(name, source, f"no column has {FEWEST} entries")
    return smallest_p_value(name, DUNN, findings, Verdict.FAIL if any(_covariates(inputs, pit)) else Verdict.WARN)


def _residuals(pit: LeaveOneOutPit) -> Iterator[tuple[str, np.ndarray]]:
    """Residuals of each column that has enough entries, NaN where missing, shape ``(num_rows,)``."""
    for label, column in zip(pit.columns, pit.residuals.T, strict=True):
        if (~np.isnan(column)).sum() >= FEWEST:
            yield label, column


def _covariates(inputs: CheckInputs, pit: LeaveOneOutPit) -> Iterator[tuple[str, np.ndarray]]:
    """Columns of arguments that have rows and are not observed, at the rows of the residuals."""
    nodes, pair = inputs.traces[1].nodes, inputs.pair
    observed = [nodes[name]["value"] for name in inputs.structure.observed]
    axes = inputs.structure.row_axes.axes
    for place, (value, axis) in enumerate(zip(inputs.rows[: pair.num_arguments], axes, strict=False)):
        seen = pair.data[place]
        if axis is None or not isinstance(value, Tensor) or any(_same(seen, each) for each in observed):
            continue
        table = value.movedim(axis, 0).reshape(value.shape[axis], -1)[:: pit.spacing]
        for column in range(0, table.shape[1], -(-table.shape[1] // MAX_COVARIATES)):
            label = f"argument {place + 1}" + (f", column {column + 1}" if table.shape[1] > 1 else "")
            values = table[:, column].cpu().numpy()
            if len(values) == len(pit.values) and len(np.unique(values)) > 1:
                yield label, values


def _same(argument: Tensor, observed: Tensor) -> bool:
    """Whether an argument is what a site observes, up to its shape."""
    if argument.numel() != observed.numel():
        return False
    flat = argument.reshape(-1).to(observed.dtype)
    return bool(torch.isclose(flat, observed.reshape(-1), rtol=0, atol=0, equal_nan=True).all())


def _tests(residuals: np.ndarray, covariate: np.ndarray, finding: str) -> Iterator[tuple[float, str]]:
    """P-values of one column of residuals and one covariate, and what each of them means."""
    seen = ~np.isnan(residuals) & ~np.isnan(covariate.astype(float))
    residuals, covariate = residuals[seen], covariate[seen]
    term = f"{finding.format('the mean residual')}: a term is missing, or has a wrong form or link"
    scale = f"{finding.format('the spread of residuals')}: give the likelihood a scale that depends on it"
    quantities = ((residuals, term), (np.square(residuals), scale))
    groups = np.unique(covariate)
    if not np.issubdtype(covariate.dtype, np.floating) or len(groups) == 2:
        if 1 < len(groups) <= len(covariate) / ROWS_PER_GROUP:
            for quantity, remedy in quantities:
                yield float(stats.kruskal(*(quantity[covariate == group] for group in groups)).pvalue), remedy
        return
    if len(groups) > 1:
        for values in (covariate, np.abs(covariate - np.median(covariate))):
            for quantity, remedy in quantities:
                yield _rank_correlation(quantity, values), remedy


def _order_tests(residuals: np.ndarray, label: str) -> list[tuple[float, str]]:
    """P-values of one column of residuals in the order of rows, and what each of them means."""
    seen = ~np.isnan(residuals)
    trend = (
        f"{label}: residuals have a trend over the rows; give the model the order of the rows, if it means something"
    )
    p_value = _rank_correlation(residuals[seen], np.flatnonzero(seen))
    return [(p_value, trend), *correlation_tests(torch.from_numpy(residuals)[None], label)]


def _rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """P-value of Spearman's rank correlation; 1 if either is constant."""
    p_value = float(stats.spearmanr(first, second).pvalue) if np.ptp(first) and np.ptp(second) else 1.0
    return 1.0 if np.isnan(p_value) else p_value


def _sorted(column: np.ndarray) -> bool:
    """Whether rows are sorted by a column."""
    seen = column[~np.isnan(column)]
    return len(seen) > 1 and np.ptp(seen) > 0 and abs(stats.spearmanr(seen, np.arange(len(seen))).statistic) > SORTED
