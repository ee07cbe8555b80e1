"""Convert a float64 matrix to a validated float tensor; errors name column and row."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pplgen.errors import DataWarning, InputError

__all__ = [
    "ROUNDING",
    "SCALES",
    "WIDER",
    "as_dtype",
    "as_finite",
    "as_tensor",
    "check_shape",
    "in_range",
    "warn_of_rounding",
]

ROUNDING = 1e-3
"""Largest rounding error of a column, as a fraction of its standard deviation."""

SCALES = {torch.float32: (1e-9, 1e9), torch.float64: (1e-75, 1e75)}
"""Ranges (maximum minus minimum) of a column whose fourth power, as in the variance of a variance, fits each type."""

WIDER = "dtype='float64' (--dtype float64)"
"""How a user asks for it."""


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
    """Warn where rounding to ``dtype`` changes values by more than ``ROUNDING`` of their standard deviation ``std``."""
    if _is_lossy(rounding, std):
        message = f"{column} varies too little around its mean for {dtype}; read it with {WIDER}"
        warnings.warn(message, DataWarning, stacklevel=4)


def as_tensor(matrix: np.ndarray, columns: Sequence[str], dtype: torch.dtype | None) -> Tensor:
    """Convert to a floating-point type; raise for infinite values, warn of large rounding errors.

    ``None`` is torch's default type, or float64, with a warning, where that would lose what a column says: rounding
    changes it by more than ``ROUNDING`` of its standard deviation, or its range is outside ``SCALES``.
    """
    narrow = dtype or torch.get_default_dtype()
    if torch.promote_types(torch.from_numpy(matrix[:0]).dtype, narrow) == narrow or np.isinf(matrix).any():
        return as_finite(matrix, columns, narrow)  # nothing is rounded, or it says what is infinite
    with np.errstate(over="ignore", under="ignore"):
        rounded = matrix.astype(str(narrow).removeprefix("torch."))
    for name, wide, cut in zip(columns, matrix.T, rounded.T, strict=True):
        observed = wide[~np.isnan(wide)]
        rounding = np.abs(observed - cut[~np.isnan(wide)]).max(initial=0.0)
        std = _standard_deviation(observed) if rounding > 0 else 0.0
        extent = float(np.ptp(observed)) if len(observed) else 0.0
        if dtype is None and (_is_lossy(rounding, std) or not in_range(extent, narrow)):
            unfit = f"has a range of {extent:g}, outside that of a fit in {narrow}"
            why = f"varies too little around its mean for {narrow}" if in_range(extent, narrow) else unfit
            message = f"column {name!r} {why}; the table is read with {WIDER}"
            if in_range(extent, torch.float64):  # else training data are refused
                warnings.warn(message, DataWarning, stacklevel=4)
            return as_finite(matrix, columns, torch.float64)
        if dtype is not None:
            warn_of_rounding(f"column {name!r}", rounding, std, dtype)
    return as_finite(rounded, columns, narrow)


def in_range(extent: float, dtype: torch.dtype) -> bool:
    """Whether squares and fourth powers of a column's range are numbers of a type; 0, of a constant, is in range."""
    low, high = SCALES.get(dtype, SCALES[torch.float32])
    return extent == 0 or low <= extent <= high


def as_dtype(dtype: Any) -> torch.dtype | None:
    """Return the floating-point type that is named: ``"float64"``, ``torch.float64``, ``numpy.float64`` or ``None``.

    Raises
    ------
    InputError
        For any other than float32 and float64.
    """
    if dtype is None or dtype in SCALES:
        return dtype
    name = str(getattr(dtype, "__name__", dtype)).removeprefix("torch.")
    named = {str(each).removeprefix("torch."): each for each in SCALES}
    if name not in named:
        raise InputError(f"dtype={name!r}: expected one of {', '.join(named)}")
    return named[name]


def _is_lossy(rounding: float, std: float) -> bool:
    return rounding > 0 and rounding > ROUNDING * std > 0


def _standard_deviation(values: np.ndarray) -> float:
    """Return the standard deviation of numbers whose squares may be too large or too small for their type."""
    scale = float(np.abs(values).max(initial=0.0))
    return 0.0 if scale == 0 else float(np.std(values / scale)) * scale
