"""Labels, weights and classes of rows: one validated number per row."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pplgen.data.objects import as_frame, as_pandas
from pplgen.errors import DataWarning, InputError

__all__ = ["row_labels", "row_weights"]


def row_labels(labels: Any, num_rows: int, name: str = "labels") -> Tensor:
    """Return one integer label per row, -1 where it is unknown; NaN and -1 in ``labels`` mean unknown."""
    numbers = _one_per_row(name, labels, num_rows)
    distinct = numbers[numbers >= 0].unique().tolist()
    if len(distinct) > 1 and distinct == list(range(1, len(distinct) + 1)):
        last = len(distinct)
        message = f"{name}: they are counted from 0, and these are 1 to {last}; subtract 1 if these are counted from 1"
        warnings.warn(message, DataWarning, stacklevel=4)
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
        frame = as_frame(values)
        cells = pd.Series(values) if frame is None else as_pandas(frame, [0]).iloc[:, 0]
        numbers = torch.from_numpy(np.array(cells.to_numpy("float64", na_value=np.nan), ndmin=1))
    except InputError:
        raise
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
