"""Locate the first non-finite step of each restart by repeating the steps of a window."""

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
from pplgen.inference.nonfinite_sites import TRIES, explain
from pplgen.inference.training_result import FINAL_EVALUATIONS, no_good_state, non_finite_at_end
from pplgen.inference.training_state import NonFinite, TrainingState
from pplgen.story.isolation import generator_states, set_generator_states
from pplgen.story.pair import Pair

__all__ = ["MAX_LOCATED", "FaultLocalisation"]

MAX_LOCATED = 3
"""Maximum number of restarts whose non-finite step is located per window."""


class FaultLocalisation:
    """Repeats steps of an engine to locate non-finite values.

    Parameters
    ----------
    pairs
        One pair per restart; their parameters are overwritten.
    engine
        Engine that takes the steps.
    bound
        Objective; ``None`` for the default of each pair.
    batches_from
        Returns an iterator over the arguments of steps after a given step; ``None`` if all steps use those of the pair.
    noun
        Noun for a restart in messages.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        engine: Engine,
        bound: ELBO | None,
        batches_from: Callable[[int], Iterator[tuple[Any, ...]]] | None,
        noun: str,
    ) -> None:
        self.pairs, self.engine, self.bound, self.noun = pairs, engine, bound, noun
        self._batches_from = batches_from

    def locate(
        self, training: TrainingState, num_steps: int, generators: list[Tensor], which: Sequence[int]
    ) -> dict[int, NonFinite]:
        """Repeat a window of steps from the last good state; return each restart's first non-finite step and its cause.

        ``generators`` are the states of the random generators at the start of the window; current states are restored.
        """
        located: dict[int, NonFinite] = {}
        with torch.random.fork_rng(), self._restore_batches():
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
                finite = (state.vectors.isfinite().all(dim=1) & losses[0].isfinite()).tolist()
                for index in which:
                    if index not in located and not finite[index]:
                        located[index] = step, self._explain(index, before.vectors[index], generators, batch)
                if len(located) == len(which):
                    break
        return located

    @contextlib.contextmanager
    def _restore_batches(self) -> Iterator[None]:
        """Restore the engine's batches on exit."""
        data = self.engine.data
        try:
            yield
        finally:
            self.engine.data = data

    def failure_message(self, training: TrainingState) -> str:
        """Return the message about the first restart when no restart has a finite ELBO."""
        restart = training.restarts[0]
        if not restart.history:
            return no_good_state(training.taken, restart.faults[-1])
        fault = self._explain(0, training.good.vectors[0], generator_states(), tries=max(FINAL_EVALUATIONS))
        return non_finite_at_end(fault, restart.faults)

    def _explain(
        self,
        index: int,
        vector: Tensor,
        generators: list[Tensor],
        batch: tuple[Any, ...] | None = None,
        tries: int = TRIES,
    ) -> str | None:
        """Describe the non-finite values at parameters of a restart; generator states are restored.

        Batched restarts share one random stream, so that a single restart does not reproduce its draws: up to ``tries``
        evaluations are made. If ranks share the rows, the first explanation of any rank is returned.
        """
        pair = self.pairs[index]
        with torch.random.fork_rng(), pair.isolated():
            set_generator_states(generators)
            pair.restore(self.engine.graph.unpack(vector))
            fault = explain(pair, self.bound or pair.elbo(), pair.data if batch is None else batch, tries)
        return self.engine.ranks.first_not_none(fault)

    def warn(self, training: TrainingState, non_finite: Sequence[int]) -> None:
        """Warn about restarts with non-finite values, one message per located restart."""
        others = len(non_finite[MAX_LOCATED:])
        for place, index in enumerate(non_finite[:MAX_LOCATED], start=1):
            prefix = f"{self.noun} {index + 1}, " if len(self.pairs) > 1 else ""
            more = f"; {others} more failed in the same steps" if others and place == MAX_LOCATED else ""
            warnings.warn(f"{prefix}{training.restarts[index].faults[-1]}{more}", DataWarning, stacklevel=5)
