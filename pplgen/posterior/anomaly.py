"""Conformal anomaly detection: which rows are less likely than normal rows are."""

from __future__ import annotations

import math
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from pplgen.errors import InputError

__all__ = ["conformal_anomalies", "require_calibration_rows"]


def require_calibration_rows(num_rows: int, rate: float) -> None:
    """Raise ``InputError`` where normal rows are too few for a false-alarm rate."""
    needed = math.ceil(1 / rate) - 1
    if num_rows < needed:
        raise InputError(f"rate={rate:g}: {num_rows} normal rows cannot tell; expected at least {needed}")


def conformal_anomalies(score: Tensor, normal_score: Tensor, rate: float) -> xr.Dataset:
    """Flag rows whose score is higher than that of all but a fraction ``rate`` of normal rows.

    Parameters
    ----------
    score
        Minus the log density of the rows in nats, shape ``(num_rows,)``.
    normal_score
        That of the normal rows that calibrate it.
    rate
        False-alarm rate, between 0 and 1.

    Returns
    -------
    xarray.Dataset
        As of ``Fit.anomaly``.
    """
    ranked = normal_score.sort().values
    # the rank that a normal row exceeds with probability rate, up to the rounding of rate itself
    threshold = ranked[math.ceil((1 - rate) * (len(ranked) + 1) - 1e-9) - 1]
    num_as_high = len(ranked) - torch.searchsorted(ranked, score)
    columns = {
        "score": score,
        "p_value": (1.0 + num_as_high.double()) / (len(ranked) + 1),
        "flagged": score > threshold,
    }
    variables: dict[str, Any] = {name: ("row", value.numpy()) for name, value in columns.items()}
    variables |= {"normal_score": ("normal_row", normal_score.numpy()), "threshold": threshold.item()}
    return xr.Dataset(variables, attrs={"rate": rate})
