"""A random function of Pyro's evaluated many times at once: traced, proved against one evaluation, and mapped."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from pplgen.isolation import seeded
from pplgen.rewrite import clean
from pplgen.tracing import operations_of, require_equal, traceable

__all__ = ["over_draws"]

REPAYS = 150
"""Draws from which on tracing costs less than it saves."""
ENTRIES = 2**22
"""Entries of the largest intermediate result of as many draws as are computed at once."""


@torch.no_grad()
def over_draws(
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
        if num_draws >= REPAYS:
            try:
                return _mapped(function, num_draws, inputs)
            except Exception:  # whatever cannot be traced, proved or mapped is evaluated draw by draw
                pass
        results = [function({name: value[index] for name, value in inputs.items()}) for index in range(num_draws)]
    return tree_map(lambda *values: torch.stack(values), results[0], *results[1:])


def _mapped(function: Callable[[dict[str, Tensor]], Any], num_draws: int, inputs: dict[str, Tensor]) -> Any:
    """Trace the function at the first draw, compare the graph with it there, and map it over all."""
    names = list(inputs)

    def flat(*values: Tensor) -> Any:
        return function(dict(zip(names, values, strict=True)))

    first = [value[0] for value in inputs.values()]
    seed = int(torch.randint(2**31, ()))
    with traceable(), seeded(seed):
        operations = operations_of(flat, *first)
    graph = clean(operations, first)
    with seeded(seed):
        expected = tree_flatten(flat(*first))[0]
    with seeded(seed):
        given = tree_flatten(graph(*first))[0]
    for ours, theirs in zip(given, expected, strict=True):
        require_equal("mapped draw", ours, theirs)

    # without inputs there is nothing else to map over
    def one(_: Tensor, *values: Tensor) -> Any:
        return graph(*values)

    sizes = [node.meta["val"].numel() for node in graph.graph.nodes if isinstance(node.meta.get("val"), Tensor)]
    at_once = max(1, min(num_draws, ENTRIES // max([1, *sizes])))
    batches = math.ceil(num_draws / at_once)
    mapped = torch.func.vmap(one, randomness="different", chunk_size=math.ceil(num_draws / batches))
    return mapped(torch.zeros(num_draws), *inputs.values())
