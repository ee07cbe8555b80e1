"""Pairs of the same structure, with stacked parameters and data, evaluated as one program by ``vmap``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from torch import Tensor

from pplgen.compiler.graph import buffers_of, tensors_of
from pplgen.compiler.vectorisation import MAX_ENTRIES, largest_result, traced_function
from pplgen.inference.stacking import stacked_data
from pplgen.story.isolation import seeded
from pplgen.story.pair import Pair

__all__ = ["BatchedPairs"]


class BatchedPairs:
    """Pairs of the same structure with stacked parameters, buffers and data.

    Parameters
    ----------
    pairs
        S pairs whose data have the same shapes.
    """

    def __init__(self, pairs: list[Pair]) -> None:
        self.pair = pairs[0]
        self.data = stacked_data(pairs)
        tensors = [[*self._copied_parameters(pair), *buffers_of(pair)] for pair in pairs]
        self._stacked = [torch.stack([value.detach() for value in each]) for each in zip(*tensors, strict=True)]

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
        """Evaluate a random function of each pair, with independent random numbers per draw.

        Parameters
        ----------
        function
            Takes inputs by name and the arguments of model and guide; returns a nest of tensors.
        inputs
            Inputs by name, shape ``(S, num_draws, ...)`` each.
        num_draws
            Number of evaluations per pair.
        seed
            Seed of the random numbers.

        Returns
        -------
        Any
            Results of the function, with leading axes ``(S, num_draws)``.

        Raises
        ------
        Exception
            Of any kind, if the function cannot be traced, verified or vectorised.
        """
        inputs = dict(inputs or {})
        names = list(inputs)

        def flat(*values: Tensor) -> Any:
            tensors = iter(values[len(names) :])
            data = tuple(next(tensors) if isinstance(value, Tensor) else value for value in self.pair.data)
            return function(dict(zip(names, values[: len(names)], strict=True)), data)

        with self.pair.isolated(), seeded(seed), pyro.validation_enabled(False):
            parameters = [*self._parameters(self.pair), *buffers_of(self.pair)]
            example = [*(inputs[name][0, 0] for name in names), *tensors_of(self.pair.data)]
            graph = traced_function(flat, example, parameters)
            at_once = max(1, MAX_ENTRIES // largest_result(graph))
            # the first argument is a dummy, as without inputs vmap has nothing else to map draws over
            in_dims = (0, *[None] * len(self._stacked), *[0] * len(names), *[None] * len(self.data))
            chunk = math.ceil(num_draws / math.ceil(num_draws / at_once))
            draws = torch.func.vmap(
                lambda _, *values: graph(*values), in_dims=in_dims, randomness="different", chunk_size=chunk
            )
            pairs_at_once = max(1, at_once // num_draws)
            batched = torch.func.vmap(
                lambda *values: draws(torch.zeros(num_draws), *values), randomness="different", chunk_size=pairs_at_once
            )
            return batched(*self._stacked, *(inputs[name] for name in names), *self.data)

    def _copied_parameters(self, pair: Pair) -> list[Tensor]:
        """Copy a pair's unconstrained parameters, in the order of their names."""
        with pair.isolated():
            return [value.detach().clone() for value in self._parameters(pair)]

    @staticmethod
    def _parameters(pair: Pair) -> list[Tensor]:
        """Return the unconstrained parameters, not copied; call inside ``pair.isolated``."""
        return [value for _, value in sorted(pyro.get_param_store().named_parameters())]
