"""From what a user gives as data to the arguments that model and guide are called with."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from pplgen.data.columns import ColumnSelection, named_columns
from pplgen.data.labels_and_weights import row_labels, row_weights
from pplgen.data.series import check_training_series, load_selected_series
from pplgen.data.streams import RowStream, Survey
from pplgen.data.table import Table, check_training_table, load_data, load_selected
from pplgen.errors import InputError
from pplgen.story.base import Story
from pplgen.story.structure import number_of_rows

__all__ = [
    "Facts",
    "bare_annotations",
    "bare_arguments",
    "check_device",
    "new_rows",
    "read_rows",
    "surveyed",
    "training_rows",
]

Facts = tuple[Tensor | None, Tensor | None]
"""Labels and weights of rows, ``None`` where there are none."""

_BY_NAME = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)
SAMPLE = 100_000
"""Rows of a stream near which a story starts."""


def read_rows(
    story: Story | type[Story],
    data: Any,
    labels: Any = None,
    weights: Any = None,
    dtype: torch.dtype | None = None,
    trained: Sequence[str] | None = None,
) -> Table:
    """Read rows as a story takes them, rows of columns or series of such; of a trained one, its columns alone."""
    selection = ColumnSelection(training=trained, extra=named_columns(weights), categorical=named_columns(labels))
    if not story.takes_series:
        return load_selected(data, selection, labels=labels, weights=weights, dtype=dtype)
    if labels is not None:
        raise InputError("labels: a state space story takes none")
    return load_selected_series(data, selection, weights=weights, dtype=dtype)


def training_rows(story: Story, data: Any, labels: Any = None, weights: Any = None) -> Table:
    """Read and check the rows that a story is to learn from, and what is known of them."""
    table = read_rows(story, data, labels, weights)
    if table.labels is not None:
        story.check_labels(table.labels)
    check_training_series(table) if story.takes_series else check_training_table(table)
    _check(story, table)
    story.check_training_data(table.values)
    return table


def surveyed(story: Story, stream: RowStream, seed: int) -> Survey:
    """Read all rows of a stream once, keeping a sample, and check whether a story can learn from them."""
    survey = stream.survey(SAMPLE, seed=seed, check=story.check_data)
    if survey.missing and not story.accepts_missing:
        raise InputError(f"{stream.name}: some values are missing, and {type(story).__name__} needs complete rows")
    story.check_training_data(survey.sample)
    return survey


def new_rows(story: Story, data: Any, columns: tuple[str, ...], dtype: torch.dtype) -> Tensor:
    """Read and check rows for a trained story: the training ``columns``, in their order, and no others.

    Where either side has no names of its own (``x0``, ``x1``, ...), the columns are taken as they stand.
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
) -> tuple[Any, ...]:
    """Turn the data of a bare pair into arguments: a tuple is one each, arrays and tables become tensors.

    Floating-point arrays take torch's default type; tensors keep theirs.

    Raises
    ------
    InputError
        Where a model or a guide that is given cannot be called with so many.
    """
    arguments = data if isinstance(data, tuple) else (data,)
    for name, function in (("model", model), ("guide", guide)):
        expected = _parameters(function)
        try:
            expected.bind(*arguments)
        except TypeError:
            names = ", ".join(p.name for p in expected.parameters.values() if p.kind not in _BY_NAME)
            raise InputError(f"data: expected a tuple of the {name}'s arguments ({names}), not {_told(data)}") from None
    return tuple(_argument(value, device) for value in arguments)


def bare_annotations(arguments: tuple[Any, ...], labels: Any, weights: Any) -> Facts:
    """Read what is known of a bare pair's rows."""
    rows = number_of_rows(arguments)
    if rows is None and (labels is not None or weights is not None):
        raise InputError("labels and weights need data whose first argument is a tensor of rows")
    dtype = next((value.dtype for value in arguments if isinstance(value, Tensor) and value.is_floating_point()), None)
    return (
        None if labels is None else row_labels(labels, rows or 0),
        None if weights is None else row_weights(weights, rows or 0).to(dtype or torch.get_default_dtype()),
    )


def check_device(device: str | torch.device) -> torch.device:
    """Return a device that exists here, or raise ``InputError``."""
    try:
        target = torch.device(device)
        torch.ones(1, device=target).item()
    except (RuntimeError, AssertionError, NotImplementedError):
        here = "cpu, cuda" if torch.cuda.is_available() else "cpu"
        raise InputError(f"device={str(device)!r} is not available here; expected one of {here}") from None
    return target


def _check(story: Story, table: Table) -> None:
    """Hold a table against the story's expectations."""
    story.check_data(table.values)
    missing = torch.argwhere(table.values.isnan())
    if len(missing) and not story.accepts_missing:
        row, j = missing[0].tolist()
        raise InputError(
            f"column {table.columns[j]!r}, row {row + 1}: the value is missing, and {type(story).__name__} needs "
            f"complete rows; leave out the {len(missing[:, 0].unique())} rows with missing values"
        )


def _parameters(function: Callable[..., Any] | None) -> inspect.Signature:
    """Return what a function can be called with: anything, where it does not tell."""
    anything = inspect.signature(lambda *arguments: None)
    if function is None or isinstance(function, type):
        return anything
    try:
        return inspect.signature(function.forward if isinstance(function, nn.Module) else function)
    except (TypeError, ValueError):
        return anything


def _told(data: Any) -> str:
    """Say what was given as data, in a few words."""
    if isinstance(data, tuple):
        return f"one of {len(data)}"
    if isinstance(data, Mapping):
        return f"a {type(data).__name__} of {', '.join(map(repr, data))}"
    return "a single tensor" if isinstance(data, Tensor) else f"a single {type(data).__name__}"


def _argument(value: Any, device: torch.device | None) -> Any:
    """Convert one argument of a bare pair."""
    if isinstance(value, (Table, pd.DataFrame)):
        value = load_data(value).values
    elif isinstance(value, np.ndarray):
        tensor = torch.as_tensor(value)
        value = tensor.to(torch.get_default_dtype()) if tensor.is_floating_point() else tensor
    return value.to(device) if isinstance(value, Tensor) and device is not None else value
