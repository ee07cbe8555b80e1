"""The loop: stochastic variational inference with progress, convergence, interrupts and a way back from NaN."""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
import pyro
import torch
from pyro.infer import ELBO
from pyro.optim.clipped_adam import ClippedAdam
from torch import Tensor

from pplgen.distributed.ranks import ALONE, Ranks
from pplgen.distributed.sharding import shard_of
from pplgen.errors import DataWarning, InputError
from pplgen.inference.convergence import WINDOW, PlateauWatch
from pplgen.inference.iterates import RETURNABLE, Iterates, flat
from pplgen.inference.minibatches import Augment, batching
from pplgen.inference.nonfinite import LOWERED, MAX_NON_FINITE, explain, non_finite_message
from pplgen.inference.svi_steps import Steps, quietly
from pplgen.story.isolation import unwarned
from pplgen.story.pair import Pair

__all__ = ["Adam", "Progress", "StopReason", "Training", "num_evaluations", "train"]

DECAY = 0.3
"""Factor on the learning rate at each plateau."""
PLATEAUS = 3
"""Plateaus, the last at DECAY^2 of the first learning rate, after which the fit has converged."""
FINAL_EVALUATIONS = (20, 100)
"""Evaluations of the bound that estimate the final ELBO: half as many as there were steps, but within these limits."""
BEFORE_ANY = (
    "the ELBO or its gradient is not finite by step {step}, before any good state: {fault}; check the scale of the "
    "data and the priors, or lower learning_rate"
)
AT_THE_END = "the ELBO at the final parameters is not finite: {fault}; check the priors, or lower learning_rate"


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
        kept = final if len(final) <= RETURNABLE else final[:0]
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


@dataclass(frozen=True)
class Adam:
    """The optimiser (Kingma and Ba 2015), with the two additions of Pyro's ``ClippedAdam``."""

    learning_rate: float
    """Before the first plateau."""
    clip: float | None = None
    """Largest absolute value of an entry of the gradient; ``None`` for any."""
    decay: float = 1.0
    """Factor of the learning rate at each step."""
    patience: int = WINDOW
    """Steps over which the ELBO is averaged before its trend is judged."""

    def for_pyro(self) -> Any:
        """Return Pyro's optimiser; each ``step()`` of it is a cut at a plateau."""
        arguments: dict[str, Any] = {"lr": self.learning_rate}
        optimiser: Any = torch.optim.Adam
        if self.clip is not None or self.decay != 1.0:
            optimiser = ClippedAdam
            arguments |= {"clip_norm": math.inf if self.clip is None else self.clip, "lrd": self.decay}
        return pyro.optim.ExponentialLR({"optimizer": optimiser, "optim_args": arguments, "gamma": DECAY})


def train(
    pair: Pair,
    *,
    seed: int,
    steps: int,
    optimiser: Adam,
    batch_size: int | None = None,
    elbo: ELBO | None = None,
    warm_up: int = 0,
    augment: Augment | None = None,
    ranks: Ranks = ALONE,
    report: Callable[[int, float, float], None] | None = None,
) -> Training:
    """Maximise the pair's ELBO with Adam, inside ``pair.isolated``; the pair is left at its last good parameters.

    The first step runs with Pyro's and torch's validation as it was found, the rest without. The learning rate is cut
    at each plateau: when the means of at least four windows of a hundred steps have no slope above two standard errors.
    Where the ELBO or its gradient is not finite, a ``DataWarning`` says at which site and for which rows, and the run
    goes on from its last good state at a tenth of the learning rate, until it has met that ``MAX_NON_FINITE`` times.

    Parameters
    ----------
    pair
        Trained in place.
    seed
        Kept in the result; the caller has seeded the generators.
    steps
        At most so many.
    optimiser
        Its learning rate is cut at each plateau.
    batch_size
        Rows per step, drawn without replacement in each pass over the data; ``None`` for all.
    elbo
        The bound; ``pair.elbo()`` where ``None``.
    warm_up
        Steps over which the weight of the codes' terms rises to one, a pair's ``kl_weight``; nothing is judged before.
    augment
        Applied to the rows of each step.
    ranks
        Processes that share the rows; all of them return the same.
    report
        Called with step, smoothed ELBO and steps per second.

    Raises
    ------
    InputError
        Where no window of steps has had a finite ELBO by then, or the final parameters have none.
    KeyboardInterrupt
        Where it comes before the first step has ended; later, it ends the fit, and that of several ranks at once.
    """
    schedule, bound, shard = optimiser.for_pyro(), elbo or pair.elbo(), shard_of(pair, ranks)
    scale = batching(pair, batch_size, seed=seed, shard=shard)[1]

    def batches_from(taken: int) -> Iterator[tuple[Any, ...]]:
        return batching(pair, batch_size, seed=seed, skip=taken, augment=augment, shard=shard)[0]

    run = Steps(pair, schedule, bound, batches_from, warm_up, seed=seed, ranks=ranks)
    history: list[float] = []
    faults: list[str] = []
    watch = PlateauWatch(optimiser.patience)
    iterates = Iterates()
    stop = StopReason.STEPS
    num_kept, started = 0, time.perf_counter()

    def go_back() -> None:
        """Return to the last good state at a lower learning rate, or for good at the last one that is allowed."""
        nonlocal stop
        del history[num_kept:]
        step, what = run.explain()
        run.lower(LOWERED)
        run.go_on()
        iterates.go_back(flat(pair.snapshot()))
        faults.append(non_finite_message(what, step, len(faults) + 1, run.kept, run.rate))
        if ranks.first:
            warnings.warn(faults[-1], DataWarning, stacklevel=3)
        if len(faults) == MAX_NON_FINITE:
            stop = StopReason.NOT_FINITE

    with scale or contextlib.nullcontext(), unwarned():
        try:
            while run.taken < steps and stop is StopReason.STEPS:
                value = run.take()
                if not math.isfinite(value):
                    go_back()
                    continue
                history.append(value)
                if iterates.due(run.taken):
                    iterates.notice(run.taken, flat(pair.snapshot()))
                if report and (run.taken % 20 == 0 or run.taken in (1, steps)):
                    report(run.taken, float(np.mean(history[-WINDOW:])), run.taken / (time.perf_counter() - started))
                if len(history) % WINDOW and run.taken < steps:
                    continue
                if not run.is_finite:
                    go_back()
                    continue
                whole = len(history) % WINDOW == 0
                if whole and run.taken - WINDOW >= warm_up and watch.plateau(history[-WINDOW:]):
                    if watch.plateaus == PLATEAUS:
                        stop = StopReason.CONVERGED
                    else:
                        schedule.step()
                run.keep()
                iterates.mark()
                num_kept = len(history)
        except KeyboardInterrupt:
            if not history or ranks.size > 1:
                raise
            stop = StopReason.INTERRUPTED
            if not run.is_finite:
                go_back()
        finally:
            if warm_up and pair.kl_weight is not None:
                pair.kl_weight.fill_(1.0)
        if not history:
            raise InputError(BEFORE_ANY.format(step=run.taken, fault=faults[-1]))
        values = _final_values(run)
        if not np.isfinite(values).all():
            found = ranks.first_found(explain(pair, bound, next(run.batches), max(FINAL_EVALUATIONS)))
            what = found or ", ".join(faults[-1:]) or "it is infinite or NaN at times"
            raise InputError(AT_THE_END.format(fault=what))
    return Training.ended(seed, history, values, stop, iterates.stacked(), flat(pair.snapshot()), faults)


def num_evaluations(steps: int) -> int:
    """Return how many evaluations of the bound follow so many steps."""
    least, most = FINAL_EVALUATIONS
    return min(most, max(least, steps // 2))


def _final_values(run: Steps) -> list[float]:
    """Evaluate the bound many times; an interrupt makes it fewer, two at least."""
    values: list[float] = []
    while len(values) < num_evaluations(run.taken):
        try:
            values.append(-quietly(run.svi.evaluate_loss, next(run.batches)))
        except KeyboardInterrupt:
            if run.ranks.size > 1:
                raise
            if len(values) >= 2:
                break
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            values.append(math.nan)
    return values
