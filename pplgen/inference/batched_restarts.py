"""Train restarts as one batched program over the traced graph, with the same rules as in plain Pyro."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pplgen.compiler.graph import tensors_of, trace
from pplgen.compiler.inductor import compiling_repays
from pplgen.compiler.traceable_pyro import NotTraceable
from pplgen.distributed.sharding import shard_rows
from pplgen.errors import DataWarning, InputError
from pplgen.inference.convergence import WINDOW
from pplgen.inference.engine import Engine, State
from pplgen.inference.nonfinite_steps import MAX_LOCATED, FaultLocalisation
from pplgen.inference.quasi_newton import maximise
from pplgen.inference.quasi_newton_phase import fixed_draws_elbo, may_use_fixed_draws
from pplgen.inference.run_identity import run_identity
from pplgen.inference.stacking import stacked_data, stacked_parameters
from pplgen.inference.training_options import TrainingOptions
from pplgen.inference.training_result import StopReason, Training, num_evaluations
from pplgen.inference.training_state import NonFinite, TrainingState
from pplgen.inference.warm_up import half_weights, last_step, warm_ups
from pplgen.storage.checkpoint import Checkpoint
from pplgen.story.isolation import generator_states, seeded, set_generator_states
from pplgen.story.pair import Pair

__all__ = ["Report", "train_together"]

EXPLORATION = 50
"""Steps of Adam before L-BFGS over fixed draws, where it applies."""
WORTH_A_WARNING = 10.0
"""Seconds of compiling in vain from which the user is warned."""
EXPECTED_STEPS = 1500
"""Expected number of steps of a fit, if more are allowed."""

Report = Callable[[int, float, float, str], None]
"""Called after each window with step, best smoothed ELBO, steps per second, and execution path."""


def train_together(
    pairs: list[Pair],
    options: TrainingOptions,
    *,
    seeds: list[int],
    report: Report | None = None,
    own_data: bool = False,
) -> tuple[list[Training | None], str]:
    """Train pairs that differ only in their parameters as one batched program; each is left at its last good state.

    The rules of ``pplgen.inference.svi.train`` apply to each separately: windows, plateaus, non-finite values.

    Parameters
    ----------
    pairs, seeds
        Restarts and their random seeds.
    options
        Training options. With a checkpoint, the fit resumes from it.
    report
        Called after each window.
    own_data
        Whether each pair has its own data, of equal shapes; minibatches are then not supported.

    Returns
    -------
    tuple
        One ``Training`` per pair, ``None`` for a pair without a finite ELBO; and the execution path.

    Raises
    ------
    NotTraceable
        If the traced graph does not reproduce the pair.
    InputError
        If no pair has a finite ELBO.
    KeyboardInterrupt
        If interrupted in the first window, on several ranks, or where pairs have their own data; otherwise the fit up
        to then is returned.
    """
    return _Run(pairs, options, seeds, report, own_data).train()


class _Run:
    """One run of batched restarts."""

    def __init__(
        self, pairs: list[Pair], options: TrainingOptions, seeds: list[int], report: Report | None, own_data: bool
    ) -> None:
        self.pairs, self.options, self.seeds, self.report = pairs, options, seeds, report
        self.ranks, optimiser = options.ranks, options.optimiser
        self.own_data = own_data
        self.first, self.seed, self.shard = pairs[0], seeds[0], shard_rows(pairs[0], options.ranks)
        weights = warm_ups(self.first, options)
        self.warm_up = last_step(weights)
        self.same_rows = options.batching.is_constant(self.first)
        explores = not self.warm_up and not optimiser.alone and may_use_fixed_draws(self.first, options.batching)
        self.exploration = EXPLORATION if explores else WINDOW * max(1, -(-self.warm_up // WINDOW))
        with self.first.isolated(), self.ranks.shared_errors():
            batches, scale = options.batching.of(self.first, seed=self.seed, shard=self.shard)
            with half_weights(weights):
                fixed = self.same_rows and not own_data and self.ranks.size == 1
                self.graph = trace(self.first, options.objective.of(self.first), next(batches), scale, fixed=fixed)
        vectors, buffers = stacked_parameters(pairs, self.graph)
        self.training = TrainingState.start(vectors, optimiser)
        data: Any = tensors_of(next(batches)) if self.same_rows else map(tensors_of, batches)
        if own_data:
            data = stacked_data(pairs)
        places = {id(buffer): index for index, buffer in enumerate(self.graph.buffers)}
        with self.ranks.shared_errors():
            self.engine = Engine(
                self.graph,
                self.training.state,
                data,
                optimiser=optimiser,
                buffers=buffers,
                own_data=own_data,
                warm_up={places[id(each.weight)]: each.steps for each in weights},
                ranks=self.ranks,
            )
        self.localisation = FaultLocalisation(
            pairs,
            self.engine,
            options.objective.elbo,
            None if self.same_rows else self._batches_from,
            "fit" if own_data else "restart",
        )
        self.checkpoint = self._checkpoint(vectors)

    def train(self) -> tuple[list[Training | None], str]:
        """Take windows of steps until all restarts have stopped, then evaluate their final ELBOs."""
        self._continue_batches()
        self.path = self._compiled() if self.options.compiler == "inductor" else "the traced graph"
        self.resumed_at, self.started = self.training.taken, time.perf_counter()
        stop = StopReason.STEPS
        self.generators = generator_states()
        try:
            while self.training.taken < self.options.steps and self.training.running:
                if self.training.taken == self.exploration:
                    self._maximise([restart.stop is None for restart in self.training.restarts])
                if self.training.running:
                    self._compile_if_it_repays()
                    self._take_window()
            if not any(restart.optimum for restart in self.training.restarts):
                self._maximise([restart.stop is StopReason.CONVERGED for restart in self.training.restarts])
        except KeyboardInterrupt:
            if not self.training.taken or self.ranks.size > 1 or self.own_data:
                raise
            stop = StopReason.INTERRUPTED
            set_generator_states(self.generators)  # state before the unfinished window
            self.training.iterates.discard_since_mark()
        self._save()
        self.training.stop(stop)
        results = self._results()
        if not any(results):
            raise InputError(self.localisation.failure_message(self.training))
        return results, self.path

    def _take_window(self) -> None:
        """Take a window of steps, and update every restart."""
        training, started = self.training, time.perf_counter()
        judge = training.taken >= self.warm_up
        self._reseed()
        self.generators = generator_states()
        explored = training.taken >= self.exploration
        ahead = (self.options.steps if explored else self.exploration) - training.taken
        num_steps = min(WINDOW, ahead, self.options.steps - training.taken)
        state, losses = self.engine.run(training.state, training.rates, num_steps, training.record_iterates)
        faults: dict[int, NonFinite] = {}
        if non_finite := training.non_finite(state, losses):
            state = State(*(value.clone() for value in state))
            faults = self.localisation.locate(training, len(losses), self.generators, non_finite[:MAX_LOCATED])
        training.advance(state, losses, judge=judge, faults=faults)
        self.generators = generator_states()
        if non_finite and self.ranks.first:
            self.localisation.warn(training, non_finite)
        elapsed, done = time.perf_counter() - self.started, training.taken - self.resumed_at
        self._report(done / elapsed, self.path)
        if self.checkpoint and self.ranks.first and self.checkpoint.due():
            self._save()
        self.seconds_per_step = (time.perf_counter() - started) / num_steps

    def _maximise(self, which: list[bool]) -> None:
        """Finish restarts by L-BFGS over fixed draws, where it applies and they have good steps but no optimum yet."""
        restarts = zip(which, self.training.restarts, strict=True)
        which = [each and bool(restart.history) and restart.optimum is None for each, restart in restarts]
        if not any(which):
            return
        vectors = self.training.good.vectors
        elbo = fixed_draws_elbo(self.first, self.engine, self.options, vectors, self.seed)
        if elbo is None:
            return
        self._report(0.0, "L-BFGS")
        vectors, optima = maximise(elbo, vectors)
        self.training.adopt(vectors, [each if wanted else None for wanted, each in zip(which, optima, strict=True)])

    def _report(self, rate: float, doing: str) -> None:
        if self.report:
            self.report(self.training.taken, self.training.best_mean, rate, doing)

    def _compile_if_it_repays(self) -> None:
        """After the first window, compile the step if the remaining ones take longer than that, on the first rank."""
        if self.options.compiler != "auto" or not 0 < self.training.taken - self.resumed_at <= WINDOW:
            return
        remaining = self.seconds_per_step * (min(self.options.steps, EXPECTED_STEPS) - self.training.taken)
        if self.ranks.all_gather(compiling_repays(remaining, len(self.graph.module.graph.nodes)))[0]:
            self._report(1 / self.seconds_per_step, "compiling")
            self.path = self._compiled()

    def _compiled(self) -> str:
        """Compile the step if it reproduces the graph on all ranks; return the new execution path."""
        path, started = "the compiled graph", time.perf_counter()
        with seeded(self.seed):  # restores the generators
            try:
                with self.ranks.shared_errors():
                    self.engine.compile(self.training.rates)
                if not self.ranks.all_equal(self.engine.block_size):
                    raise NotTraceable("ranks would take different numbers of steps per call")
            except NotTraceable as reason:
                self.engine.discard_compiled()
                path = f"the traced graph: {reason}"
                if (seconds := time.perf_counter() - started) > WORTH_A_WARNING and self.ranks.first:
                    warnings.warn(f"compiling took {seconds:.0f} s in vain: {reason}", DataWarning, stacklevel=2)
        self._continue_batches()
        return path

    def _batches_from(self, taken: int) -> Iterator[tuple[Any, ...]]:
        """Return an iterator over the arguments of steps after step ``taken``."""
        with self.first.isolated():
            return self.options.batching.of(self.first, seed=self.seed, skip=taken, shard=self.shard)[0]

    def _continue_batches(self) -> None:
        """Reset the iterator over batches to the next step."""
        if not self.same_rows:
            self.engine.data = map(tensors_of, self._batches_from(self.training.taken))

    def _reseed(self) -> None:
        """With several ranks, seed their generators for the next step."""
        self.ranks.reseed(self.seed, self.training.taken, per_rank=bool(self.first.structure.row_latent))

    def _checkpoint(self, vectors: Tensor) -> Checkpoint | None:
        """Open the fit's checkpoint, and restore the training state from it if it exists."""
        if self.options.checkpoint is None:
            return None
        identity = run_identity(self.first, self.graph, self.options, self.seeds, vectors)
        checkpoint = self.ranks.on_first_rank(partial(Checkpoint, self.options.checkpoint, identity, vectors.device))
        if loaded := self.ranks.on_first_rank(checkpoint.load):
            self.training = TrainingState.from_tensors(*loaded, vectors.device)
        return checkpoint

    def _save(self) -> None:
        """Write a checkpoint, if enabled."""
        if self.checkpoint and self.ranks.first:
            self.checkpoint.save(*self.training.to_tensors())

    def _final_elbos(self, vectors: Tensor) -> Any:
        """Evaluate the ELBOs of all restarts repeatedly, in nats, shape ``(num_evaluations, R)``."""
        self._continue_batches()
        with seeded(self.seed + 1):  # independent of the number of steps of other restarts
            self._reseed()
            losses = self.engine.evaluate(vectors, num_evaluations(self.training.taken))
        return -losses.cpu().double().numpy()

    def _results(self) -> list[Training | None]:
        """Restore every pair's final parameters, evaluate its final ELBO, and return the results.

        They are those of the last good state, or their average over the last learning rate if that is better.
        """
        good, finals = self.training.good.vectors, self._final_elbos(self.training.good.vectors)
        averaged = self.training.averaged
        if averaged.any():
            averages = torch.where(averaged[:, None], self.training.good.average, good)
            of_averages = self._final_elbos(averages)
            better = averaged.cpu().numpy() & (of_averages.mean(0) > finals.mean(0))
            finals = np.where(better, of_averages, finals)
            good = torch.where(torch.as_tensor(better, device=good.device)[:, None], averages, good)
        results: list[Training | None] = []
        for index, (pair, seed, restart) in enumerate(zip(self.pairs, self.seeds, self.training.restarts, strict=True)):
            values = finals[:, index]
            if not (restart.history or restart.optimum) or restart.stop is None or not np.isfinite(values).all():
                results.append(None)
                continue
            with pair.isolated():
                pair.restore(self.graph.unpack(good[index]))
            outcome = (values, restart.stop, restart.iterates, good[index], restart.faults, restart.optimum)
            results.append(Training.from_evaluations(seed, restart.history, *outcome, warm_up=self.warm_up))
        return results
