"""A random function of Pyro's evaluated many times at once: traced, proved against one evaluation, and mapped."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from pplgen.compiler.functional import canonicalise, lift_constants
from pplgen.compiler.recording import record_operations
from pplgen.compiler.tracing import require_equal, traceable
from pplgen.story.isolation import seeded

__all__ = ["MAX_ENTRIES", "largest_result", "map_draws", "traced_function"]

MIN_TRACED_DRAWS = 150
"""Draws from which on tracing costs less than it saves."""
MAX_ENTRIES = 2**22
"""Entries of the largest intermediate result of as many draws as are computed at once."""


@torch.no_grad()
def map_draws(
    function: Callable[[dict[str, Tensor]], Any], num_draws: int, inputs: Mapping[str, Tensor] | None = None
) -> Any:
    """Evaluate a random function for each draw, with random numbers of its own.

    Parameters
    ----------
    function
        Takes one draw by name; returns tensors, however nested.
    num_draws
        How often.
    inputs
        Draws by name, shape ``(num_draws, ...)`` each.

    Returns
    -------
    Any
        What ``function`` returns, stacked along a first axis of length ``num_draws``.
    """
    inputs = dict(inputs or {})
    with pyro.validation_enabled(False):
        if num_draws >= MIN_TRACED_DRAWS:
            try:
                return _vmapped(function, num_draws, inputs)
            except Exception:  # whatever cannot be traced, proved or mapped is evaluated draw by draw
                pass
        results = [function({name: value[index] for name, value in inputs.items()}) for index in range(num_draws)]
    return tree_map(lambda *values: torch.stack(values), results[0], *results[1:])


def traced_function(function: Callable[..., Any], inputs: Sequence[Tensor], held: Sequence[Tensor] = ()) -> Any:
    """Trace a random function of tensors, and compare the graph with it at a shared seed.

    Parameters
    ----------
    function
        Of as many tensors as there are inputs; returns tensors, however nested.
    inputs
        Where it is traced.
    held
        Tensors that it knows by itself, such as parameters: the first arguments of the graph.

    Raises
    ------
    NotTraceable
        Where the graph computes something else. Whatever else stops tracing is raised as it is.
    """
    seed = int(torch.randint(2**31, ()))
    with traceable(), seeded(seed):
        operations = record_operations(function, *inputs)
    lift_constants(operations, list(held))
    arguments = [*(value.detach() for value in held), *inputs]
    graph = canonicalise(operations, arguments)
    with seeded(seed):
        expected = tree_flatten(function(*inputs))[0]
    with seeded(seed):
        given = tree_flatten(graph(*arguments))[0]
    for ours, theirs in zip(given, expected, strict=True):
        require_equal("mapped draw", ours, theirs)
    return graph


def largest_result(graph: Any) -> int:
    """Return the entries of the largest intermediate result of a graph."""
    return max([1, *(n.meta["val"].numel() for n in graph.graph.nodes if isinstance(n.meta.get("val"), Tensor))])


def _vmapped(function: Callable[[dict[str, Tensor]], Any], num_draws: int, inputs: dict[str, Tensor]) -> Any:
    """Trace the function at the first draw, and map it over all."""
    names = list(inputs)

    def flat(*values: Tensor) -> Any:
        return function(dict(zip(names, values, strict=True)))

    graph = traced_function(flat, [value[0] for value in inputs.values()])

    # without inputs there is nothing else to map over
    def one(_: Tensor, *values: Tensor) -> Any:
        return graph(*values)

    at_once = max(1, min(num_draws, MAX_ENTRIES // largest_result(graph)))
    batches = math.ceil(num_draws / at_once)
    mapped = torch.func.vmap(one, randomness="different", chunk_size=math.ceil(num_draws / batches))
    return mapped(torch.zeros(num_draws), *inputs.values())
