"""Data with named columns in memory: frames of any library, xarray, dictionaries, records, structured arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import narwhals.stable.v2 as nw
import numpy as np
import pandas as pd
import torch
import xarray as xr
from scipy import sparse
from torch import Tensor

from pplgen.data.columns import unnamed_columns
from pplgen.errors import InputError, first_line

__all__ = ["as_frame", "as_pandas", "is_named", "refuse_sparse"]


def as_frame(source: Any) -> Any:
    """Return data with named columns as a frame of pandas or narwhals; ``None`` for arrays, tensors and lists.

    Frames and series of pandas, polars, PyArrow and the other libraries that narwhals knows; ``DataArray`` and
    ``Dataset`` of xarray; a dictionary of columns; a list of dictionaries, one for each row; a structured array.
    """
    if isinstance(source, pd.DataFrame):
        return source
    if isinstance(source, (xr.DataArray, xr.Dataset)):
        return _from_xarray(source)
    if isinstance(source, Mapping):
        return _from_columns(source)
    if isinstance(source, (list, tuple)) and len(source) and isinstance(source[0], Mapping):
        return _from_records(source)
    if isinstance(source, np.ndarray) and source.dtype.names:
        return _from_columns({name: source[name] for name in source.dtype.names})
    try:
        native = nw.from_native(source, pass_through=True, allow_series=True)
        if isinstance(native, nw.Series):
            return native.alias(str(native.name) if native.name not in (None, "") else "x0").to_frame()
        if isinstance(native, nw.LazyFrame):
            return native.collect()
        return native if isinstance(native, nw.DataFrame) else None
    except Exception as error:  # the libraries behind narwhals raise many types of errors
        raise InputError(f"the {type(source).__name__} cannot be read: {first_line(error)}") from None


def is_named(source: Any) -> bool:
    """Whether an object is a frame of any library, or a ``Dataset`` of xarray."""
    return isinstance(source, xr.Dataset) or isinstance(
        nw.from_native(source, pass_through=True, allow_series=True), (nw.DataFrame, nw.LazyFrame)
    )


def as_pandas(frame: Any, indices: Sequence[int], *, numbers: bool = True) -> pd.DataFrame:
    """Return columns of a frame of pandas or narwhals, whose index is dropped.

    Those of narwhals become Python objects, ``None`` where they are null; with ``numbers``, numbers become float64.
    """
    if isinstance(frame, pd.DataFrame):
        return frame.iloc[:, list(indices)].reset_index(drop=True)
    names = [frame.columns[index] for index in indices]
    columns = [_cells(frame.get_column(name), numbers) for name in names]
    return pd.concat(columns, axis=1, keys=names) if columns else pd.DataFrame(index=range(len(frame)))


def _cells(column: nw.Series[Any], numbers: bool) -> pd.Series:
    """Return a column's cells."""
    try:
        if not (numbers and (column.dtype.is_numeric() or column.dtype == nw.Boolean)):
            return pd.Series(column.to_list(), dtype=object)
        if column.dtype.is_integer() or column.dtype.is_decimal():  # PyArrow casts no integers above 2^53
            return pd.Series([np.nan if cell is None else float(cell) for cell in column.to_list()], dtype="float64")
        return pd.Series(np.array(column.cast(nw.Float64).to_numpy(), dtype="float64"))
    except Exception as error:  # dates out of range, unknown time zones
        raise InputError(
            f"column {column.name!r}: values of type {column.dtype} cannot be read: {first_line(error)}; leave them "
            f"out with --ignore {column.name} (in Python ignore=[{column.name!r}])"
        ) from None


def refuse_sparse(source: Any) -> None:
    """Raise ``InputError`` for a sparse matrix or tensor, and say how to make it dense."""
    if sparse.issparse(source):
        raise InputError(f"a sparse {type(source).__name__}; expected a dense array, such as matrix.toarray()")
    if isinstance(source, Tensor) and source.layout is not torch.strided:
        raise InputError(f"a tensor of layout {source.layout}; expected a dense one, such as tensor.to_dense()")


def _from_columns(columns: Mapping[Any, Any]) -> pd.DataFrame:
    """Convert a dictionary of columns, by position of their rows; an index is ignored."""
    cells = {}
    for name, values in columns.items():
        refuse_sparse(values)
        array = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
        if isinstance(array, str) or np.ndim(array) != 1:
            kind = f"shape {np.shape(array)}" if np.ndim(array) else repr(array)
            raise InputError(f"column {str(name)!r}: {kind}; expected one value for each row")
        cells[str(name)] = pd.Series(array).reset_index(drop=True)
    if not cells:
        raise InputError("the dictionary is empty; expected a column under each name")
    lengths = {name: len(column) for name, column in cells.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name!r} has {length} rows" for name, length in list(lengths.items())[:4])
        raise InputError(f"the columns differ in length: {listed}")
    return pd.DataFrame(cells)


def _from_records(records: Sequence[Any]) -> pd.DataFrame:
    """Convert dictionaries, one for each row; a name that a row lacks is a missing value."""
    names: dict[str, None] = {}
    for row, record in enumerate(records, start=1):
        if not isinstance(record, Mapping):
            raise InputError(f"row {row}: a {type(record).__name__}; expected a dictionary like the first row")
        names |= dict.fromkeys(map(str, record))
    rows = [{str(name): value for name, value in record.items()} for record in records]
    return _from_columns(
        {name: [None if row.get(name) is np.ma.masked else row.get(name) for row in rows] for name in names}
    )


def _from_xarray(data: xr.DataArray | xr.Dataset) -> pd.DataFrame | None:
    """Convert variables with one dimension, or an array whose last dimension names the columns.

    ``None`` for an array of more than two dimensions, which is none of rows.
    """
    if isinstance(data, xr.Dataset):
        variables = {str(name): values for name, values in data.data_vars.items()}
        dims = {values.dims for values in variables.values()}
        if len(dims) != 1 or len(next(iter(dims))) != 1:
            listed = ", ".join(f"{name} ({', '.join(map(str, values.dims))})" for name, values in variables.items())
            raise InputError(
                f"the Dataset has the variables {listed or 'none'}; expected variables along one dimension, the rows; "
                "or give one of them, dataset[name]"
            )
        return _from_columns({name: values.values for name, values in variables.items()})
    if data.ndim == 1:
        return _from_columns({"x0" if data.name is None else str(data.name): data.values})
    if data.ndim != 2:
        return None
    axis = data.dims[1]
    names = [str(name) for name in data[axis].values] if axis in data.coords else unnamed_columns(data.shape[1])
    return pd.concat([pd.Series(column) for column in data.values.T], axis=1, keys=names)
