"""Series of equal or unequal length become one validated tensor; NaN is a missing entry, or the end of a series."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pandas.api.types import is_numeric_dtype
from torch import Tensor

from pplgen.data.columns import ColumnSelection, named_columns
from pplgen.data.labels_and_weights import row_weights
from pplgen.data.table import Table, check_training_columns, column_ranges, load_selected
from pplgen.errors import InputError

__all__ = ["check_training_series", "load_selected_series", "load_series"]


def load_series(
    source: Any,
    *,
    by: str | None = None,
    only: Sequence[str] | None = None,
    ignore: Sequence[str] = (),
    weights: Any = None,
    dtype: torch.dtype | None = None,
) -> Table:
    """Read one series or many.

    Parameters
    ----------
    source
        One series: whatever ``load_data`` takes, its rows being steps in order of time. Many: an array or tensor of
        shape ``(num_series, num_steps, num_features)``, or a list or tuple of single series, which may differ in
        length.
    by
        Column that tells the series of a table apart, numbers or text; series come in the order of their first steps,
        which keep theirs. Not part of the data.
    only, ignore
        Columns to read besides that of ``by``, and columns to leave out, such as dates; as for ``load_data``.
    weights
        How much each series counts, a number of at least 0 for each.
    dtype
        As for ``load_data``.

    Returns
    -------
    Table
        ``values`` of shape ``(num_series, num_steps, num_features)``; shorter series end in steps of NaN.

    Raises
    ------
    InputError
        As for ``load_data``, naming the series where there are many; and where their columns differ.
    """
    return load_selected_series(
        source, ColumnSelection(only, ignore, categorical=named_columns(by)), by, weights, dtype
    )


def load_selected_series(
    source: Any,
    selection: ColumnSelection,
    by: str | None = None,
    weights: Any = None,
    dtype: torch.dtype | None = None,
) -> Table:
    """Read some columns of series, as ``load_series`` does."""
    if by is not None and getattr(getattr(source, "values", source), "ndim", 2) == 3:
        raise InputError(f"by={by!r}: the data are series already, with three axes; expected a table")
    if isinstance(source, Table) and source.values.ndim == 3:
        values, columns = selection.select_matrix(source.values.cpu().numpy(), source.columns)
        table = replace(source, values=torch.from_numpy(values).to(dtype or source.values.dtype), columns=columns)
    elif by is not None:
        table = _grouped(source, by, selection, dtype)
    elif isinstance(source, (list, tuple)) and len(source) and _is_series(source[0]):
        table = _joined([_one(each, number, selection, dtype) for number, each in enumerate(source, start=1)], "array")
    elif isinstance(source, (np.ndarray, Tensor)) and source.ndim == 3:
        if 0 in source.shape:
            raise InputError(f"the array is empty, with shape {tuple(source.shape)}; give at least one series and step")
        table = _joined([_one(each, number, selection, dtype) for number, each in enumerate(source, start=1)], "array")
    else:
        table = _joined([load_selected(source, selection, dtype=dtype)])
    if weights is not None:
        table = replace(table, weights=row_weights(weights, len(table)).to(table.values.dtype))
    return table


def check_training_series(table: Table) -> None:
    """Refuse a single step and columns without values; warn of constant columns, which teach nothing."""
    ranges = column_ranges(table.values.flatten(0, 1))
    check_training_columns(table.name, table.values.shape[1], table.columns, *ranges, unit="step")


def _is_series(source: Any) -> bool:
    """Tell whether the first of several is a series, and not a number."""
    return isinstance(source, (str, Path, Table, pd.DataFrame)) or np.ndim(source) > 0


def _one(source: Any, number: int, selection: ColumnSelection, dtype: torch.dtype | None) -> Table:
    """Read one of several series."""
    try:
        return load_selected(source, selection, dtype=dtype)
    except InputError as error:
        raise InputError(f"series {number}: {error}") from None


def _grouped(source: Any, by: str, selection: ColumnSelection, dtype: torch.dtype | None) -> Table:
    """Split steps by the values of a column, which may be text."""
    named = source
    if isinstance(source, pd.DataFrame) and by in source.columns and not is_numeric_dtype(source[by]):
        codes = pd.factorize(source[by])[0]
        named = source.assign(**{by: np.where(codes < 0, np.nan, codes)})
    table = load_selected(named, selection, dtype=dtype)
    if by not in table.columns:
        raise InputError(f"by={by!r}: expected one of the columns {', '.join(table.columns)}")
    place = table.columns.index(by)
    keys = table.values[:, place]
    unknown = torch.argwhere(keys.isnan())
    if len(unknown):
        raise InputError(f"column {by!r}, row {int(unknown[0]) + 1}: the value is missing, so the step has no series")
    kept = [j for j in range(len(table.columns)) if j != place]
    columns = tuple(table.columns[j] for j in kept)
    if not kept:
        raise InputError(f"{table.name}: no column is left for the data beside {by!r}")
    distinct = pd.unique(keys.numpy())
    return _joined([Table(table.values[keys == key][:, kept], columns, table.name) for key in distinct.tolist()])


def _joined(series: Sequence[Table], name: str | None = None) -> Table:
    """Lay series beside one another, the shorter ones ending in NaN."""
    columns = series[0].columns
    if any(each.weights is not None or each.labels is not None for each in series):
        raise InputError("series: their steps have weights or labels; give weights, one for each series")
    for number, each in enumerate(series, start=1):
        if each.columns != columns:
            given, expected = ", ".join(each.columns), ", ".join(columns)
            raise InputError(f"series {number} has the columns {given}; expected those of the first, {expected}")
    values = torch.nn.utils.rnn.pad_sequence(
        [each.values for each in series], batch_first=True, padding_value=float("nan")
    )
    return Table(values, columns, name or series[0].name)
