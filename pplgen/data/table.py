"""A table, an array or a named data set becomes a validated float tensor; errors name column and row."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pplgen.data.columns import ColumnSelection, named_columns
from pplgen.data.datasets import NAMED_DATA_SETS
from pplgen.data.labels_and_weights import row_labels, row_weights
from pplgen.data.readers import from_array, from_file, from_frame, image_shape
from pplgen.errors import DataWarning, InputError

__all__ = [
    "Fingerprint",
    "Table",
    "as_finite",
    "check_shape",
    "check_training_columns",
    "check_training_table",
    "column_ranges",
    "load_data",
    "load_selected",
    "named_data_sets",
    "warn_of_rounding",
]


CHUNK_ROWS = 4096
"""Rows of which a copy is made at a time."""


@dataclass(frozen=True)
class Table:
    """Rows of named, numeric columns.

    Attributes
    ----------
    values
        Float tensor of shape ``(num_rows, num_features)``; NaN means missing, infinities never occur. Where rows are
        series, the shape is ``(num_series, num_steps, num_features)``.
    columns
        One name per feature.
    name
        Where the data came from, in a word: a data set's name, a file's stem, or ``"array"``.
    labels
        Value of the rows' discrete latent, counted from 0, where it is known and -1 elsewhere, shape ``(num_rows,)``;
        ``None`` where none is.
    weights
        How much each row counts, shape ``(num_rows,)``; ``None`` where all count alike.
    target
        Class of each row, counted from 0 and -1 where it is not known, shape ``(num_rows,)``; ``None`` without any. No
        story sees it, and it is no part of the fingerprint: it colours pictures and scores what was found.
    label_names
        What the labels 0, 1, ... stand for, where they were text; ``None`` where they were not.
    """

    values: Tensor
    columns: tuple[str, ...]
    name: str
    labels: Tensor | None = None
    weights: Tensor | None = None
    target: Tensor | None = None
    label_names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.values)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of columns, shape and float64 values, and of labels and weights, in hexadecimal."""
        fingerprint = Fingerprint(self.columns, tuple(self.values.shape)).add(self.values)
        for what, facts in (("labels", self.labels), ("weights", self.weights)):
            if facts is not None:
                fingerprint.mark(what).add(facts)
        return str(fingerprint)


class Fingerprint:
    """SHA-256 of columns, shape and float64 values; the rows are added in order, in any number of pieces.

    Parameters
    ----------
    columns
        One name per feature.
    shape
        ``(num_rows, num_features)`` of all rows together.
    """

    def __init__(self, columns: tuple[str, ...], shape: tuple[int, ...]) -> None:
        self._hash = hashlib.sha256(repr((columns, shape)).encode())

    def add(self, values: Tensor) -> Self:
        """Add the next rows, of shape ``(num_rows, num_features)``."""
        for part in values.split(CHUNK_ROWS):
            self._hash.update(part.double().cpu().numpy().astype("<f8", copy=False).ravel().data)
        return self

    def mark(self, what: str) -> Self:
        """Say what is added from here on."""
        self._hash.update(what.encode())
        return self

    def __str__(self) -> str:
        return self._hash.hexdigest()


def load_data(
    source: Any,
    *,
    only: Sequence[str] | None = None,
    ignore: Sequence[str] = (),
    labels: Any = None,
    weights: Any = None,
    target: Any = None,
    dtype: torch.dtype | None = None,
    cache: str | Path | None = None,
) -> Table:
    """Read a numeric table.

    Parameters
    ----------
    source
        The name of a data set (``named_data_sets``), the path of a ``.csv``, ``.tsv``, ``.parquet``, ``.npy`` or
        ``.npz`` file, a pandas ``DataFrame``, an array or tensor of shape ``(num_rows,)`` or
        ``(num_rows, num_features)``, or a ``Table``.
    only
        Columns to read, in this order, besides those of labels, weights and target; ``None`` for all.
    ignore
        Columns to leave out, such as those of text and dates; nothing in them is looked at.
    labels
        Known values of the rows' discrete latent, such as the component of a mixture, counted from 0: one for each row,
        missing or -1 where it is not known; or the name of the column that holds them, numbers or text, which is
        counted in the order of its words; or ``"target"`` for the classes that a ``Table``, or a data set with a name,
        has beside its columns. ``None``: a ``Table``'s own.
    weights
        How much each row counts: a number of at least 0 for each, or the name of a column. ``None``: a ``Table``'s own.
    target
        Class of each row, as ``labels`` are given, for pictures and scores alone: no story learns from it. ``None``: a
        ``Table``'s own, or that of a data set with a name.
    dtype
        Floating-point type of the values. ``None``: that of a float32 or float64 tensor, torch's default otherwise.
    cache
        Directory of data sets that are downloaded, ``mnist`` and ``mnist-test``. ``None``: the environment variable
        ``PPLGEN_CACHE``, or where the platform keeps such.

    Returns
    -------
    Table
        Values, column names and the name of the source. Rows in error messages count from 1, the header left out.

    Raises
    ------
    InputError
        Where the source is missing, empty, ragged, not numeric or not finite; an empty cell, or NA, is missing.
    """
    facts = {"labels": labels, "weights": weights, "target": target}
    selection = ColumnSelection(only, ignore, named_columns(weights), named_columns(labels, target))
    return load_selected(source, selection, **facts, dtype=dtype, cache=cache)


def load_selected(
    source: Any,
    selection: ColumnSelection,
    *,
    labels: Any = None,
    weights: Any = None,
    target: Any = None,
    dtype: torch.dtype | None = None,
    cache: str | Path | None = None,
) -> Table:
    """Read some columns of a numeric table, as ``load_data`` does."""
    given = source.values if isinstance(source, Table) else source
    wide = isinstance(given, Tensor) and given.dtype in (torch.float32, torch.float64)
    if dtype is None:
        dtype = given.dtype if wide else torch.get_default_dtype()
    words: Mapping[str, tuple[str, ...]] = {}
    own = (source.labels, source.weights, source.target) if isinstance(source, Table) else (None, None, None)
    if isinstance(source, Table):
        matrix, columns = selection.select_matrix((given if wide else given.double()).cpu().numpy(), source.columns)
        name = source.name
    elif isinstance(source, pd.DataFrame):
        matrix, columns, words, name = *from_frame(source, selection), "table"
    elif isinstance(source, (str, Path)) and str(source) in NAMED_DATA_SETS:
        name = str(source)
        matrix, columns, classes = NAMED_DATA_SETS[name]("float64" if dtype == torch.float64 else "float32", cache)
        matrix, columns = selection.select_matrix(matrix, columns)
        own = (None, None, None if classes is None else torch.from_numpy(classes.astype("int64")))
    elif isinstance(source, (str, Path)):
        path = Path(source)
        matrix, columns, words, name = *from_file(path, NAMED_DATA_SETS, selection), path.stem
    else:
        matrix, columns, name = *selection.select_matrix(*from_array(source, "the array")), "array"
    check_shape(name, matrix.shape)
    values = _as_tensor(matrix, columns, dtype)
    if isinstance(labels, str) and labels == "target" and labels not in columns and own[2] is not None:
        labels = own[2]
    facts = {"labels": labels, "weights": weights, "target": target}
    named = {what: given for what, given in facts.items() if isinstance(given, str)}
    for what, column in named.items():
        if column not in columns:
            raise InputError(f"{what}={column!r}: expected one of the columns {', '.join(columns)}")
        facts[what] = values[:, columns.index(column)]
    kept = [j for j, column in enumerate(columns) if column not in named.values()]
    if not kept:
        raise InputError(f"{name}: no column is left for the data beside {' and '.join(named)}")
    if len(kept) < len(columns):
        values, columns = values[:, kept].contiguous(), tuple(columns[j] for j in kept)
    label_names = words.get(named["labels"]) if "labels" in named else None
    if labels is None and isinstance(source, Table):
        label_names = source.label_names
    labels = own[0] if labels is None else row_labels(facts["labels"], len(values))
    weights = own[1] if weights is None else row_weights(facts["weights"], len(values)).to(dtype)
    target = own[2] if target is None else row_labels(facts["target"], len(values), "target")
    return Table(values, columns, name, labels, weights, target, label_names)


def named_data_sets() -> tuple[str, ...]:
    """Names that ``load_data`` knows.

    Those of scikit-learn and statsmodels need these packages installed; ``mnist`` and ``mnist-test`` are downloaded.
    """
    return tuple(NAMED_DATA_SETS)


def check_shape(name: str, shape: tuple[int, ...]) -> None:
    """Refuse data without rows or without columns."""
    if 0 in shape:
        raise InputError(f"{name}: the data are empty, with shape {shape}; give at least one row and one column")


def check_training_table(table: Table) -> None:
    """Refuse a single row and columns without values; warn of constant columns, which teach nothing.

    Pixels that are constant are the margins of pictures, and no cause for a warning.
    """
    check_training_columns(table.name, len(table), table.columns, *column_ranges(table.values))


def column_ranges(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return each column's least and greatest value, inf and -inf for none, of rows ``(num_rows, num_features)``."""
    parts = values.split(CHUNK_ROWS)
    low = torch.stack([torch.where(part.isnan(), torch.inf, part).amin(dim=0) for part in parts])
    high = torch.stack([torch.where(part.isnan(), -torch.inf, part).amax(dim=0) for part in parts])
    return low.amin(dim=0), high.amax(dim=0)


def check_training_columns(
    name: str, num_rows: int, columns: Sequence[str], low: Tensor, high: Tensor, *, unit: str = "row"
) -> None:
    """Do what ``check_training_table`` does, given each column's range as ``column_ranges`` tells it."""
    if num_rows < 2:
        raise InputError(f"{name}: 1 {unit} is too little to learn from; give at least 2")
    constant = []
    for column, least, most in zip(columns, low.tolist(), high.tolist(), strict=True):
        if least > most:
            raise InputError(f"column {column!r} has no observed value in {num_rows} {unit}s; leave the column out")
        if least == most:
            constant.append(f"column {column!r} is constant ({least:g})")
    if constant and image_shape(columns) is None:
        others = f", and so are {len(constant) - 1} others" if len(constant) > 1 else ""
        message = f"{constant[0]}{others}: it carries no information; consider leaving it out"
        warnings.warn(message, DataWarning, stacklevel=4)


def as_finite(matrix: np.ndarray, columns: Sequence[str], dtype: torch.dtype, *, first_row: int = 1) -> Tensor:
    """Convert to a floating-point type, refusing what is or becomes infinite; rows count from ``first_row``."""
    values = torch.from_numpy(np.ascontiguousarray(matrix)).to(dtype)
    # a finite sum, cheap to take, rules infinities out
    infinite = values.new_empty(0) if values.sum().isfinite() else torch.argwhere(values.isinf())
    if len(infinite):
        row, j = infinite[0].tolist()
        given = f"column {columns[j]!r}, row {first_row + row}: {matrix[row, j]:g}"
        raise InputError(f"{given} is not a finite number in {dtype}")
    return values


def warn_of_rounding(column: str, lost: float, spread: float, dtype: torch.dtype) -> None:
    """Warn where ``dtype`` changes values by as much as a thousandth of their standard deviation, ``spread``."""
    if lost > 0 and lost > 1e-3 * spread > 0:
        message = f"column {column!r} varies too little around its mean for {dtype}; subtract an offset from it"
        warnings.warn(message, DataWarning, stacklevel=4)


def _as_tensor(matrix: np.ndarray, columns: Sequence[str], dtype: torch.dtype) -> Tensor:
    """Convert to a floating-point type, refusing what becomes infinite and warning where differences are lost."""
    values = as_finite(matrix, columns, dtype)
    if torch.promote_types(torch.from_numpy(matrix).dtype, dtype) == dtype:
        return values  # nothing is rounded
    for j, (name, wide) in enumerate(zip(columns, matrix.T, strict=True)):
        observed = ~np.isnan(wide)
        lost = np.abs(wide - values[:, j].double().numpy())[observed].max(initial=0.0)
        warn_of_rounding(name, lost, np.std(wide[observed]) if lost > 0 else 0.0, dtype)
    return values
