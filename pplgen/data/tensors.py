"""Convert a float64 matrix to a validated float tensor; errors name column and row."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pplgen.errors import DataWarning, InputError

__all__ = ["as_finite", "as_tensor", "check_shape", "warn_of_rounding"]


def check_shape(name: str, shape: tuple[int, ...]) -> None:
    """Raise ``InputError`` for data without rows or columns."""
    if 0 in shape:
        raise InputError(f"{name}: the data are empty, with shape {shape}; give at least one row and one column")


def as_finite(matrix: np.ndarray, columns: Sequence[str], dtype: torch.dtype, *, first_row: int = 1) -> Tensor:
    """Convert to a floating-point type; raise ``InputError`` for infinite values, counting rows from ``first_row``."""
    values = torch.from_numpy(np.ascontiguousarray(matrix)).to(dtype)
    # a finite sum rules out infinities cheaply
    infinite = values.new_empty(0) if values.sum().isfinite() else torch.argwhere(values.isinf())
    if len(infinite):
        row, j = infinite[0].tolist()
        cell = f"column {columns[j]!r}, row {first_row + row}: {matrix[row, j]:g}"
        raise InputError(f"{cell} is not a finite number in {dtype}")
    return values


def warn_of_rounding(column: str, rounding: float, std: float, dtype: torch.dtype) -> None:
    """Warn where rounding to ``dtype`` changes values by more than a thousandth of their standard deviation ``std``."""
    if rounding > 0 and rounding > 1e-3 * std > 0:
        message = f"column {column!r} varies too little around its mean for {dtype}; subtract an offset from it"
        warnings.warn(message, DataWarning, stacklevel=4)


def as_tensor(matrix: np.ndarray, columns: Sequence[str], dtype: torch.dtype) -> Tensor:
    """Convert to a floating-point type; raise for infinite values, warn of large rounding errors."""
    values = as_finite(matrix, columns, dtype)
    if torch.promote_types(torch.from_numpy(matrix).dtype, dtype) == dtype:
        return values  # nothing is rounded
    for j, (name, wide) in enumerate(zip(columns, matrix.T, strict=True)):
        observed = ~np.isnan(wide)
        rounding = np.abs(wide - values[:, j].double().numpy())[observed].max(initial=0.0)
        warn_of_rounding(name, rounding, np.std(wide[observed]) if rounding > 0 else 0.0, dtype)
    return values
