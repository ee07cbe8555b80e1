"""Many pairs that differ only in parameters and data, evaluated as one program."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from torch import Tensor

from pplgen.compiler.graph import buffers_of, tensors_of
from pplgen.compiler.vectorised import MAX_ENTRIES, largest_result, traced_function
from pplgen.inference.restarts import stacked_data
from pplgen.story.isolation import seeded
from pplgen.story.pair import Pair

__all__ = ["Ensemble"]


class Ensemble:
    """Pairs of the same structure, their parameters, buffers and data stacked.

    Parameters
    ----------
    pairs
        S of them, with data of the same shapes.
    """

    def __init__(self, pairs: list[Pair]) -> None:
        self.pair = pairs[0]
        self.data = stacked_data(pairs)
        held = [[*self._parameters(pair), *buffers_of(pair)] for pair in pairs]
        self._held = [torch.stack([value.detach() for value in each]) for each in zip(*held, strict=True)]

    def __len__(self) -> int:
        return len(self.data[0])

    @torch.no_grad()
    def evaluate(
        self,
        function: Callable[[dict[str, Tensor], tuple[Any, ...]], Any],
        inputs: Mapping[str, Tensor] | None = None,
        *,
        num_draws: int,
        seed: int,
    ) -> Any:
        """Evaluate a random function of the pair, with random numbers of its own each time.

        Parameters
        ----------
        function
            Takes inputs by name and the arguments of model and guide; returns tensors, however nested.
        inputs
            Of shape ``(S, num_draws, ...)`` each.
        num_draws
            How often, for each pair.
        seed
            Of its random numbers.

        Returns
        -------
        Any
            What the function returns, with axes ``(S, num_draws)`` in front.

        Raises
        ------
        Exception
            Of whatever kind, where it cannot be traced, proved or mapped.
        """
        inputs = dict(inputs or {})
        names = list(inputs)

        def flat(*values: Tensor) -> Any:
            rest = iter(values[len(names) :])
            data = tuple(next(rest) if isinstance(value, Tensor) else value for value in self.pair.data)
            return function(dict(zip(names, values[: len(names)], strict=True)), data)

        with self.pair.isolated(), seeded(seed), pyro.validation_enabled(False):
            parameters = [*self._own(self.pair), *buffers_of(self.pair)]
            first = [*(inputs[name][0, 0] for name in names), *tensors_of(self.pair.data)]
            graph = traced_function(flat, first, parameters)
            at_once = max(1, MAX_ENTRIES // largest_result(graph))
            # without inputs there is nothing else to map draws over
            along = (0, *[None] * len(self._held), *[0] * len(names), *[None] * len(self.data))
            chunk = math.ceil(num_draws / math.ceil(num_draws / at_once))
            draws = torch.func.vmap(
                lambda _, *values: graph(*values), in_dims=along, randomness="different", chunk_size=chunk
            )
            sets = max(1, at_once // num_draws)
            several = torch.func.vmap(
                lambda *values: draws(torch.zeros(num_draws), *values), randomness="different", chunk_size=sets
            )
            return several(*self._held, *(inputs[name] for name in names), *self.data)

    def _parameters(self, pair: Pair) -> list[Tensor]:
        """Copy a pair's unconstrained parameters, in the order of their names."""
        with pair.isolated():
            return [value.detach().clone() for value in self._own(pair)]

    @staticmethod
    def _own(pair: Pair) -> list[Tensor]:
        """Return the unconstrained parameters themselves; call it inside ``pair.isolated``."""
        return [value for _, value in sorted(pyro.get_param_store().named_parameters())]
