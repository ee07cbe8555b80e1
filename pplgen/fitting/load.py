"""``load``: a run's directory becomes a ``Fit`` again."""

from __future__ import annotations

import contextlib
import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from pplgen.data.columns import ColumnSelection
from pplgen.data.conversion import as_finite
from pplgen.data.series import load_selected_series
from pplgen.data.table import Table, named_data_sets
from pplgen.errors import DataWarning, InputError, first_line
from pplgen.fitting.nuts_result import SampledFit
from pplgen.fitting.prepare import prepare
from pplgen.fitting.result import Fit
from pplgen.fitting.run_facts import arguments_fingerprint, finite, kept_buffers, named, restore_buffers, source_digest
from pplgen.fitting.saved_draws import kept_rows, read_draws
from pplgen.inference.arguments import check_device, read_rows
from pplgen.inference.nuts import Chains, use_stored_draws
from pplgen.inference.training import StopReason, Training
from pplgen.storage import run_folder as store
from pplgen.storage.user_code import COLLECTION, import_path, user_story
from pplgen.story.base import Story
from pplgen.story.isolation import copy_pair, seeded
from pplgen.story.pair import Pair

__all__ = ["load", "load_with_draws"]

TYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Given:
    """What a user gives to a run that is read back."""

    data: Any = None
    labels: Any = None
    weights: Any = None
    story: Any = None
    model: Callable[..., Any] | None = None
    guide: Callable[..., Any] | None = None
    dtype: torch.dtype | None = None
    device: torch.device | None = None


def load(
    directory: str | Path,
    data: Any = None,
    *,
    story: type[Story] | Story | str | None = None,
    model: Callable[..., Any] | None = None,
    guide: Callable[..., Any] | None = None,
    labels: Any = None,
    weights: Any = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
) -> Fit:
    """Read a run back.

    Nothing that the directory holds or names is executed: a story of the collection is found by its name, and any
    other code is that which is given here.

    Parameters
    ----------
    directory
        Where ``Fit.save`` or the command line wrote it.
    data
        The training data, checked against the run's fingerprint; needed for what the training rows enter, such as
        ``to_datatree``, and for nothing else. For a bare pair, as ``fit`` took them, and always needed.
    story
        Of a run of your own story: its class, or an untrained story where its options are modules, or
        ``"FILE.py:CLASS"``, a file that is then executed.
    model, guide
        Of a run of a bare pair: as ``fit`` took them, untrained.
    labels, weights
        What the fit was told of the rows, as ``fit`` takes them.
    dtype
        ``torch.float32`` or ``torch.float64``, of a story; ``None`` for the run's own. A bare pair's is its data's.
    device
        Where to compute, such as ``"cuda"``; wherever the fit was. ``None``: the CPU for a story, where the data are
        for a bare pair.

    Raises
    ------
    InputError
        Where the directory holds no run, or one that is cut short, altered, or of other data or other code.
    """
    directory = Path(directory)
    if dtype is not None and dtype not in TYPES.values():
        raise InputError(f"dtype={dtype}: expected torch.float32 or torch.float64")
    where = None if device is None else check_device(device)
    return _load(directory, Given(data, labels, weights, story, model, guide, dtype, where))


def load_with_draws(
    directory: str | Path,
    data: Any = None,
    *,
    labels: Any = None,
    weights: Any = None,
    by: str | None = None,
    story: Any = None,
) -> tuple[Fit, xr.DataTree | None]:
    """Read a run back with its rows and the draws that the command line keeps beside it, ``None`` where there are none.

    As ``load``, but where no ``data`` are given the rows are those of the named data set that was fitted, or those
    among the draws, if they were few enough to be kept there. ``by`` is the column that tells series apart.
    """
    directory = Path(directory)
    header = store.read(directory)[1]
    tree = read_draws(directory)
    if data is not None and by is not None:
        data = load_selected_series(data, ColumnSelection(training=header["columns"], categorical=(by,)), by)
    given = Given(data, labels, weights, story)
    if data is None:
        name = header["data"].get("name")
        known = [name] if name in named_data_sets() else []
        for rows in (*known, None if tree is None else kept_rows(tree, header)):
            with contextlib.suppress(InputError):
                if rows is not None:
                    return _load(directory, replace(given, data=rows)), tree
    return _load(directory, given), tree


def _load(directory: Path, given: Given) -> Fit:
    """Read a run back, and say of whatever does not fit together where it is."""
    tensors, header = store.read(directory)
    try:
        with seeded(header["seed"]):
            pair, table = (_bare if "pair" in header else _of_story)(tensors, header, given)
        fit = _filled(pair, table, tensors, header)
    except InputError as error:
        raise InputError(f"{str(directory)!r}: {error}") from None
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, RuntimeError, MemoryError) as error:
        what = f"{store.HEADER} does not describe a run that this version can rebuild"
        raise InputError(f"{str(directory)!r}: {what}: {type(error).__name__}: {first_line(error)}") from None
    if header.get("source_sha256") not in (None, source_digest(pair)):
        message = (
            f"{str(directory)!r}: the code of {fit.name} has changed since this run, whose numbers may not suit it"
        )
        warnings.warn(message, DataWarning, stacklevel=3)
    return fit


def _of_story(tensors: dict[str, Tensor], header: dict[str, Any], given: Given) -> tuple[Pair, Table | None]:
    """Build the story on its rows, untrained but for its buffers, which hold priors that were left to the data."""
    if given.model is not None or given.guide is not None:
        raise InputError(f"model and guide: the run is of a story, {header['story']!r}, which brings its own")
    own = TYPES[header["dtype"]]
    story = _story(header, given.story).to(dtype=given.dtype or own, device=given.device)
    restore_buffers(dict(story.named_buffers()), named("buffer/", tensors))
    table = None if given.data is None else _rows(story, header, given)
    if table is None:  # the pair is shaped on rows of its own making
        x, labels, weights = story.simulate(2), None, None
    else:
        x, labels, weights = table.values, table.labels, table.weights
    if len(header["columns"]) != x.shape[-1]:
        raise InputError(f"{store.HEADER} names {len(header['columns'])} columns, where the story has {x.shape[-1]}")
    known = (None if each is None else each.to(given.device) for each in (labels, weights))
    return Pair.of_story(story, x.to(given.device), *known, initialise=False), table


def _bare(tensors: dict[str, Tensor], header: dict[str, Any], given: Given) -> tuple[Pair, None]:
    """Pair up a user's model and guide on their data, untrained but for the buffers of modules."""
    parts = " and ".join(str(part) for part in header["pair"].values())
    if given.model is None or given.data is None:
        raise InputError(f"the run is of a bare pair, {parts}: give its data, model and guide to pplgen.load")
    if given.story is not None:
        raise InputError(f"story: the run is of a bare pair, {parts}; give model and guide")
    if given.dtype is not None:
        raise InputError("dtype: a bare pair computes in the type of its data; give them in another")
    known = (given.labels, given.weights)
    prepared = prepare(
        given.model, given.guide, given.data, *known, seed=header["seed"], device=given.device, recorded={}
    )
    pair = prepared.new_pair()
    if arguments_fingerprint(pair.data) != header["arguments_sha256"]:
        raise InputError("the data, labels or weights are not those of this run")
    restore_buffers(named("buffer/", kept_buffers(pair)), named("buffer/", tensors))
    return pair, None


def _filled(pair: Pair, table: Table | None, tensors: dict[str, Tensor], header: dict[str, Any]) -> Fit:
    """Fill in parameters or draws, and say how the fit went."""
    facts: dict[str, Any] = {"table": table, "seed": header["seed"], "path": header["path"]}
    facts["origin"] = {**header, "columns": tuple(header["columns"])}
    if header.get("method") == "nuts":
        like = next((value for value in pair.data if isinstance(value, Tensor) and value.is_floating_point()), None)
        with pair.isolated():
            draws = finite("draw", named("draws/", tensors))
            use_stored_draws(pair, draws if like is None else {name: value.to(like) for name, value in draws.items()})
        return SampledFit(pair, Chains(**header["chains"]), **facts)
    with pair.isolated():
        pair.restore(finite("parameter", named("parameter/", tensors)))
    return Fit(pair, _runs(tensors, header), num_failed=header["num_failed"], **facts)


def _rows(story: Story, header: dict[str, Any], given: Given) -> Table:
    """Read the training rows in the story's type, once they are found to be those of the run."""
    expected = header["data"]
    own, wanted = TYPES[expected["dtype"]], given.dtype or TYPES[header["dtype"]]
    known = (given.labels, given.weights)
    read = read_rows(story, given.data, *known, torch.promote_types(own, wanted), header["columns"])
    if _in_type(read, own).fingerprint != expected["fingerprint"]:
        for what in expected.get("known", []):
            if getattr(read, what, None) is None:
                raise InputError(f"this run knew {what} of its rows: give {what} as for the fit")
        fitted_to = f"{expected['name']!r} with {expected['num_rows']} rows"
        raise InputError(f"{read.name} is not the data of this run, which was fitted to {fitted_to}")
    return _in_type(read, wanted)


def _in_type(table: Table, dtype: torch.dtype) -> Table:
    """Return a table in a floating-point type."""
    if table.values.dtype == dtype:
        return table
    values = as_finite(table.values.flatten(0, -2).numpy(), table.columns, dtype).reshape(table.values.shape)
    return replace(table, values=values, weights=None if table.weights is None else table.weights.to(dtype))


def _runs(tensors: dict[str, Tensor], header: dict[str, Any]) -> tuple[Training, ...]:
    """Say how restarts went."""
    nothing = torch.zeros(0, dtype=torch.float64)
    for name, axes in (("history", (1,)), ("iterates", (1, 2)), ("finals", (2,))):
        if name in tensors and tensors[name].ndim not in axes:
            raise InputError(f"tensor {name!r} has shape {tuple(tensors[name].shape)}, where another was expected")
    runs = [
        Training(
            run["seed"],
            np.empty(0),
            float(run["elbo"]),
            float(run["elbo_error"]),
            StopReason[run["stop"]],
            final=final.numpy(),
            faults=tuple(str(fault) for fault in run.get("faults", ())),
        )
        for run, final in zip(header["runs"], tensors.get("finals", [nothing] * len(header["runs"])), strict=True)
    ]
    best, iterates = header["best"], tensors.get("iterates", nothing)
    runs[best] = replace(runs[best], history=tensors["history"].numpy(), iterates=iterates.numpy())
    return tuple(runs)


def _story(header: dict[str, Any], given: Any) -> Story:
    """Build an untrained story: the one that is given, or that of the collection by its name."""
    name, config = header["story"], header["config"]
    found: Any = _from_collection(name) if given is None else user_story(name, given)
    if isinstance(found, type):
        untrained: Story = found(**config)
        return untrained
    if found.config != config:
        raise InputError(f"story: its options are {found.config}, where those of the run are {config}")
    copied: Story = copy_pair(found, None)[0]
    return copied


def _from_collection(name: str) -> type[Story]:
    """Find a story of the collection by its import path."""
    module, _, attribute = name.partition(":")
    if not (name.startswith(COLLECTION) and module.removeprefix(COLLECTION).isidentifier()):
        raise InputError(
            f"story {name!r}: only stories of the collection are rebuilt by name, and nothing that a run names is "
            "executed; give your own with story=, or --story FILE.py:CLASS"
        )
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError):
        raise InputError(f"story {name!r}: this version of the collection has no such story") from None
    if not (isinstance(kind, type) and issubclass(kind, Story) and import_path(kind) == name):
        raise InputError(f"story {name!r} is not a Story")
    return kind
