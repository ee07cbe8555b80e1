"""Check for rows that occur more than once: in the training data, or in both training data and the rows given."""

from __future__ import annotations

from typing import Any

import torch
from scipy import stats
from torch import Tensor

from pplgen.checks.check import Check, Verdict, not_applicable
from pplgen.checks.inputs import CheckInputs

__all__ = ["repeated_rows"]

LEVEL = 0.001
"""Probability, with independent rows, of more repeated rows than the threshold."""
CONCENTRATION = 3.0
"""Bound of the sum of squared probabilities of cells of a column, in multiples of that of a uniform distribution; 1.4
for a normal distribution over five standard deviations."""
MAX_ROWS = 100_000
"""Largest number of rows that are compared."""


def repeated_rows(inputs: CheckInputs) -> Check:
    """Count different rows that occur more than once; with rows other than the training rows, those that are in both.

    Two independent rows of continuous data are hardly ever equal, so that equal ones have been copied: they count twice
    in the likelihood, or leak from the training data into a test set. The threshold allows for rounding: with columns
    on a grid of G cells, ``n^2 / 2G`` pairs are expected, and the number of repeated rows is at most Poisson.
    """
    name, source = "repeated rows (count)", "this package"
    if reason := inputs.why_no_training_rows:
        return not_applicable(name, source, reason)
    if inputs.story is not None and inputs.story.takes_series:
        return not_applicable(name, source, "the data are series")
    training = _table(inputs, inputs.pair.data)
    if training is None or not 1 < len(training) <= MAX_ROWS:
        return not_applicable(name, source, f"it needs up to {MAX_ROWS:,} rows of numbers")
    given = training if inputs.is_training else _table(inputs, inputs.rows)
    if given is None or not 0 < len(given) <= MAX_ROWS:
        return not_applicable(name, source, f"it needs up to {MAX_ROWS:,} rows of numbers")
    if inputs.is_training:
        pairs = len(training) ** 2 / 2
        value = int((torch.unique(training, dim=0, return_counts=True)[1] > 1).sum())
    else:
        pairs = len(training) * len(given)
        both = torch.cat([torch.unique(training, dim=0), torch.unique(given, dim=0)])
        value = int((torch.unique(both, dim=0, return_counts=True)[1] > 1).sum())
    expected = CONCENTRATION * pairs / max(_cells(column) for column in training.T)
    threshold = float(stats.poisson.isf(LEVEL, expected))
    if value <= threshold:
        return Check(name, value, threshold, source, Verdict.PASS)
    if inputs.is_training:
        remedy = f"{value:,} rows occur more than once, and would hardly by chance: copies count twice, and what is "
        remedy += "measured on rows left out is too good; remove them, or give their number by weights"
    else:
        remedy = f"{value:,} of these rows are also training rows: what is measured on them is too good; remove them"
    return Check(name, value, threshold, source, Verdict.FAIL, remedy)


def _table(inputs: CheckInputs, rows: tuple[Any, ...]) -> Tensor | None:
    """Concatenate all columns of arguments that have rows, shape ``(num_rows, num_columns)``; ``None`` without any."""
    parts = [
        value.movedim(axis, 0).reshape(value.shape[axis], -1).double()
        for value, axis in zip(rows[: inputs.pair.num_arguments], inputs.structure.row_axes.axes, strict=False)
        if isinstance(value, Tensor) and axis is not None
    ]
    return torch.cat(parts, dim=1).nan_to_num(nan=0.0) if parts and parts[0].numel() else None


def _cells(column: Tensor) -> float:
    """Range of a column in units of the smallest difference of two values, at least the number of cells of its grid."""
    values = torch.unique(column)
    if len(values) < 2:
        return 1.0
    return float((values[-1] - values[0]) / values.diff().min()) + 1
