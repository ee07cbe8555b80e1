"""Steps of Pyro's SVI that can return to the last good state and locate a non-finite step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro.infer import ELBO, SVI
from torch import Tensor

from pplgen.distributed.ranks import SINGLE_PROCESS, Ranks
from pplgen.distributed.sharding import AveragedELBO
from pplgen.errors import InputError
from pplgen.inference.convergence import WINDOW
from pplgen.inference.nonfinite_sites import explain
from pplgen.inference.svi_optimiser import States, SVIOptimiser
from pplgen.inference.warm_up import WarmUp, set_weights
from pplgen.story.isolation import generator_states, set_generator_states
from pplgen.story.pair import Pair

__all__ = ["SVISteps", "without_validation"]


@dataclass(frozen=True)
class _State:
    """State of a run after a step."""

    taken: int
    parameters: dict[str, Tensor]
    optimisers: States
    average: dict[str, Tensor]
    since: int


class SVISteps:
    """Steps of Pyro's SVI that can return to the last good state; use it inside ``pair.isolated``.

    Only the first step runs with Pyro's and torch's validation, if enabled.

    Parameters
    ----------
    pair
        Pair to train in place.
    optimiser
        Optimiser of all parameters.
    bound
        Objective.
    batches_from
        Returns an iterator over the arguments of steps after a given step.
    weights
        Weights that rise to one.
    seed
        Random seed, used with several ranks.
    ranks
        Processes that share the rows and take the same steps.
    """

    def __init__(
        self,
        pair: Pair,
        optimiser: SVIOptimiser,
        bound: ELBO,
        batches_from: Callable[[int], Iterator[tuple[Any, ...]]],
        weights: Sequence[WarmUp] = (),
        *,
        seed: int = 0,
        ranks: Ranks = SINGLE_PROCESS,
    ) -> None:
        self.pair, self.bound, self.weights, self.seed, self.ranks = pair, bound, weights, seed, ranks
        objective: Any = bound if ranks.size == 1 else AveragedELBO(bound, ranks)
        self.optimiser = optimiser
        self.svi = SVI(pair.model, pair.guide, optimiser.optim, objective.loss, objective.loss_and_grads)
        self._batches_from = batches_from
        self.batches = batches_from(0)
        self.taken = 0
        self.average: dict[str, Tensor] = {}
        """Mean of the parameters since the optimiser's moments were zero."""
        self.since = 0
        """Steps since then."""
        self.record_good()

    @property
    def is_finite(self) -> bool:
        """Whether every parameter is finite: a finite loss may have a non-finite gradient."""
        return all(bool(value.isfinite().all()) for value in self.pair.snapshot().values())

    @property
    def good_step(self) -> int:
        """Step of the last good state."""
        return self._good.taken

    def take(self) -> float:
        """Take a step and return its ELBO; NaN if a matrix factorisation failed."""
        self.taken += 1
        batch = self._next(self.batches, self.taken)
        value = self._value(batch) if self.taken > 1 else self._first(batch)
        self.optimiser.end(self.taken, -value)
        return value

    def _first(self, batch: tuple[Any, ...]) -> float:
        """Take the first step, with validation."""
        try:
            return -float(self.svi.step(*batch))
        except InputError:
            raise
        except (torch.linalg.LinAlgError, ValueError):  # type: ignore[attr-defined]
            # other ranks may be waiting for this one's gradients, so it cannot repeat the step
            if self.ranks.size > 1 or self.explain()[1] is None:
                raise
            return math.nan

    def record_good(self) -> None:
        """Record the current state as the last good state."""
        average = {name: value.clone() for name, value in self.average.items()}
        self._good = _State(self.taken, self.pair.snapshot(), self.optimiser.states(), average, self.since)
        self._replay_from = self.taken, generator_states()

    def reset_moments(self) -> None:
        """Let the optimiser start again from the present parameters."""
        self.optimiser.reset_moments()
        self.average, self.since = {}, 0

    @torch.no_grad()
    def average_parameters(self) -> None:
        """Add the present parameters to their average."""
        self.since += 1
        for name, value in pyro.get_param_store().named_parameters():
            if name in self.average:
                self.average[name].lerp_(value, 1 / self.since)
            else:
                self.average[name] = value.detach().clone()

    def scale_rate(self, factor: float) -> None:
        """Multiply the learning rates, also of the last good state."""
        self.optimiser.scale(factor, self._good.optimisers)

    def resume(self) -> None:
        """Continue from the last good state, with the next batches and random numbers."""
        self.restore_good()
        self._replay_from = self.taken, generator_states()

    def restore_good(self) -> None:
        """Restore the parameters and moments of the last good state."""
        self.pair.restore(self._good.parameters)
        self.average, self.since = {n: value.clone() for n, value in self._good.average.items()}, self._good.since
        self.optimiser.restore(self._good.optimisers)

    def explain(self) -> tuple[int, str | None]:
        """Repeat the steps from the last good state to find the non-finite one, and restore the last good state.

        Returns
        -------
        tuple
            The non-finite step and its explanation; the last step and ``None`` if all are finite when repeated.
        """
        taken, generators = self._replay_from
        batches = self._batches_from(taken)
        try:
            with torch.random.fork_rng():
                self.restore_good()
                set_generator_states(generators)
                for step in range(taken + 1, self.taken + 1):
                    before, generators = self.pair.snapshot(), generator_states()
                    batch = self._next(batches, step)
                    if math.isfinite(self._value(batch)) and self.is_finite:
                        continue
                    self.pair.restore(before)
                    set_generator_states(generators)
                    return step, self.ranks.first_not_none(explain(self.pair, self.bound, batch))
        finally:
            self.restore_good()
        return self.taken, None

    def _next(self, batches: Iterator[tuple[Any, ...]], step: int) -> tuple[Any, ...]:
        """Return the arguments of a step after setting its rates, its weights and the ranks' random state."""
        self.optimiser.begin(step)
        if step % WINDOW == 1:
            self.ranks.reseed(self.seed, step - 1, per_rank=bool(self.pair.structure.row_latent))
        set_weights(self.weights, step)
        return next(batches)

    def _value(self, batch: tuple[Any, ...]) -> float:
        try:
            return -without_validation(self.svi.step, batch)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            return math.nan


def without_validation(call: Callable[..., float], batch: tuple[Any, ...]) -> float:
    """Call a loss without Pyro's validation, which takes as long as the computation."""
    with pyro.validation_enabled(False):
        return float(call(*batch))
