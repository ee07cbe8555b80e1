"""Labels, weights and classes of rows: one validated number per row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pplgen.errors import InputError

__all__ = ["row_labels", "row_weights"]


def row_labels(labels: Any, num_rows: int, name: str = "labels") -> Tensor:
    """Return one integer label per row, -1 where it is unknown; NaN and -1 in ``labels`` mean unknown."""
    numbers = _one_per_row(name, labels, num_rows)
    numbers = torch.where(numbers.isnan(), -1.0, numbers)
    _check_rows(name, (numbers != numbers.round()) | (numbers < -1), numbers, "0, 1, 2, ..., or nothing")
    return numbers.long()


def row_weights(weights: Any, num_rows: int) -> Tensor:
    """Return one weight per row in float64."""
    numbers = _one_per_row("weights", weights, num_rows)
    _check_rows("weights", ~(numbers.isfinite() & (numbers >= 0)), numbers, "a finite number of at least 0")
    if not numbers.any():
        raise InputError("weights: all are 0; at least one must be positive")
    return numbers


def _one_per_row(name: str, source: Any, num_rows: int) -> Tensor:
    try:
        values = source.detach().cpu() if isinstance(source, Tensor) else source
        numbers = torch.from_numpy(np.array(pd.Series(values).to_numpy("float64", na_value=np.nan), ndmin=1))
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}: expected one number for each row: {error}") from None
    if len(numbers) != num_rows:
        raise InputError(f"{name}: {len(numbers)} values for {num_rows} rows; expected one for each row")
    return numbers


def _check_rows(name: str, invalid: Tensor, numbers: Tensor, expected: str) -> None:
    """Raise ``InputError`` for the first invalid row."""
    rows = torch.argwhere(invalid)
    if len(rows):
        row = int(rows[0])
        raise InputError(f"{name}, row {row + 1}: {numbers[row].item():g}: expected {expected}")
