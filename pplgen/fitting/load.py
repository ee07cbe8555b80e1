"""``load``: restore a ``Fit`` from the directory of a saved run."""

from __future__ import annotations

import contextlib
import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from pplgen.data.columns import ColumnSelection
from pplgen.data.series import load_selected_series
from pplgen.data.table import Table, named_data_sets
from pplgen.data.tensors import as_dtype, as_finite
from pplgen.errors import DataWarning, InputError, first_line
from pplgen.fitting.nuts_result import SampledFit
from pplgen.fitting.posterior_file import read_draws, saved_rows
from pplgen.fitting.prepare import prepare
from pplgen.fitting.result import Fit
from pplgen.fitting.run_contents import (
    arguments_fingerprint,
    check_finite,
    check_sites,
    restore_buffers,
    restore_story,
    saved_buffers,
    source_digest,
    with_prefix,
    with_saved_guide,
)
from pplgen.inference.model_arguments import check_device, read_rows
from pplgen.inference.nuts import Chains, use_stored_draws
from pplgen.inference.training_result import Training
from pplgen.storage import run_folder
from pplgen.storage.user_code import COLLECTION, import_path, user_story
from pplgen.story.base import Story
from pplgen.story.isolation import copy_pair, seeded
from pplgen.story.pair import Pair

__all__ = ["load", "load_with_draws"]

TYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class LoadOptions:
    """Arguments of ``load``."""

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
    dtype: torch.dtype | str | None = None,
    device: str | torch.device | None = None,
) -> Fit:
    """Load a saved run.

    No code from the directory is executed: stories of the collection are imported by name, and any other code is
    passed as an argument.

    Parameters
    ----------
    directory
        Directory written by ``Fit.save`` or the command line.
    data
        Training data, checked against the fingerprint of the run; required only by methods that use the training rows,
        such as ``to_datatree``. For a bare pair always required, as passed to ``fit``.
    story
        For your own story: its class, or an untrained instance if its options are modules, or ``"FILE.py:CLASS"``, a
        file that is then executed.
    model, guide
        For a bare pair: model and guide as passed to ``fit``, untrained; a guide by name is not needed.
    labels, weights
        Labels and weights of the rows, as passed to ``fit``.
    dtype
        ``"float32"`` or ``"float64"``, for a story; default: that of the run. A bare pair has that of its data.
    device
        Device to compute on, such as ``"cuda"``, whatever that of the fit. Default: the CPU for a story, the device of
        the data for a bare pair.

    Raises
    ------
    InputError
        If the directory contains no run, or the run is truncated, altered, or of other data or code.
    """
    directory = Path(directory)
    dtype = as_dtype(dtype)
    target = None if device is None else check_device(device)
    return _load(directory, LoadOptions(data, labels, weights, story, model, guide, dtype, target))


def load_with_draws(
    directory: str | Path,
    data: Any = None,
    *,
    labels: Any = None,
    weights: Any = None,
    by: str | None = None,
    story: Any = None,
) -> tuple[Fit, xr.DataTree | None]:
    """Load a run with its rows and the draws saved by the command line, ``None`` if there are none.

    As ``load``, but all files of the run are compared with the digests in its header, and without ``data`` the rows are
    those of the named data set that was fitted, or those saved with the draws, if any. ``by`` is the column that
    identifies series.
    """
    directory = Path(directory)
    header = run_folder.read(directory)[1]
    run_folder.verify(directory, header)
    tree = read_draws(directory)
    if data is not None and by is not None:
        data = load_selected_series(data, ColumnSelection(training=header["columns"]), by)
    options = LoadOptions(data, labels, weights, story)
    if data is None:
        name = header["data"].get("name")
        data_sets = [name] if name in named_data_sets() else []
        for rows in (*data_sets, None if tree is None else saved_rows(tree, header)):
            with contextlib.suppress(InputError):
                if rows is not None:
                    return _load(directory, replace(options, data=rows)), tree
    return _load(directory, options), tree


def _load(directory: Path, options: LoadOptions) -> Fit:
    """Load a run; errors name its directory."""
    tensors, header = run_folder.read(directory)
    try:
        with seeded(header["seed"]):
            pair, table = (_bare_pair if "pair" in header else _story_pair)(tensors, header, options)
        fit = _restore(pair, table, tensors, header)
    except InputError as error:
        raise InputError(f"{str(directory)!r}: {error}") from None
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, RuntimeError, MemoryError) as error:
        what = f"{run_folder.HEADER} does not describe a run that this version can restore"
        raise InputError(f"{str(directory)!r}: {what}: {type(error).__name__}: {first_line(error)}") from None
    if header.get("source_sha256") not in (None, source_digest(pair)):
        message = f"{str(directory)!r}: the code of {fit.name} has changed since this run; its parameters may not apply"
        warnings.warn(message, DataWarning, stacklevel=3)
    return fit


def _story_pair(tensors: dict[str, Tensor], header: dict[str, Any], options: LoadOptions) -> tuple[Pair, Table | None]:
    """Build the story and its rows, with saved buffers (priors that depend on the data) but untrained parameters."""
    if options.model is not None or options.guide is not None:
        raise InputError(f"model, guide: the run is of a story, {header['story']!r}, which has its own")
    own = TYPES[header["dtype"]]
    story = _story(header, options.story).to(dtype=options.dtype or own, device=options.device)
    restore_story(story, tensors)
    table = None if options.data is None else _rows(story, header, options)
    if table is None:  # simulated rows of the same shape
        x, labels, weights = story.simulate(2), None, None
    else:
        x, labels, weights = table.values, table.labels, table.weights
    if len(header["columns"]) != x.shape[-1]:
        raise InputError(f"{run_folder.HEADER} names {len(header['columns'])} columns; the story has {x.shape[-1]}")
    annotations = (None if each is None else each.to(options.device) for each in (labels, weights))
    pair = Pair.of_story(story, x.to(options.device), *annotations, initialise=False)
    return with_saved_guide(pair, header.get("guide"), tensors), table


def _bare_pair(tensors: dict[str, Tensor], header: dict[str, Any], options: LoadOptions) -> tuple[Pair, None]:
    """Build the pair of a user's model and guide, with saved buffers but untrained parameters."""
    names = " and ".join(str(part) for part in header["pair"].values())
    if options.model is None or options.data is None:
        raise InputError(f"the run is of a bare pair, {names}: give its data, model and guide to pplgen.load")
    if options.story is not None:
        raise InputError(f"story: the run is of a bare pair, {names}; give model and guide")
    if options.dtype is not None:
        raise InputError("dtype: a bare pair has the dtype of its data; convert the data instead")
    prepared = prepare(
        options.model,
        header.get("guide", options.guide),
        options.data,
        options.labels,
        options.weights,
        seed=header["seed"],
        device=options.device,
        recorded={},
        rows=header.get("options", {}).get("rows"),
        dtype=as_dtype(header.get("options", {}).get("dtype")),
    )
    pair = prepared.new_pair()
    # older runs record the types of containers, without what they hold
    fingerprints = (arguments_fingerprint(pair.data), arguments_fingerprint(pair.data, contents=False))
    if header["arguments_sha256"] not in fingerprints:
        raise InputError("the data, labels or weights are not those of this run")
    restore_buffers(with_prefix("buffer/", saved_buffers(pair)), with_prefix("buffer/", tensors))
    return pair, None


def _restore(pair: Pair, table: Table | None, tensors: dict[str, Tensor], header: dict[str, Any]) -> Fit:
    """Restore parameters or draws, and the training results."""
    check_sites(pair, header)
    facts: dict[str, Any] = {"table": table, "seed": header["seed"], "path": header["path"]}
    facts["origin"] = {**header, "columns": tuple(header["columns"])}
    if header.get("method") == "nuts":
        like = next((value for value in pair.data if isinstance(value, Tensor) and value.is_floating_point()), None)
        with pair.isolated():
            draws = check_finite("draw", with_prefix("draws/", tensors))
            use_stored_draws(pair, draws if like is None else {name: value.to(like) for name, value in draws.items()})
        return SampledFit(pair, Chains(**header["chains"]), **facts)
    with pair.isolated():
        pair.restore(check_finite("parameter", with_prefix("parameter/", tensors)))
    return Fit(pair, _runs(tensors, header), num_failed=header["num_failed"], **facts)


def _rows(story: Story, header: dict[str, Any], options: LoadOptions) -> Table:
    """Read the training rows in the story's dtype, and check that they are those of the run."""
    expected = header["data"]
    original, target = TYPES[expected["dtype"]], options.dtype or TYPES[header["dtype"]]
    dtype = torch.promote_types(original, target)
    with warnings.catch_warnings():  # the fingerprint shows whether their order is right
        warnings.filterwarnings("ignore", "the rows have no column names", DataWarning)
        table = read_rows(story, options.data, options.labels, options.weights, dtype, header["columns"])
    if _as_dtype(table, original).fingerprint != expected["fingerprint"]:
        for what in expected.get("known", []):
            if getattr(table, what, None) is None:
                raise InputError(f"the rows of this run had {what}: give the same {what} to pplgen.load")
        fitted_to = f"{expected['name']!r} with {expected['num_rows']} rows"
        raise InputError(f"{table.name} is not the data of this run, which was fitted to {fitted_to}")
    return _as_dtype(table, target)


def _as_dtype(table: Table, dtype: torch.dtype) -> Table:
    """Convert a table to a floating-point dtype."""
    if table.values.dtype == dtype:
        return table
    values = as_finite(table.values.flatten(0, -2).numpy(), table.columns, dtype).reshape(table.values.shape)
    return replace(table, values=values, weights=None if table.weights is None else table.weights.to(dtype))


def _runs(tensors: dict[str, Tensor], header: dict[str, Any]) -> tuple[Training, ...]:
    """Return the results of all restarts."""
    empty = torch.zeros(0, dtype=torch.float64)
    for name, axes in (("history", (1,)), ("iterates", (1, 2)), ("finals", (2,))):
        if name in tensors and tensors[name].ndim not in axes:
            raise InputError(
                f"tensor {name!r} has shape {tuple(tensors[name].shape)}; expected {' or '.join(map(str, axes))} axes"
            )
    runs = [
        Training.from_facts(run, final)
        for run, final in zip(header["runs"], tensors.get("finals", [empty] * len(header["runs"])), strict=True)
    ]
    best, iterates = header["best"], tensors.get("iterates", empty)
    runs[best] = replace(runs[best], history=tensors["history"].numpy(), iterates=iterates.numpy())
    return tuple(runs)


def _story(header: dict[str, Any], code: Any) -> Story:
    """Build an untrained story, from a user's code or from the collection by its name."""
    name, config = header["story"], header["config"]
    source: Any = _from_collection(name) if code is None else user_story(name, code)
    if isinstance(source, type):
        untrained: Story = source(**config)
        return untrained
    if source.config != config:
        raise InputError(f"story: its options are {source.config}; expected those of the run, {config}")
    copied: Story = copy_pair(source, None)[0]
    return copied


def _from_collection(name: str) -> type[Story]:
    """Import a story of the collection by its import path."""
    module, _, attribute = name.partition(":")
    if not (name.startswith(COLLECTION) and module.removeprefix(COLLECTION).isidentifier()):
        raise InputError(
            f"story {name!r}: only stories of the collection are imported by name, and no other code that a run names "
            "is executed; give your own with story=, or --story FILE.py:CLASS"
        )
    try:
        story = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError):
        raise InputError(f"story {name!r}: this version of the collection has no such story") from None
    if not (isinstance(story, type) and issubclass(story, Story) and import_path(story) == name):
        raise InputError(f"story {name!r} is not a Story")
    return story
