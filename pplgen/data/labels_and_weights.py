"""What is told of each row beside its data: labels, weights, classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pplgen.errors import InputError

__all__ = ["row_labels", "row_weights"]


def row_labels(given: Any, num_rows: int, what: str = "labels") -> Tensor:
    """Read one label for each row, missing or -1 where it is not known, as whole numbers with -1 for unknown."""
    numbers = _one_per_row(what, given, num_rows)
    numbers = torch.where(numbers.isnan(), -1.0, numbers)
    _refuse_rows(what, (numbers != numbers.round()) | (numbers < -1), numbers, "0, 1, 2, ..., or nothing")
    return numbers.long()


def row_weights(given: Any, num_rows: int) -> Tensor:
    """Read one weight for each row, in double precision."""
    numbers = _one_per_row("weights", given, num_rows)
    _refuse_rows("weights", ~(numbers.isfinite() & (numbers >= 0)), numbers, "a finite number of at least 0")
    if not numbers.any():
        raise InputError("weights: all of them are 0; at least one row must count")
    return numbers


def _one_per_row(what: str, given: Any, num_rows: int) -> Tensor:
    try:
        values = given.detach().cpu() if isinstance(given, Tensor) else given
        numbers = torch.from_numpy(np.array(pd.Series(values).to_numpy("float64", na_value=np.nan), ndmin=1))
    except (TypeError, ValueError) as error:
        raise InputError(f"{what}: expected one number for each row: {error}") from None
    if len(numbers) != num_rows:
        raise InputError(f"{what}: {len(numbers)} values for {num_rows} rows; expected one for each row")
    return numbers


def _refuse_rows(what: str, wrong: Tensor, numbers: Tensor, expected: str) -> None:
    """Name the first row whose number is wrong."""
    found = torch.argwhere(wrong)
    if len(found):
        row = int(found[0])
        raise InputError(f"{what}, row {row + 1}: {numbers[row].item():g}: expected {expected}")
