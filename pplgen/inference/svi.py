"""Stochastic variational inference in plain Pyro: convergence, interrupts, recovery from non-finite values."""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from pplgen.distributed.sharding import shard_rows
from pplgen.errors import DataWarning, InputError
from pplgen.inference.convergence import DECAY, PLATEAUS, WINDOW, PlateauWatch, relative_drift
from pplgen.inference.iterates import Iterates, flatten
from pplgen.inference.nonfinite_policy import MAX_NON_FINITE, RATE_FACTOR, non_finite_message
from pplgen.inference.nonfinite_sites import explain
from pplgen.inference.svi_optimiser import SVIOptimiser
from pplgen.inference.svi_steps import SVISteps, without_validation
from pplgen.inference.training_options import TrainingOptions
from pplgen.inference.training_result import (
    FINAL_EVALUATIONS,
    StopReason,
    Training,
    no_good_state,
    non_finite_at_end,
    num_evaluations,
)
from pplgen.inference.warm_up import last_step, set_weights, warm_ups
from pplgen.story.isolation import ignore_nonfinite_warnings
from pplgen.story.pair import Pair

__all__ = ["Report", "train"]

Report = Callable[[int, float, float], None]
"""Called with step, smoothed ELBO and steps per second."""
REPORT_INTERVAL = 20
"""Number of steps between two reports."""


def train(pair: Pair, options: TrainingOptions, *, seed: int, report: Report | None = None) -> Training:
    """Maximise the pair's ELBO with Adam, inside ``pair.isolated``; the pair is left at its last good parameters.

    Only the first step runs with Pyro's and torch's validation, if enabled. The learning rate is lowered at each
    plateau: when the means of at least four windows of a hundred steps have no slope above two standard errors. If the
    ELBO or its gradient is not finite, a ``DataWarning`` names the site and the rows, and the run continues from its
    last good state at a tenth of the learning rate; at the ``MAX_NON_FINITE``-th time it stops there.

    Parameters
    ----------
    pair
        Pair to train in place.
    options
        Training options.
    seed
        Recorded in the result; the caller seeds the generators.
    report
        Called every few steps.

    Raises
    ------
    InputError
        If the first window has non-finite values, or the final ELBO is not finite.
    KeyboardInterrupt
        If interrupted in the first step, or on several ranks; otherwise the fit up to then is returned.
    """
    return _Run(pair, options, seed, report).train()


class _Run:
    """One run in plain Pyro."""

    def __init__(self, pair: Pair, options: TrainingOptions, seed: int, report: Report | None) -> None:
        self.pair, self.options, self.seed, self.report, self.ranks = pair, options, seed, report, options.ranks
        self.bound = options.objective.of(pair)
        self.shard = shard_rows(pair, self.ranks)
        self.scale = options.batching.of(pair, seed=seed, shard=self.shard)[1]
        self.warm_ups = warm_ups(pair, options)
        self.optimiser = SVIOptimiser(options.optimiser, options.batching.steps_per_epoch(pair))
        self.steps = SVISteps(
            pair, self.optimiser, self.bound, self._batches_from, self.warm_ups, seed=seed, ranks=self.ranks
        )
        self.watch, self.iterates = PlateauWatch(options.optimiser.patience), Iterates()
        self.history: list[float] = []
        self.faults: list[str] = []
        self.stop = StopReason.STEPS
        self.num_good = 0
        """Length of the history at the last good state."""
        self.started = time.perf_counter()

    def train(self) -> Training:
        """Take all steps, then evaluate the final ELBO."""
        with self.scale or contextlib.nullcontext(), ignore_nonfinite_warnings():
            try:
                self._take_steps()
            except KeyboardInterrupt:
                if not self.history or self.ranks.size > 1:
                    raise
                self.stop = StopReason.INTERRUPTED
                if not self.steps.is_finite:
                    self._step_back()
            finally:
                set_weights(self.warm_ups)
            if not self.history:
                raise InputError(no_good_state(self.steps.taken, self.faults[-1]))
            return self._result()

    def _take_steps(self) -> None:
        """Take steps until the maximum number, convergence, or too many non-finite values."""
        while self.steps.taken < self.options.steps and self.stop is StopReason.STEPS:
            value = self.steps.take()
            if not math.isfinite(value):
                self._step_back()
                continue
            self.history.append(value)
            self.steps.average_parameters()
            taken = self.steps.taken
            if self.iterates.due(taken):
                self.iterates.record(taken, flatten(self.pair.snapshot()))
            if self.report and (taken % REPORT_INTERVAL == 0 or taken in (1, self.options.steps)):
                mean = float(np.mean(self.history[-WINDOW:]))
                self.report(taken, mean, taken / (time.perf_counter() - self.started))
            if len(self.history) % WINDOW and taken < self.options.steps:
                continue
            if not self.steps.is_finite:
                self._step_back()
                continue
            self._end_window()

    def _end_window(self) -> None:
        """Check for a plateau at the end of a window, and record the state as good."""
        whole = len(self.history) % WINDOW == 0
        warmed_up = self.steps.taken - WINDOW >= last_step(self.warm_ups)
        if whole and warmed_up and self.watch.plateau(self.history[-WINDOW:]):
            self._end_stage()
        self.steps.record_good()
        self.iterates.mark()
        self.num_good = len(self.history)

    def _end_stage(self) -> None:
        """At a plateau, lower the learning rate and let the optimiser start again, or stop at the last plateau.

        The rates of the user's optimiser are not lowered: it stops at the first plateau.
        """
        vectors = flatten(self.pair.snapshot()), flatten(self.steps.average)
        if self.optimiser.is_own:
            self.stop = StopReason.CONVERGED
            return
        if self.watch.count(relative_drift(*vectors, self.optimiser.rate, self.steps.since)):
            if self.watch.plateaus == PLATEAUS:
                self.stop = StopReason.CONVERGED
                return
            self.steps.scale_rate(DECAY)
        self.steps.reset_moments()

    def _step_back(self) -> None:
        """Return to the last good state at a lower learning rate; after ``MAX_NON_FINITE`` faults, stop there."""
        del self.history[self.num_good :]
        step, fault = self.steps.explain()
        self.steps.scale_rate(RATE_FACTOR)
        self.steps.resume()
        self.iterates.overwrite_since_mark(flatten(self.pair.snapshot()))
        number = len(self.faults) + 1
        self.faults.append(non_finite_message(fault, step, number, self.steps.good_step, self.optimiser.rate))
        if self.ranks.first:
            warnings.warn(self.faults[-1], DataWarning, stacklevel=5)
        if number == MAX_NON_FINITE:
            self.stop = StopReason.NOT_FINITE

    def _result(self) -> Training:
        """Evaluate the ELBO at the final parameters, and return the result.

        They are those of the last step, or their average over the last learning rate if that is better.
        """
        values = self._final_values()
        last, average = self.pair.snapshot(), self.steps.average
        if self.stop is not StopReason.NOT_FINITE and self.steps.since >= WINDOW and average.keys() == last.keys():
            self.pair.restore(average)
            of_average = self._final_values()
            if np.mean(of_average) > np.mean(values):
                values = of_average
            else:
                self.pair.restore(last)
        if not np.isfinite(values).all():
            batch = next(self.steps.batches)
            fault = self.ranks.first_not_none(explain(self.pair, self.bound, batch, max(FINAL_EVALUATIONS)))
            raise InputError(non_finite_at_end(fault, self.faults))
        iterates, final = self.iterates.stacked(), flatten(self.pair.snapshot())
        return Training.from_evaluations(
            self.seed,
            self.history,
            values,
            self.stop,
            iterates,
            final,
            self.faults,
            warm_up=last_step(self.warm_ups),
        )

    def _final_values(self) -> list[float]:
        """Evaluate the ELBO repeatedly; an interrupt stops after at least two evaluations."""
        values: list[float] = []
        while len(values) < num_evaluations(self.steps.taken):
            try:
                values.append(-without_validation(self.steps.svi.evaluate_loss, next(self.steps.batches)))
            except KeyboardInterrupt:
                if self.ranks.size > 1:
                    raise
                if len(values) >= 2:
                    break
            except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
                values.append(math.nan)
        return values

    def _batches_from(self, taken: int) -> Iterator[tuple[Any, ...]]:
        """Return an iterator over the arguments of steps after step ``taken``."""
        return self.options.batching.of(self.pair, seed=self.seed, skip=taken, shard=self.shard)[0]
