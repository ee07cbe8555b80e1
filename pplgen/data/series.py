"""Read time series of equal or unequal length as one tensor; NaN is a missing entry or padding at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from pplgen.data.cell_parsing import is_missing
from pplgen.data.columns import ColumnSelection
from pplgen.data.labels_and_weights import row_weights
from pplgen.data.table import Table, load_selected
from pplgen.data.tensors import as_dtype
from pplgen.errors import InputError

__all__ = ["load_selected_series", "load_series"]


def load_series(
    source: Any,
    *,
    by: str | None = None,
    only: Sequence[str] | None = None,
    ignore: Sequence[str] = (),
    weights: Any = None,
    header: bool | None = None,
    dtype: torch.dtype | str | None = None,
) -> Table:
    """Read one or several time series.

    Parameters
    ----------
    source
        One series: any source of ``load_data`` whose rows are steps in order of time. Several: an array or tensor of
        shape ``(num_series, num_steps, num_features)``, or a list or tuple of series, which may differ in length.
    by
        Column of numbers or text that identifies the series of each row in a table; not part of the data. Series are
        in the order of their first rows, steps in the order of the rows.
    only, ignore
        Columns to read besides ``by``, and columns to leave out, such as dates; as for ``load_data``.
    weights
        Non-negative weight of each series.
    header, dtype
        As for ``load_data``.

    Returns
    -------
    Table
        ``values`` of shape ``(num_series, num_steps, num_features)``; shorter series are padded with NaN. With ``by``,
        ``carried`` names the series.

    Raises
    ------
    InputError
        As for ``load_data``, naming the series where there are several; and where their columns differ.
    """
    return load_selected_series(source, ColumnSelection(only, ignore, header=header), by, weights, dtype)


def load_selected_series(
    source: Any,
    selection: ColumnSelection,
    by: str | None = None,
    weights: Any = None,
    dtype: torch.dtype | str | None = None,
) -> Table:
    """Read selected columns of series, as ``load_series`` does."""
    dtype = as_dtype(dtype)
    if by is not None and getattr(getattr(source, "values", source), "ndim", 2) == 3:
        raise InputError(f"by={by!r}: the data have three axes and are series already; expected a table")
    if isinstance(source, Table) and source.values.ndim == 3:
        values, columns = selection.select_matrix(source.values.cpu().numpy(), source.columns)
        table = replace(source, values=torch.from_numpy(values).to(dtype or source.values.dtype), columns=columns)
    elif by is not None:
        table = _split(source, by, selection, dtype)
    elif isinstance(source, (list, tuple)) and len(source) and _is_series(source[0]):
        table = _read_all(source, selection, dtype)
    elif isinstance(source, (np.ndarray, Tensor, xr.DataArray)) and source.ndim == 3:
        if 0 in source.shape:
            raise InputError(f"the array is empty, with shape {tuple(source.shape)}; give at least one series and step")
        table = _read_all(source, selection, dtype)
    else:
        table = _pad([load_selected(source, selection, dtype=dtype)])
    if weights is not None:
        table = replace(table, weights=row_weights(weights, len(table)).to(table.values.dtype))
    return table


def _is_series(source: Any) -> bool:
    """Whether an element of a list is a series rather than a number."""
    return isinstance(source, (str, Path, Table, pd.DataFrame)) or np.ndim(source) > 0


def _read_all(sources: Any, selection: ColumnSelection, dtype: torch.dtype | None) -> Table:
    """Read several series; all are float64 where one has to be."""
    series = []
    for number, source in enumerate(sources, start=1):
        try:
            series.append(load_selected(source, selection, dtype=dtype))
        except InputError as error:
            raise InputError(f"series {number}: {error}") from None
    return _pad(series, "array")


def _split(source: Any, by: str, selection: ColumnSelection, dtype: torch.dtype | None) -> Table:
    """Split a table into series by the values of a column, which may be text."""
    table = load_selected(source, replace(selection, categorical=(), series=by), dtype=dtype)
    assert table.carried is not None
    keys = table.carried[by].map(
        lambda cell: None if is_missing(cell) else cell.strip() if isinstance(cell, str) else cell
    )
    codes, distinct = pd.factorize(keys)
    if (codes < 0).any():
        row = int((codes < 0).argmax()) + 1
        raise InputError(f"column {by!r}, row {row}: the value is missing; expected a series")
    series = [Table(table.values[codes == code], table.columns, table.name) for code in range(len(distinct))]
    return replace(_pad(series), carried=pd.DataFrame({by: distinct}))


def _pad(series: Sequence[Table], name: str | None = None) -> Table:
    """Stack series, padding the shorter ones with NaN."""
    columns = series[0].columns
    if any(each.weights is not None or each.labels is not None for each in series):
        raise InputError("series: the steps have weights or labels; give weights, one for each series")
    for number, each in enumerate(series, start=1):
        if each.columns != columns:
            actual, expected = ", ".join(each.columns), ", ".join(columns)
            raise InputError(f"series {number} has the columns {actual}; expected those of the first, {expected}")
    widest = max((each.values.dtype for each in series), key=lambda dtype: torch.finfo(dtype).bits)
    values = torch.nn.utils.rnn.pad_sequence(
        [each.values.to(widest) for each in series], batch_first=True, padding_value=float("nan")
    )
    return Table(values, columns, name or series[0].name)
