"""Which step of which restart was not finite, found by taking the steps again."""

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
from pplgen.inference.training import FINAL_EVALUATIONS, no_good_state, non_finite_at_end
from pplgen.inference.training_state import NonFinite, TrainingState
from pplgen.story.isolation import generator_states, set_generator_states
from pplgen.story.pair import Pair

__all__ = ["LOOKED_AT", "FaultLocalisation"]

LOOKED_AT = 3
"""Restarts whose non-finite step is located in one window, at most."""


class FaultLocalisation:
    """Repeats steps of an engine to find where a restart became non-finite.

    Parameters
    ----------
    pairs
        One for each restart; their parameters are changed.
    engine
        Takes the steps.
    bound
        The objective; each pair's own where ``None``.
    batches_from
        Returns the arguments of every step after a number of steps; ``None`` where all steps have those of the pair.
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

    def locate(
        self, training: TrainingState, num_steps: int, generators: list[Tensor], which: Sequence[int]
    ) -> dict[int, NonFinite]:
        """Repeat a window of steps from the last good state; return the first non-finite step of each restart, and why.

        ``generators`` are the states of the random generators at the start of the window; they are left unchanged.
        """
        found: dict[int, NonFinite] = {}
        with torch.random.fork_rng(), self._own_batches():
            set_generator_states(generators)
            state, num_before = training.good, training.taken
            batches = self._batches_from(num_before) if self._batches_from else None
            for step in range(num_before + 1, num_before + num_steps + 1):
                batch = None if batches is None else next(batches)
                if batch is not None:
                    self.engine.data = iter([tensors_of(batch)])
                before, generators = state, generator_states()
                moved, losses = self.engine.run(before, training.rates, 1)
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
        """Restore the engine's batches afterwards."""
        held = self.engine.data
        try:
            yield
        finally:
            self.engine.data = held

    def verdict(self, training: TrainingState) -> str:
        """Return the message for the first restart, where none has a finite ELBO."""
        restart = training.restarts[0]
        if not restart.history:
            return no_good_state(training.taken, restart.faults[-1])
        found = self._explain(0, training.good.vectors[0], generator_states(), tries=max(FINAL_EVALUATIONS))
        return non_finite_at_end(found, restart.faults)

    def _explain(
        self,
        index: int,
        vector: Tensor,
        generators: list[Tensor],
        batch: tuple[Any, ...] | None = None,
        tries: int = TRIES,
    ) -> str | None:
        """Explain what is not finite at parameters of a restart; the generators are left unchanged.

        Several restarts draw their random numbers together, so that one alone does not repeat its draws: several are
        tried. Where ranks share the rows, the first explanation found is taken.
        """
        pair = self.pairs[index]
        with torch.random.fork_rng(), pair.isolated():
            set_generator_states(generators)
            pair.restore(self.engine.graph.unpack(vector))
            found = explain(pair, self.bound or pair.elbo(), pair.data if batch is None else batch, tries)
        return self.engine.ranks.first_not_none(found)

    def warn(self, training: TrainingState, non_finite: Sequence[int]) -> None:
        """Warn of restarts that have gone back, in a sentence for each that was located."""
        others = len(non_finite[LOOKED_AT:])
        for place, index in enumerate(non_finite[:LOOKED_AT], start=1):
            named = f"{self.word} {index + 1}, " if len(self.pairs) > 1 else ""
            more = f"; {others} more broke down in the same steps" if others and place == LOOKED_AT else ""
            warnings.warn(f"{named}{training.restarts[index].faults[-1]}{more}", DataWarning, stacklevel=5)
