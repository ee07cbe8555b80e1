"""``load``: a run's directory becomes a ``Fit`` again."""

from __future__ import annotations

import contextlib
import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from pplgen import store
from pplgen.arguments import read_rows
from pplgen.data import Table, named_data_sets
from pplgen.errors import InputError
from pplgen.fitted import COLLECTION, Fit
from pplgen.isolation import seeded
from pplgen.pair import Pair, check_shapes
from pplgen.posterior import group_of
from pplgen.sampled import SampledFit
from pplgen.sampling import Chains, replay
from pplgen.series import load_series
from pplgen.story import Story, check_count
from pplgen.training import StopReason, Training

__all__ = ["load", "load_with_draws"]


def load(directory: str | Path, data: Any = None, *, labels: Any = None, weights: Any = None) -> Fit:
    """Read a run back.

    Parameters
    ----------
    directory
        Where ``Fit.save`` or the command line wrote it.
    data
        The training data, checked against the run's fingerprint; needed for what the training rows enter, such as
        ``to_datatree``, and for nothing else.
    labels, weights
        What the fit was told of the rows, as ``fit`` takes them.

    Raises
    ------
    InputError
        Where the directory holds no run of this collection, or one that is cut short, altered, or of other data.
    """
    directory = Path(directory)
    tensors, header = store.read(directory)
    try:
        return _rebuild(tensors, header, data, labels, weights)
    except InputError as error:
        raise InputError(f"{str(directory)!r}: {error}") from None
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, RuntimeError) as error:
        what = f"{store.HEADER} does not describe a run that this version can rebuild"
        raise InputError(f"{str(directory)!r}: {what}: {type(error).__name__}: {error}") from None


def load_with_draws(
    directory: str | Path, data: Any = None, *, labels: Any = None, weights: Any = None, by: str | None = None
) -> tuple[Fit, xr.DataTree | None]:
    """Read a run back with its rows and the draws that the command line keeps beside it, ``None`` where there are none.

    As ``load``, but where no ``data`` are given the rows are those of the named data set that was fitted, or those
    among the draws, if they were few enough to be kept there. ``by`` is the column that tells series apart.
    """
    directory = Path(directory)
    header = store.read(directory)[1]
    tree = None
    if (directory / store.DRAWS).exists():
        try:
            with xr.open_datatree(directory / store.DRAWS, engine="h5netcdf") as file:
                tree = file.load()
        except (OSError, ValueError) as error:
            raise InputError(f"{str(directory / store.DRAWS)!r} cannot be read: {error}") from None
    if data is not None and by is not None:
        data = load_series(data, by=by)
    if data is None:
        name = header.get("data", {}).get("name")
        known = [name] if name in named_data_sets() else []
        for rows in (*known, None if tree is None else _kept_rows(tree, header)):
            with contextlib.suppress(InputError):
                if rows is not None:
                    return load(directory, rows, labels=labels, weights=weights), tree
    return load(directory, data, labels=labels, weights=weights), tree


def _kept_rows(tree: xr.DataTree, header: dict[str, Any]) -> Table | None:
    """Return the rows of a run that are among its draws, with what was known of them."""
    observed = list(group_of(tree, "observed_data").values())
    if len(observed) != 1:
        return None
    given = group_of(tree, "constant_data")
    labels, weights = (torch.as_tensor(given[n].values) if n in given else None for n in ("row_labels", "row_weights"))
    columns, name = tuple(map(str, header["columns"])), str(header["data"]["name"])
    return Table(torch.as_tensor(observed[0].values), columns, name, labels, weights)


def _rebuild(tensors: dict[str, Tensor], header: dict[str, Any], data: Any, labels: Any, weights: Any) -> Fit:
    """Build the story, fill in its parameters or draws, and say how it was fitted."""
    seed = check_count("seed", header["seed"], minimum=0)
    columns = tuple(str(column) for column in header["columns"])
    with seeded(seed):
        story = _story(header["story"], header["config"]).to(_dtype(header))
    table = None if data is None else read_rows(story, data, labels, weights, _dtype(header))
    if table is not None:
        expected = header["data"]
        if table.fingerprint != expected["fingerprint"]:
            for what in expected.get("known", []):
                if getattr(table, what) is None:
                    raise InputError(f"this run knew {what} of its rows: give {what} as for the fit")
            fitted_to = f"{expected['name']!r} with {expected['num_rows']} rows"
            raise InputError(f"{table.name} is not the data of this run, which was fitted to {fitted_to}")
    with seeded(seed):
        buffers = _named("buffer/", tensors)
        check_shapes("buffer", buffers, dict(story.named_buffers()))
        story.load_state_dict(buffers, strict=False)
        # without its data the pair is shaped on rows of its own making
        rows = (story.simulate(2),) if table is None else (table.values, table.labels, table.weights)
        pair = Pair.of_story(story, *rows, initialise=False)
    facts: dict[str, Any] = {"table": table, "seed": seed, "path": str(header["path"])}
    facts["origin"] = {**header, "columns": columns}
    if header.get("method") == "nuts":
        with pair.isolated():
            replay(pair, _named("draws/", tensors))
        return SampledFit(pair, Chains(**header["chains"]), **facts)
    with pair.isolated():
        pair.restore(_named("parameter/", tensors))
    return Fit(pair, _runs(tensors, header), num_failed=int(header["num_failed"]), **facts)


def _runs(tensors: dict[str, Tensor], header: dict[str, Any]) -> tuple[Training, ...]:
    """Say how restarts went."""
    nothing = torch.zeros(0, dtype=torch.float64)
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


def _named(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take the tensors whose names start with a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _dtype(header: dict[str, Any]) -> torch.dtype:
    """Return the floating-point type of a run."""
    return {"float32": torch.float32, "float64": torch.float64}[header["dtype"]]


def _story(name: str, config: dict[str, Any]) -> Story:
    """Build an untrained story of the collection from its import path and config."""
    module, _, attribute = name.partition(":")
    if not module.startswith(COLLECTION):
        raise InputError(f"story {name!r}: only stories of the collection are rebuilt by name")
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError):
        raise InputError(f"story {name!r}: this version of the collection has no such story") from None
    if not (isinstance(kind, type) and issubclass(kind, Story)):
        raise InputError(f"story {name!r} is not a Story")
    return kind(**config)
