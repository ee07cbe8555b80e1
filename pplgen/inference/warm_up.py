"""Weights that rise from zero to one over the first steps of a fit: of KL terms, and a story's own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from pplgen.inference.training_options import TrainingOptions
from pplgen.story.pair import Pair

__all__ = ["WarmUp", "half_weights", "last_step", "set_weights", "warm_ups"]

STORY_STEPS, LARGEST_PART = 1000, 3
"""Steps over which a story's weight rises; at most one in this many of all steps."""


@dataclass(frozen=True)
class WarmUp:
    """A weight, and the number of steps over which it rises."""

    weight: Tensor
    steps: int

    def at(self, step: int) -> float:
        """Return the weight at a step, counted from 1."""
        return min(1.0, step / self.steps)


def warm_ups(pair: Pair, options: TrainingOptions) -> tuple[WarmUp, ...]:
    """Return the weights of a pair that rise during a fit."""
    found = []
    if options.objective.warm_up and pair.kl_weight is not None:
        found.append(WarmUp(pair.kl_weight, options.objective.warm_up))
    weight = None if pair.story is None else pair.story.warm_up_weight
    steps = min(STORY_STEPS, options.steps // LARGEST_PART)
    if weight is not None and steps:
        found.append(WarmUp(weight, steps))
    return tuple(found)


def last_step(weights: Sequence[WarmUp]) -> int:
    """Return the number of steps after which all weights are one."""
    return max((each.steps for each in weights), default=0)


def set_weights(weights: Sequence[WarmUp], step: int | None = None) -> None:
    """Set weights to their values at a step, counted from 1, or to one."""
    for each in weights:
        each.weight.fill_(1.0 if step is None else each.at(step))


@contextlib.contextmanager
def half_weights(weights: Sequence[WarmUp]) -> Iterator[None]:
    """Set weights to .5, so that tracing and validating the graph depend on them."""
    for each in weights:
        each.weight.fill_(0.5)
    try:
        yield
    finally:
        set_weights(weights)
