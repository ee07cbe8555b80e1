"""Runs of a model on some of its rows: which arguments have rows, and whether a minibatch can stand for all."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations, islice, product
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pplgen.errors import InputError, first_line
from pplgen.story.isolation import overwrite, seeded
from pplgen.story.python_state import reachable_buffers
from pplgen.story.rows import RowAxes
from pplgen.story.site_checks import check_sites
from pplgen.story.structure import Structure, sample_sites

__all__ = ["check_minibatch", "trial", "with_row_axes"]

MAX_TRIES = 32
"""Maximum number of choices of arguments that are tried."""


@contextlib.contextmanager
def trial(*functions: Callable[..., Any], seed: int = 0) -> Iterator[None]:
    """Run functions without gradients, their buffers and all random generators restored on exit."""
    buffers = {buffer: buffer.detach().clone() for buffer in reachable_buffers(*functions)}
    with seeded(seed), torch.no_grad():
        try:
            yield
        finally:
            overwrite(buffers)


def with_row_axes(
    structure: Structure, model: Callable[..., Any], trace: poutine.Trace, data: tuple[Any, ...]
) -> Structure:
    """Decide by evaluation which axes count the rows, where several arguments or axes are as long as the row plate.

    Half of the rows are selected along the axes, given the latents of ``trace``. They are right where the densities of
    these rows, and those outside the row plate, are the same as with all rows. The usual axes are tried first, then
    fewest changes, and the usual ones stay if none are right, as in a model with statistics of its rows.
    """
    usual, rows = structure.row_axes.axes, structure.row_axes.count(data)
    if structure.row_plate is None or rows is None or rows < 4:  # a single row of a half would broadcast
        return structure
    axes_of = [[i for i, n in enumerate(v.shape) if n == rows] if isinstance(v, Tensor) else [] for v in data]
    if sum(map(len, axes_of)) < 2:
        return structure
    others = [[axis for axis in (*axes, None) if axis != own] for axes, own in zip(axes_of, usual, strict=True)]
    for axes in islice(_fewest_changes(usual, others), MAX_TRIES):
        candidate = replace(structure, row_axes=RowAxes(axes))
        if any(axis is not None for axis in axes) and _same_densities(candidate, model, trace, data, rows):
            return candidate
    return structure


def _fewest_changes(usual: tuple[Any, ...], others: list[list[Any]]) -> Iterator[tuple[Any, ...]]:
    """Iterate over choices, those with fewest entries other than the usual ones first."""
    for number in range(len(usual) + 1):
        for changed in combinations(range(len(usual)), number):
            yield from product(*(others[i] if i in changed else [own] for i, own in enumerate(usual)))


def _same_densities(
    structure: Structure, model: Callable[..., Any], trace: poutine.Trace, data: tuple[Any, ...], rows: int
) -> bool:
    """Whether the model of half of the rows has the densities that it has for them among all rows."""
    half = slice(rows // 2, None)

    def selected(value: Tensor, node: Any, event_dim: int) -> Tensor:
        """Select rows of a site's values or densities."""
        dims = [frame.dim for frame in node["cond_indep_stack"] if frame.name == structure.row_plate]
        axis = value.ndim - event_dim + dims[0] if dims else -1
        return value[(slice(None),) * axis + (half,)] if axis >= 0 and value.shape[axis] == rows else value

    sites = {name: node for name, node in sample_sites(trace).items() if not node["infer"].get("_deterministic")}
    latents = {
        name: selected(node["value"], node, node["fn"].event_dim)
        for name, node in sites.items()
        if not node["is_observed"]
    }
    try:
        with trial(model):
            trace.compute_log_prob(lambda name, _: name in sites)
            some = structure.row_axes.select(data, half)
            other = poutine.trace(poutine.condition(model, latents)).get_trace(*some)
            other.compute_log_prob(lambda name, _: name in sites)
            pairs = [
                (selected(sites[name]["log_prob"], sites[name], 0), other.nodes[name]["log_prob"]) for name in sites
            ]
    except Exception:  # of any kind, since a user's model may do anything with data that do not fit
        return False
    return all(a.shape == b.shape and torch.allclose(a, b, 1e-3, 1e-4, equal_nan=True) for a, b in pairs)


def check_minibatch(pair: Any, size: int) -> None:
    """Raise ``InputError`` unless some rows of a pair can stand for all; call it inside ``pair.isolated``.

    Model and guide are evaluated and checked on ``size`` rows, and compared with twice as many: all that changes must
    be inside the row plate, because only that is scaled.

    Parameters
    ----------
    pair : Pair
        The pair, with a row plate.
    size
        Rows of a minibatch, at most those of ``pair.data``.
    """
    plate, rows = str(pair.structure.row_plate), pair.structure.row_axes.count(pair.data)
    few, more = (_sites_of_rows(pair, plate, number) for number in (size, min(2 * size, rows)))
    for name in {**few, **more}:
        if name in pair.structure.per_row and name in few and name in more:
            sizes = [{f.name: f.size for f in each[name]["cond_indep_stack"]} for each in (few, more)]
            changed = next((f"plate {n!r}" for n in sizes[0] if n != plate and sizes[0][n] != sizes[1].get(n)), None)
        else:
            shapes = [tuple(each[name]["value"].shape) if name in each else None for each in (few, more)]
            changed = None if shapes[0] == shapes[1] else f"site {name!r}, outside it,"
        if changed:
            raise InputError(
                f"minibatches scale the row plate {plate!r} to all rows, but {changed} depends on the number of rows "
                "too; fit with all rows in each step, or give its data as another argument"
            )


def _sites_of_rows(pair: Any, plate: str, number: int) -> dict[str, Any]:
    """Return the model's sites on the first rows, all checked."""
    where = f"a minibatch of {number} rows"
    tracer, fault = None, None
    with trial(pair.model, pair.guide):
        try:
            data = pair.structure.row_axes.select(pair.data, torch.arange(number))
            guide = poutine.trace(pair.guide).get_trace(*data)
            tracer = poutine.trace(poutine.replay(pair.model, guide))
            model = tracer.get_trace(*data)
            check_sites(model, guide)
        except (RuntimeError, ValueError, IndexError, ArithmeticError) as error:
            fault = error
    nodes = {} if tracer is None else tracer.msngr.trace.nodes
    if plate in nodes and len(nodes[plate]["value"]) != number:
        raise InputError(
            f"{where}: the row plate {plate!r} has {len(nodes[plate]['value'])}; expected one of the data's length, "
            f"such as pyro.plate({plate!r}, len(y))"
        ) from fault
    if fault is not None:
        raise InputError(f"{where}: the model or guide cannot be evaluated: {first_line(fault)}") from fault
    return sample_sites(model)
