"""How a training went: its history, its end, and the progress of one that still runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pplgen.inference.iterates import MAX_FINAL_SIZE

__all__ = [
    "FINAL_EVALUATIONS",
    "Progress",
    "ProgressCallback",
    "StopReason",
    "Training",
    "no_good_state",
    "non_finite_at_end",
    "num_evaluations",
]

FINAL_EVALUATIONS = (20, 100)
"""Evaluations of the objective that estimate the final ELBO: half as many as there were steps, within these limits."""


class StopReason(Enum):
    """Why a fit stopped; the value is the sentence that the user reads."""

    CONVERGED = "the smoothed ELBO has stopped improving"
    STEPS = "the steps ran out before the ELBO stopped improving; give more steps to be sure"
    INTERRUPTED = "interrupted from the keyboard; this is the fit so far"
    NOT_FINITE = (
        "the ELBO or its gradient was infinite or NaN at ever lower learning rates; this is the last good state, so "
        "look at the model there"
    )


@dataclass(frozen=True)
class Progress:
    """Where a fit stands; given to the ``progress`` callback every few steps."""

    restart: int
    restarts: int
    step: int
    steps: int
    elbo: float
    """Mean over the last hundred steps, in nats for all rows; the best of restarts that run together."""
    steps_per_second: float
    rows_per_second: float
    """Rows that each restart has gone through."""
    doing: str
    """What runs: plain Pyro, the traced graph, the compiled graph; or that it is being compiled."""


@dataclass(frozen=True)
class Training:
    """One restart: its history and how it ended. ELBOs are in nats, for all rows."""

    seed: int
    history: np.ndarray = field(repr=False)
    """Noisy ELBO of each step, shape ``(num_steps,)``."""
    elbo: float
    """Mean of up to a hundred evaluations at the final parameters, on random minibatches where the fit used them."""
    elbo_error: float
    """Monte Carlo standard error of ``elbo``."""
    stop: StopReason
    iterates: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False)
    """Followed parameters along the run, evenly spaced, shape ``(num_kept, num_followed)``; empty where unknown."""
    final: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False)
    """Flat parameters that the run ended at, shape ``(P,)``; empty where there are too many to keep."""
    faults: tuple[str, ...] = ()
    """What was infinite or NaN on the way, a sentence each time that the run went back to its last good state."""

    @classmethod
    def ended(
        cls,
        seed: int,
        history: list[float],
        final_values: Any,
        stop: StopReason,
        iterates: Tensor,
        final: Tensor,
        faults: Sequence[str] = (),
    ) -> Training:
        """Summarise a run by evaluations of the bound at its final parameters."""
        error = float(np.std(final_values, ddof=1)) / math.sqrt(len(final_values))
        kept = final if len(final) <= MAX_FINAL_SIZE else final[:0]
        ends = (iterates.cpu().float().numpy(), kept.detach().cpu().double().numpy())
        return cls(seed, np.array(history), float(np.mean(final_values)), error, stop, *ends, tuple(faults))

    @property
    def broke_down(self) -> bool:
        """Whether it ended where the mathematics did; what it came to before may be good by accident."""
        return self.stop is StopReason.NOT_FINITE or not math.isfinite(self.elbo)

    @property
    def rank(self) -> tuple[bool, float]:
        """Order of runs, the best being the largest: by ELBO, those that broke down below all others."""
        return not self.broke_down, self.elbo

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Return what a saved run keeps of its best restart beside the parameters."""
        return {name: torch.from_numpy(getattr(self, name)) for name in ("history", "iterates")}

    @property
    def facts(self) -> dict[str, Any]:
        """Return what a saved run tells of a restart."""
        told = {"seed": self.seed, "elbo": self.elbo, "elbo_error": self.elbo_error, "stop": self.stop.name}
        return {**told, "faults": list(self.faults)}


ProgressCallback = Callable[[Progress], None]
"""What ``fit(progress=...)`` takes."""


def no_good_state(step: int, fault: str) -> str:
    """Return the message for a training whose first window already had non-finite values."""
    return (
        f"the ELBO or its gradient is not finite by step {step}, before any good state: {fault}; check the scale of "
        "the data and the priors, or lower learning_rate"
    )


def non_finite_at_end(fault: str | None, earlier: Sequence[str]) -> str:
    """Return the message for a training whose final bound is not finite; ``earlier`` are the faults on the way."""
    fault = fault or ", ".join(earlier[-1:]) or "it is infinite or NaN at times"
    return f"the ELBO at the final parameters is not finite: {fault}; check the priors, or lower learning_rate"


def num_evaluations(steps: int) -> int:
    """Return how many evaluations of the bound follow so many steps."""
    least, most = FINAL_EVALUATIONS
    return min(most, max(least, steps // 2))
