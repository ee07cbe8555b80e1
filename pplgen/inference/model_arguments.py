"""Convert a user's data to the arguments with which model and guide are called."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import is_dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from pplgen.data.columns import ColumnSelection, named_columns
from pplgen.data.labels_and_weights import row_labels, row_weights
from pplgen.data.objects import is_named
from pplgen.data.series import load_selected_series
from pplgen.data.streams import RowStream, Survey
from pplgen.data.table import Table, load_data, load_selected
from pplgen.data.tensors import warn_of_rounding
from pplgen.data.training_checks import check_training_series, check_training_table
from pplgen.errors import InputError
from pplgen.story.base import Story
from pplgen.story.pair import Pair

__all__ = [
    "RowAnnotations",
    "bare_annotations",
    "bare_arguments",
    "check_device",
    "read_new_rows",
    "read_rows",
    "read_training_rows",
    "survey_stream",
]

RowAnnotations = tuple[Tensor | None, Tensor | None]
"""Labels and weights of rows, ``None`` where there are none."""

_KEYWORD_KINDS = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)
SAMPLE = 100_000
"""Rows of a stream from which a story is initialised."""


def read_rows(
    story: Story | type[Story],
    data: Any,
    labels: Any = None,
    weights: Any = None,
    dtype: torch.dtype | str | None = None,
    trained: Sequence[str] | None = None,
) -> Table:
    """Read a table of rows or of series, as the story requires; with ``trained``, only those columns."""
    selection = ColumnSelection(training=trained, extra=named_columns(weights), categorical=named_columns(labels))
    if not story.takes_series:
        return load_selected(data, selection, labels=labels, weights=weights, dtype=dtype)
    if labels is not None:
        raise InputError("labels: a state space story supports none")
    return load_selected_series(data, selection, weights=weights, dtype=dtype)


def read_training_rows(
    story: Story, data: Any, labels: Any = None, weights: Any = None, dtype: torch.dtype | None = None
) -> Table:
    """Read and check training rows with their labels and weights."""
    table = read_rows(story, data, labels, weights, dtype)
    if table.labels is not None:
        story.check_labels(table.labels)
    check_training_series(table) if story.takes_series else check_training_table(table)
    _check(story, table)
    story.check_training_data(table.values)
    return table


def survey_stream(story: Story, stream: RowStream, seed: int) -> Survey:
    """Read a stream once, check its rows for a story, and keep a sample of them."""
    survey = stream.survey(SAMPLE, seed=seed, check=story.check_data)
    if survey.missing and not story.accepts_missing:
        raise InputError(f"{stream.name}: some values are missing, but {type(story).__name__} needs complete rows")
    story.check_training_data(survey.sample)
    return survey


def read_new_rows(story: Story, data: Any, columns: tuple[str, ...], dtype: torch.dtype) -> Tensor:
    """Read and check rows for a trained story: the training ``columns``, in their order, and no others.

    If either side has no names, columns are taken in the order of training, with a ``DataWarning``.
    """
    table = read_rows(story, data, dtype=dtype, trained=columns)
    _check(story, table)
    story.observe_missing(table.values)
    return table.values


def bare_arguments(
    data: Any,
    device: torch.device | None,
    model: Callable[..., Any] | None = None,
    guide: Callable[..., Any] | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Any, ...]:
    """Convert the data of a bare pair to arguments: one per element of a tuple, arrays and tables as tensors.

    A dictionary whose keys are the model's arguments is passed by name; any other is a single argument. Floating-point
    arrays are converted to ``dtype``, and with it tensors; by default arrays to torch's default dtype, and tensors keep
    theirs. Masked entries become NaN.

    Raises
    ------
    InputError
        If the model or the guide is a class, or cannot be called with that number of arguments.
    """
    for name, function in (("model", model), ("guide", guide)):
        if isinstance(function, type):
            kind = function.__name__
            raise InputError(f"{name}: expected a function or an object, such as {kind}(...), not the class {kind}")
    arguments = data if isinstance(data, tuple) else _by_name(model, data) or (data,)
    for name, function in (("model", model), ("guide", guide)):
        expected = _parameters(function)
        try:
            expected.bind(*arguments)
        except TypeError:
            names = ", ".join(p.name for p in expected.parameters.values() if p.kind not in _KEYWORD_KINDS)
            raise InputError(
                f"data: expected a tuple of the {name}'s arguments ({names}), not {_kind_of(data)}"
            ) from None
    return tuple(_argument(value, device, dtype) for value in arguments)


def bare_annotations(pair: Pair, labels: Any, weights: Any) -> RowAnnotations:
    """Read labels and weights of a bare pair's rows."""
    rows = pair.num_rows
    if not rows and (labels is not None or weights is not None):
        raise InputError("labels and weights need data with an axis of rows")
    device = next((value.device for value in pair.data if isinstance(value, Tensor)), None)
    return (
        None if labels is None else row_labels(labels, rows).to(device),
        None if weights is None else row_weights(weights, rows).to(device, pair.dtype),
    )


def check_device(device: str | torch.device) -> torch.device:
    """Return an available device, or raise ``InputError``."""
    try:
        target = torch.device(device)
        torch.ones(1, device=target).item()
    except (RuntimeError, AssertionError, NotImplementedError):
        devices = "cpu, cuda" if torch.cuda.is_available() else "cpu"
        raise InputError(f"device={str(device)!r} is not available here; expected one of {devices}") from None
    return target


def _check(story: Story, table: Table) -> None:
    """Raise ``InputError`` unless the story supports the table's values."""
    story.check_data(table.values)
    missing = torch.argwhere(table.values.isnan())
    if len(missing) and not story.accepts_missing:
        row, j = missing[0].tolist()
        raise InputError(
            f"column {table.columns[j]!r}, row {row + 1}: the value is missing, but {type(story).__name__} needs "
            f"complete rows; remove the {len(missing[:, 0].unique())} rows with missing values"
        )


def _parameters(function: Callable[..., Any] | None) -> inspect.Signature:
    """Return a function's signature; one that accepts any arguments if it has none."""
    anything = inspect.signature(lambda *arguments: None)
    if function is None:
        return anything
    try:
        return inspect.signature(function.forward if isinstance(function, nn.Module) else function)
    except (TypeError, ValueError):
        return anything


def _by_name(model: Callable[..., Any] | None, data: Any) -> tuple[Any, ...] | None:
    """Return the model's arguments from a dictionary with their names, ``None`` for other data."""
    if not isinstance(data, Mapping):
        return None
    expected = [p for p in _parameters(model).parameters.values() if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    if not data or not set(data) <= {p.name for p in expected}:
        return None
    last = max(index for index, p in enumerate(expected) if p.name in data)
    values = [data.get(p.name, p.default) for p in expected[: last + 1]]
    if missing := [p.name for p, value in zip(expected, values, strict=False) if value is inspect.Parameter.empty]:
        raise InputError(f"data: the model's argument {missing[0]!r} is missing among {', '.join(map(repr, data))}")
    return tuple(values)


def _kind_of(data: Any) -> str:
    """Describe the type of data for an error message."""
    if isinstance(data, tuple):
        return f"one of {len(data)}"
    if isinstance(data, Mapping):
        return f"a {type(data).__name__} of {', '.join(map(repr, data))}"
    return "a single tensor" if isinstance(data, Tensor) else f"a single {type(data).__name__}"


def _argument(value: Any, device: torch.device | None, dtype: torch.dtype | None) -> Any:
    """Convert one argument of a bare pair."""
    if isinstance(value, Table) or is_named(value):
        value = load_data(value, dtype=dtype).values
    elif isinstance(value, np.ndarray):
        value = _array(value, dtype or torch.get_default_dtype())
    if not isinstance(value, Tensor):
        return _copied(value)
    value = value.detach()
    if dtype is not None and value.is_floating_point():
        value = value.to(dtype)
    if value.is_inference():  # cannot be used where gradients are computed
        value = value.clone()
    return value if device is None else value.to(device)


def _array(value: np.ndarray, dtype: torch.dtype) -> Tensor:
    """Convert an array to a tensor, masked entries to NaN; warn where rounding loses what it says."""
    if np.ma.is_masked(value):
        if value.dtype.kind != "f":
            raise InputError(
                f"data: a masked array of {value.dtype} has no missing value; give floats, or its mask, too"
            )
        value = np.ma.filled(value, np.nan)
    tensor = torch.as_tensor(np.ma.getdata(value))
    if not tensor.is_floating_point():
        return tensor
    wide, narrow = tensor.reshape(-1), tensor.to(dtype)
    observed = wide[~wide.isnan()].double()
    if len(observed):
        rounding = (narrow.reshape(-1)[~wide.isnan()].double() - observed).abs().max().item()
        warn_of_rounding("the array", rounding, observed.std(correction=0).item(), dtype)
    return narrow


def _copied(value: Any) -> Any:
    """Copy containers, and arrays and tables in them, into which a model may write; tensors are guarded otherwise."""
    if np.ma.is_masked(value):
        raise InputError("data: a masked array within a container would lose its mask; give array.filled(numpy.nan)")
    if isinstance(value, (np.ndarray, pd.Series, pd.DataFrame, set)):
        return value.copy()
    if isinstance(value, tuple):
        inside = [_copied(each) for each in value]
        return value._make(inside) if hasattr(value, "_make") else type(value)(inside)
    places: Any = ()
    if isinstance(value, MutableMapping):
        places = list(value)
    elif isinstance(value, list):
        places = range(len(value))
    elif not (is_dataclass(value) and not isinstance(value, (type, nn.Module))):
        return value
    own = copy.copy(value)
    for place in places:
        own[place] = _copied(value[place])
    if is_dataclass(value):
        for name, each in getattr(value, "__dict__", {}).items():
            object.__setattr__(own, name, _copied(each))
    return own
