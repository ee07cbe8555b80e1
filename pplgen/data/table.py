"""Read a table, an array or a named data set as a validated float tensor; errors name column and row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pplgen.data.columns import ColumnSelection, named_columns
from pplgen.data.datasets import NAMED_DATA_SETS
from pplgen.data.file_readers import from_file, from_stdin
from pplgen.data.fingerprint import Fingerprint
from pplgen.data.frames import Columns, from_object, selected_matrix
from pplgen.data.labels_and_weights import row_labels, row_weights
from pplgen.data.paths import STDIN, table_name, with_home
from pplgen.data.tensors import as_dtype, as_tensor, check_shape
from pplgen.errors import InputError

__all__ = ["Table", "load_data", "load_selected", "named_data_sets"]


@dataclass(frozen=True)
class Table:
    """A numeric table with named columns.

    Attributes
    ----------
    values
        Float tensor of shape ``(num_rows, num_features)``; NaN means missing, infinities never occur. Where rows are
        series, the shape is ``(num_series, num_steps, num_features)``.
    columns
        One name per feature.
    name
        Source of the data: a data set's name, a file's stem, ``"table"`` or ``"array"``.
    labels
        Known value of each row's discrete latent variable, counted from 0, -1 where unknown, shape ``(num_rows,)``;
        ``None`` where all are unknown.
    weights
        Weight of each row, shape ``(num_rows,)``; ``None`` for equal weights.
    target
        Class of each row, counted from 0, -1 where unknown, shape ``(num_rows,)``, or ``None``. It is not used in
        training and not part of the fingerprint: it colours plots and scores results.
    label_names
        Names of the labels 0, 1, ... where they were text; ``None`` otherwise.
    carried
        Columns that are no data, such as identifiers, one row for each row; ``None`` for none. They are in the tables
        of the command line, and coordinates of the rows in results.
    """

    values: Tensor
    columns: tuple[str, ...]
    name: str
    labels: Tensor | None = None
    weights: Tensor | None = None
    target: Tensor | None = None
    label_names: tuple[str, ...] | None = None
    carried: pd.DataFrame | None = field(default=None, compare=False)

    def __len__(self) -> int:
        return len(self.values)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of columns, shape and float64 values, and of labels and weights, in hexadecimal."""
        fingerprint = Fingerprint(self.columns, tuple(self.values.shape)).add(self.values)
        for name, values in (("labels", self.labels), ("weights", self.weights)):
            if values is not None:
                fingerprint.mark(name).add(values)
        return str(fingerprint)


def load_data(
    source: Any,
    *,
    only: Sequence[str] | None = None,
    ignore: Sequence[str] = (),
    labels: Any = None,
    weights: Any = None,
    target: Any = None,
    id: str | Sequence[str] | None = None,  # noqa: A002
    header: bool | None = None,
    dtype: torch.dtype | str | None = None,
    cache: str | Path | None = None,
) -> Table:
    """Read a numeric table.

    Parameters
    ----------
    source
        The name of a data set (``named_data_sets``); the path of a file: text (``.csv``, ``.tsv``, ``.txt``, ``.dat``,
        ``.psv``, also with ``.gz``), ``.jsonl``, ``.xlsx``, ``.parquet``, ``.feather``, ``.arrow``, ``.npy`` or
        ``.npz``; or ``"-"`` for text from the standard input. A frame or series of pandas, polars or PyArrow; an xarray
        ``Dataset`` or ``DataArray``; a dictionary of columns; a list of dictionaries; a structured array; an array,
        tensor or lists of shape ``(num_rows,)`` or ``(num_rows, num_features)``; or a ``Table``. NaN, ``None``, nulls
        and masked entries are missing.
    only
        Columns to read, in this order, besides those of labels, weights and target; ``None`` for all.
    ignore
        Columns to leave out, such as text and dates; their content is not read.
    labels
        Known values of each row's discrete latent variable, such as the component of a mixture, counted from 0: one
        per row, missing or -1 where unknown; or the name of a column of numbers or text, which is encoded in
        alphabetical order; or ``"target"`` for the classes of a ``Table`` or a named data set. ``None``: the labels of
        a ``Table``.
    weights
        Non-negative weight of each row, or the name of a column. ``None``: the weights of a ``Table``.
    target
        Class of each row, in the format of ``labels``, for plots and scores only: it is not used in training.
        ``None``: the target of a ``Table`` or a named data set.
    id
        Column, or columns, that identify the rows and are no data. They stay beside the rows in all results.
    header
        Whether the first line of text, or of a sheet, holds the columns' names. ``None``: as its cells suggest, with a
        warning where they are numbers.
    dtype
        Floating-point type of the values, such as ``"float64"``. ``None``: that of a float32 or float64 tensor; else
        torch's default, or float64, with a warning, where a column varies too little around its mean for it, or has a
        range whose squares it cannot hold.
    cache
        Directory of downloaded data sets, ``mnist`` and ``mnist-test``. ``None``: the environment variable
        ``PPLGEN_CACHE``, or the platform's cache directory.

    Returns
    -------
    Table
        Values, column names and the name of the source. Error messages count rows from 1, without the header.

    Raises
    ------
    InputError
        Where the source does not exist, or is empty, ragged, not numeric or not finite. Empty cells and NA are
        missing values.
    """
    annotations = {"labels": labels, "weights": weights, "target": target}
    identifiers = (id,) if isinstance(id, str) else tuple(id or ())
    selection = ColumnSelection(
        only,
        ignore,
        extra=named_columns(weights),
        categorical=named_columns(labels, target),
        identifiers=identifiers,
        header=header,
    )
    return load_selected(source, selection, **annotations, dtype=dtype, cache=cache)


def load_selected(
    source: Any,
    selection: ColumnSelection,
    *,
    labels: Any = None,
    weights: Any = None,
    target: Any = None,
    dtype: torch.dtype | str | None = None,
    cache: str | Path | None = None,
) -> Table:
    """Read selected columns of a numeric table, as ``load_data`` does."""
    dtype = as_dtype(dtype)
    own = (source.labels, source.weights, source.target) if isinstance(source, Table) else (None, None, None)
    if isinstance(source, (str, Path)) and str(source) in NAMED_DATA_SETS:
        name = str(source)
        matrix, names, classes = NAMED_DATA_SETS[name]("float64" if dtype == torch.float64 else "float32", cache)
        read = selected_matrix(matrix, names, selection)
        own = (None, None, None if classes is None else torch.from_numpy(classes.astype("int64")))
    else:
        name, read = _read(source, selection)
    matrix, columns, categories, carried = read
    check_shape(name, matrix.shape)
    array = source.values if isinstance(source, Table) else source
    if dtype is None and isinstance(array, Tensor) and array.dtype in (torch.float32, torch.float64):
        dtype = array.dtype
    values = as_tensor(matrix, columns, dtype)
    if isinstance(labels, str) and labels == "target" and labels not in columns and own[2] is not None:
        labels = own[2]
    annotations = {"labels": labels, "weights": weights, "target": target}
    in_columns = {option: column for option, column in annotations.items() if isinstance(column, str)}
    for option, column in in_columns.items():
        if column not in columns:
            raise InputError(f"{option}={column!r}: expected one of the columns {', '.join(columns)}")
        annotations[option] = values[:, columns.index(column)]
    features = [j for j, column in enumerate(columns) if column not in in_columns.values()]
    if not features:
        raise InputError(f"{name}: no data column is left besides {' and '.join(in_columns)}")
    if len(features) < len(columns):
        values, columns = values[:, features].contiguous(), tuple(columns[j] for j in features)
    label_names = categories.get(in_columns["labels"]) if "labels" in in_columns else None
    if labels is None and isinstance(source, Table):
        label_names = source.label_names
    labels = own[0] if labels is None else row_labels(annotations["labels"], len(values))
    weights = own[1] if weights is None else row_weights(annotations["weights"], len(values)).to(values.dtype)
    target = own[2] if target is None else row_labels(annotations["target"], len(values), "target")
    return Table(values, columns, name, labels, weights, target, label_names, carried)


def _read(source: Any, selection: ColumnSelection) -> tuple[str, Columns]:
    """Return the name and the selected columns of any source but a named data set."""
    if isinstance(source, (str, Path)) and str(source) == STDIN:
        return "stdin", from_stdin(selection)
    if isinstance(source, (str, Path)):
        path = with_home(source)
        return table_name(path), from_file(path, NAMED_DATA_SETS, selection)
    if isinstance(source, Table):
        carried = () if source.carried is None else source.carried.columns
        left = tuple(name for name in selection.identifiers if name not in carried)
        matrix = source.values.detach().cpu().numpy()
        read = selected_matrix(matrix, source.columns, replace(selection, identifiers=left))
        beside = [each for each in (source.carried, read.carried) if each is not None]
        return source.name, read._replace(carried=pd.concat(beside, axis=1) if beside else None)
    read = from_object(source, selection)
    return "array" if isinstance(source, (Tensor, np.ndarray, list, tuple)) else "table", read


def named_data_sets() -> tuple[str, ...]:
    """Names of the data sets that ``load_data`` reads.

    Those from scikit-learn and statsmodels require these packages; ``mnist`` and ``mnist-test`` are downloaded.
    """
    return tuple(NAMED_DATA_SETS)
