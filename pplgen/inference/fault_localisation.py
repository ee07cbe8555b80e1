"""Steps of restarts that run together, taken again to find where one of them broke down."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from pyro.infer import ELBO
from torch import Tensor

from pplgen.compiler.graph import tensors_of
from pplgen.errors import DataWarning
from pplgen.inference.engine import Engine, State
from pplgen.inference.nonfinite import TRIES, explain
from pplgen.inference.svi import AT_THE_END, BEFORE_ANY, FINAL_EVALUATIONS
from pplgen.inference.training_state import Met, TrainingState
from pplgen.story.isolation import continue_from, generator_states
from pplgen.story.pair import Pair

__all__ = ["LOOKED_AT", "FaultLocalisation"]

LOOKED_AT = 3
"""Restarts that broke down in the same window of steps and are looked at, one by one."""


class FaultLocalisation:
    """A second look at steps of an engine.

    Parameters
    ----------
    pairs
        One for each restart; their parameters are changed.
    engine
        Takes the steps.
    bound
        What is maximised; each pair's own where ``None``.
    batches_from
        Arguments of every step after so many; ``None`` where all steps have those of the pair.
    word
        What a restart is called.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        engine: Engine,
        bound: ELBO | None,
        batches_from: Callable[[int], Iterator[tuple[Any, ...]]] | None,
        word: str,
    ) -> None:
        self.pairs, self.engine, self.bound, self.word = pairs, engine, bound, word
        self._batches_from = batches_from

    def met(self, now: TrainingState, num_steps: int, generators: list[Tensor], which: Sequence[int]) -> dict[int, Met]:
        """Find steps in which restarts broke down after where they stand, and say what was not finite.

        ``generators`` are where they were then; afterwards they are where they are.
        """
        found: dict[int, Met] = {}
        with torch.random.fork_rng(), self._own_batches():
            continue_from(generators)
            state, num_before = now.good, now.taken
            batches = self._batches_from(num_before) if self._batches_from else None
            for step in range(num_before + 1, num_before + num_steps + 1):
                batch = None if batches is None else next(batches)
                if batch is not None:
                    self.engine.data = iter([tensors_of(batch)])
                before, generators = state, generator_states()
                moved, losses = self.engine.run(before, now.rates, 1)
                state = State(*(value.clone() for value in moved))
                sound = (state.vectors.isfinite().all(dim=1) & losses[0].isfinite()).tolist()
                for index in which:
                    if index not in found and not sound[index]:
                        found[index] = step, self._explain(index, before.vectors[index], generators, batch)
                if len(found) == len(which):
                    break
        return found

    @contextlib.contextmanager
    def _own_batches(self) -> Iterator[None]:
        """Give the engine the batches back that it has."""
        held = self.engine.data
        try:
            yield
        finally:
            self.engine.data = held

    def verdict(self, now: TrainingState) -> str:
        """Say what the first restart met, where none has come to anything."""
        restart = now.restarts[0]
        if not restart.history:
            return BEFORE_ANY.format(step=now.taken, fault=restart.faults[-1])
        found = self._explain(0, now.good.vectors[0], generator_states(), tries=max(FINAL_EVALUATIONS))
        return AT_THE_END.format(fault=found or ", ".join(restart.faults[-1:]) or "it is infinite or NaN at times")

    def _explain(
        self,
        index: int,
        vector: Tensor,
        generators: list[Tensor],
        batch: tuple[Any, ...] | None = None,
        tries: int = TRIES,
    ) -> str | None:
        """Say what is not finite at parameters of a restart, and leave the generators alone.

        Several restarts draw random numbers for all of them at once, so that one on its own does not draw the same
        again: it is tried some times. Of ranks that share the rows, the first that finds something is believed.
        """
        pair = self.pairs[index]
        with torch.random.fork_rng(), pair.isolated():
            continue_from(generators)
            pair.restore(self.engine.graph.unpack(vector))
            found = explain(pair, self.bound or pair.elbo(), pair.data if batch is None else batch, tries)
        return self.engine.ranks.first_found(found)

    def warn(self, now: TrainingState, non_finite: Sequence[int]) -> None:
        """Warn of restarts that have gone back, in a sentence for each that was looked at."""
        unseen = len(non_finite[LOOKED_AT:])
        for place, index in enumerate(non_finite[:LOOKED_AT], start=1):
            named = f"{self.word} {index + 1}, " if len(self.pairs) > 1 else ""
            more = f"; {unseen} more broke down in the same steps" if unseen and place == LOOKED_AT else ""
            warnings.warn(f"{named}{now.restarts[index].faults[-1]}{more}", DataWarning, stacklevel=3)
