"""The loop: stochastic variational inference with progress, convergence, interrupts and a way back from NaN."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
import pyro
import torch
from pyro.infer import ELBO, SVI
from pyro.optim.clipped_adam import ClippedAdam
from torch import Tensor

from pplgen.batches import Augment, batching
from pplgen.distributed import ALONE, Ranks
from pplgen.errors import InputError
from pplgen.iterates import RETURNABLE, Iterates, flat
from pplgen.pair import Pair
from pplgen.sharding import AveragedBound, shard_of

__all__ = ["PlateauWatch", "Progress", "StopReason", "Training", "train"]

WINDOW = 100
"""Steps over which the ELBO is averaged before it is judged."""
PATIENCE = 4
"""Windows at least before a trend is judged, by its slope over up to twice as many."""
DECAY = 0.3
"""Factor on the learning rate at each plateau."""
PLATEAUS = 3
"""Plateaus, the last at DECAY^2 of the first learning rate, after which the fit has converged."""
FINAL_EVALUATIONS = 100
"""Evaluations of the bound that estimate the final ELBO."""


class StopReason(Enum):
    """Why a fit stopped; the value is the sentence that the user reads."""

    CONVERGED = "the smoothed ELBO has stopped improving"
    STEPS = "the steps ran out before the ELBO stopped improving; give more steps to be sure"
    INTERRUPTED = "interrupted from the keyboard; this is the fit so far"
    NOT_FINITE = "the ELBO became infinite or NaN; this is the last good state, so try a lower learning rate"


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
    """Mean of a hundred evaluations at the final parameters, on random minibatches where the fit used them."""
    elbo_error: float
    """Monte Carlo standard error of ``elbo``."""
    stop: StopReason
    iterates: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False)
    """Followed parameters along the run, evenly spaced, shape ``(num_kept, num_followed)``; empty where unknown."""
    final: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False)
    """Flat parameters that the run ended at, shape ``(P,)``; empty where there are too many to keep."""

    @classmethod
    def ended(
        cls, seed: int, history: list[float], final_values: Any, stop: StopReason, iterates: Tensor, final: Tensor
    ) -> Training:
        """Summarise a run by evaluations of the bound at its final parameters."""
        error = float(np.std(final_values, ddof=1)) / math.sqrt(len(final_values))
        kept = final if len(final) <= RETURNABLE else final[:0]
        ends = (iterates.cpu().float().numpy(), kept.detach().cpu().double().numpy())
        return cls(seed, np.array(history), float(np.mean(final_values)), error, stop, *ends)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Return what a saved run keeps of its best restart beside the parameters."""
        return {name: torch.from_numpy(getattr(self, name)) for name in ("history", "iterates")}

    @property
    def facts(self) -> dict[str, Any]:
        """Return what a saved run tells of a restart."""
        return {"seed": self.seed, "elbo": self.elbo, "elbo_error": self.elbo_error, "stop": self.stop.name}


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
        Where the very first window of steps has no finite ELBO, or the final parameters have none.
    KeyboardInterrupt
        Where it comes before the first step has ended; later, it ends the fit, and that of several ranks at once.
    """
    schedule = optimiser.for_pyro()
    bound = elbo or pair.elbo()
    own: Any = bound if ranks.size == 1 else AveragedBound(bound, ranks)
    svi = SVI(pair.model, pair.guide, schedule, own.loss, own.loss_and_grads)
    batches, scale = batching(pair, batch_size, seed=seed, augment=augment, shard=shard_of(pair, ranks))
    history: list[float] = []
    watch = PlateauWatch(optimiser.patience)
    iterates = Iterates()
    good: dict[str, Tensor] | None = None
    stop = StopReason.STEPS
    started = time.perf_counter()
    with scale or contextlib.nullcontext():
        try:
            for step in range(1, steps + 1):
                if warm_up and pair.kl_weight is not None:
                    pair.kl_weight.fill_(min(1.0, step / warm_up))
                if step % WINDOW == 1:
                    ranks.reseed(seed, step - 1, apart=bool(pair.structure.row_latent))
                value = _step(svi, next(batches), validate=step == 1)
                if not math.isfinite(value):
                    stop = StopReason.NOT_FINITE
                    break
                history.append(value)
                if iterates.due(step):
                    iterates.notice(step, flat(pair.snapshot()))
                if report and (step % 20 == 0 or step in (1, steps)):
                    report(step, float(np.mean(history[-WINDOW:])), step / (time.perf_counter() - started))
                if step % WINDOW == 0:
                    if not _is_finite(current := pair.snapshot()):
                        stop = StopReason.NOT_FINITE
                        break
                    good = current
                    if step - WINDOW >= warm_up and watch.plateau(history[-WINDOW:]):
                        if watch.plateaus == PLATEAUS:
                            stop = StopReason.CONVERGED
                            break
                        schedule.step()
        except KeyboardInterrupt:
            if not history or ranks.size > 1:
                raise
            stop = StopReason.INTERRUPTED
        finally:
            if warm_up and pair.kl_weight is not None:
                pair.kl_weight.fill_(1.0)
        if stop is StopReason.NOT_FINITE or not _is_finite(pair.snapshot()):
            stop = StopReason.NOT_FINITE
            if good is None:
                raise InputError(
                    f"the ELBO or its gradient is not finite by step {len(history) + 1}, before any good state; "
                    "check the scale of the data and the priors, or lower learning_rate"
                )
            pair.restore(good)
        values = _final_values(svi, batches)
    if not np.isfinite(values).all():
        raise InputError("the ELBO at the final parameters is not finite; check the priors, or lower learning_rate")
    return Training.ended(seed, history, values, stop, iterates.stacked(), flat(pair.snapshot()))


class PlateauWatch:
    """Counts plateaus of a noisy ELBO, window by window."""

    def __init__(
        self, patience: int = WINDOW, means: Sequence[float] = (), plateaus: int = 0, pending: Sequence[float] = ()
    ) -> None:
        self.patience, self.means, self.plateaus, self.pending = patience, list(means), plateaus, list(pending)

    def plateau(self, window: list[float]) -> bool:
        """Take a window's ELBOs; return whether a plateau is reached, and start to look for the next one."""
        window = self.pending + window
        self.pending = window if len(window) < self.patience else []
        if self.pending:
            return False
        self.means.append(float(np.mean(window)))
        if len(self.means) < PATIENCE:
            return False
        # float32 rounding of a sum is no improvement either
        error = max(float(np.std(window, ddof=1)) / math.sqrt(len(window)), 5e-7 * abs(self.means[-1]))
        recent = np.array(self.means[-2 * PATIENCE :])
        time = np.arange(len(recent)) - (len(recent) - 1) / 2
        slope, slope_error = time @ recent / (time @ time), error / math.sqrt(time @ time)
        if slope > 2 * slope_error:
            return False
        self.means.clear()
        self.plateaus += 1
        return True


def _step(svi: SVI, batch: tuple[Any, ...], *, validate: bool) -> float:
    """Take one step and return its ELBO; NaN where a factorisation broke down after the first step."""
    if validate:
        return -svi.step(*batch)
    try:
        return -_quietly(svi.step, batch)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        return math.nan


def _is_finite(values: dict[str, Tensor]) -> bool:
    """Whether every parameter is finite: a finite loss may have a gradient that is not."""
    return all(bool(value.isfinite().all()) for value in values.values())


def _final_values(svi: SVI, batches: Iterator[tuple[Any, ...]]) -> list[float]:
    """Evaluate the bound many times; an interrupt makes it fewer, two at least."""
    values: list[float] = []
    while len(values) < FINAL_EVALUATIONS:
        try:
            values.append(-_quietly(svi.evaluate_loss, next(batches)))
        except KeyboardInterrupt:
            if len(values) >= 2:
                break
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            values.append(math.nan)
    return values


def _quietly(call: Callable[..., float], batch: tuple[Any, ...]) -> float:
    """Call without validation, which costs as much as the mathematics."""
    with pyro.validation_enabled(False):
        return float(call(*batch))
