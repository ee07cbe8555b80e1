"""Evaluate a random Pyro function for many draws at once: traced, verified against one evaluation, and vmapped."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from pplgen.compiler.functionalisation import canonicalise, lift_constants
from pplgen.compiler.recording import record_operations, result_sizes
from pplgen.compiler.traceable_pyro import require_equal, traceable
from pplgen.story.isolation import collection_paused, seeded

__all__ = ["MAX_ENTRIES", "largest_result", "map_draws", "traced_function"]

MIN_TRACED_DRAWS = 50
"""Minimum number of draws for which tracing pays off."""
MAX_ENTRIES = 2**22
"""Maximum entries of the largest intermediate result of one ``vmap`` chunk."""


@torch.no_grad()
def map_draws(
    function: Callable[[dict[str, Tensor]], Any],
    num_draws: int,
    inputs: Mapping[str, Tensor] | None = None,
    *,
    max_looped: int | None = None,
) -> Any:
    """Evaluate a random function for each draw, with independent random numbers.

    Parameters
    ----------
    function
        Takes one draw by name; returns tensors, in any nesting.
    num_draws
        Number of evaluations.
    inputs
        Draws by name, shape ``(num_draws, ...)`` each.
    max_looped
        Maximum number of evaluations, of the first draws, if the function can only be evaluated draw by draw.

    Returns
    -------
    Any
        Results of ``function``, stacked along a first axis of draws.
    """
    inputs = dict(inputs or {})
    with pyro.validation_enabled(False):
        if num_draws >= MIN_TRACED_DRAWS:
            try:
                return _vmapped(function, num_draws, inputs)
            except Exception:  # a function that cannot be traced, verified or vmapped is evaluated draw by draw
                pass
        looped = range(num_draws if max_looped is None else min(num_draws, max_looped))
        results = [function({name: value[index] for name, value in inputs.items()}) for index in looped]
    return tree_map(lambda *values: torch.stack(values), results[0], *results[1:])


@collection_paused()
def traced_function(function: Callable[..., Any], inputs: Sequence[Tensor], captured: Sequence[Tensor] = ()) -> Any:
    """Trace a random function of tensors, and compare the graph with it at a shared seed.

    Parameters
    ----------
    function
        Function of the inputs; returns tensors, in any nesting.
    inputs
        Tensors at which it is traced.
    captured
        Tensors that it closes over, such as parameters: the first arguments of the graph.

    Raises
    ------
    NotTraceable
        If the graph's results differ from the function's. Other errors of tracing are propagated.
    """
    seed = int(torch.randint(2**31, ()))
    with traceable(), seeded(seed):
        operations = record_operations(function, *inputs, learned=captured)
    lift_constants(operations, list(captured))
    arguments = [*(value.detach() for value in captured), *inputs]
    graph = canonicalise(operations, arguments)
    with seeded(seed):
        expected = tree_flatten(function(*inputs))[0]
    with seeded(seed):
        results = tree_flatten(graph(*arguments))[0]
    for ours, theirs in zip(results, expected, strict=True):
        require_equal("mapped draw", ours, theirs)
    return graph


def largest_result(graph: Any) -> int:
    """Return the number of entries of the largest intermediate result of a graph."""
    return max([1, *result_sizes(graph)])


def _vmapped(function: Callable[[dict[str, Tensor]], Any], num_draws: int, inputs: dict[str, Tensor]) -> Any:
    """Trace the function at the first draw, and vmap it over all."""
    names = list(inputs)

    def flat(*values: Tensor) -> Any:
        return function(dict(zip(names, values, strict=True)))

    graph = traced_function(flat, [value[0] for value in inputs.values()])

    # the first argument is an axis to map over if there are no inputs
    def one(_: Tensor, *values: Tensor) -> Any:
        return graph(*values)

    chunk_size = max(1, min(num_draws, MAX_ENTRIES // largest_result(graph)))
    num_chunks = math.ceil(num_draws / chunk_size)
    mapped = torch.func.vmap(one, randomness="different", chunk_size=math.ceil(num_draws / num_chunks))
    return mapped(torch.zeros(num_draws), *inputs.values())
