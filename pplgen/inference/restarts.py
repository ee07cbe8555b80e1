"""Restarts as one batched program over the traced graph, by the rules of the loop in plain Pyro."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pplgen.compiler.graph import Graph, buffers_of, tensors_of, trace
from pplgen.compiler.tracing import NotTraceable
from pplgen.distributed.sharding import shard_rows
from pplgen.errors import InputError
from pplgen.inference.convergence import WINDOW
from pplgen.inference.engine import Engine, State
from pplgen.inference.fault_localisation import LOOKED_AT, FaultLocalisation
from pplgen.inference.options import TrainingOptions
from pplgen.inference.training import StopReason, Training, num_evaluations
from pplgen.inference.training_state import NonFinite, TrainingState
from pplgen.storage.checkpoint import Checkpoint, content_digest
from pplgen.story.isolation import generator_states, seeded, set_generator_states
from pplgen.story.pair import Pair

__all__ = ["Report", "stacked_data", "train_together"]

REPAYS = 30.0
"""Seconds that the uncompiled graph must be expected to run before compiling it repays, at least."""
PER_NODE = 0.05
"""Seconds likewise for each of its nodes: a graph of thousands takes minutes to compile."""
EXPECTED_STEPS = 1500
"""Steps that a fit is expected to take, where more are allowed."""

Report = Callable[[int, float, float, str], None]
"""Called after each window with step, best smoothed ELBO, steps per second, and what is going on."""


def train_together(
    pairs: list[Pair],
    options: TrainingOptions,
    *,
    seeds: list[int],
    report: Report | None = None,
    own_data: bool = False,
) -> tuple[list[Training | None], str]:
    """Train pairs that differ only in their parameters as one batched program; each is left at its last good state.

    The rules of ``pplgen.inference.svi.train`` hold for each of them separately: windows, plateaus, non-finite values.

    Parameters
    ----------
    pairs, seeds
        Restarts and the seeds that they were made with.
    options
        How they are trained. With a checkpoint, the same fit continues from where it was.
    report
        Called after each window.
    own_data
        Whether the pairs also differ in their data, which have the same shapes; then without minibatches.

    Returns
    -------
    tuple
        One ``Training`` each, ``None`` for a pair that had no finite ELBO where others did; and the path, in words.

    Raises
    ------
    NotTraceable
        Where the pair has no faithful graph.
    InputError
        Where no pair had a finite ELBO.
    KeyboardInterrupt
        Where it comes before the first window has ended; later, it ends the fit, and that of several ranks at once.
    """
    return _Run(pairs, options, seeds, report, own_data).train()


class _Run:
    """Restarts that are trained as one program."""

    def __init__(
        self, pairs: list[Pair], options: TrainingOptions, seeds: list[int], report: Report | None, own_data: bool
    ) -> None:
        self.pairs, self.options, self.seeds, self.report = pairs, options, seeds, report
        self.ranks, self.warm_up, optimiser = options.ranks, options.objective.warm_up, options.optimiser
        self.first, self.seed, self.shard = pairs[0], seeds[0], shard_rows(pairs[0], options.ranks)
        with self.first.isolated(), self.ranks.shared_errors():
            batches, scale = options.batching.of(self.first, seed=self.seed, shard=self.shard)
            with _half_warmed_up(self.first) if self.warm_up else contextlib.nullcontext():
                self.graph = trace(self.first, options.objective.of(self.first), next(batches), scale)
        vectors, buffers = _stacked(pairs, self.graph)
        self.training = TrainingState.start(vectors, optimiser)
        self.same_rows = options.batching.is_constant(self.first)
        data: Any = tensors_of(next(batches)) if self.same_rows else map(tensors_of, batches)
        if own_data:
            data = stacked_data(pairs)
        with self.ranks.shared_errors():
            self.engine = Engine(
                self.graph,
                self.training.state,
                data,
                clip=optimiser.clip,
                decay=optimiser.decay,
                buffers=buffers,
                own_data=own_data,
                warm_up=self._rising_buffer(),
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
        """Take windows of steps until all restarts have stopped, and evaluate the bound at their ends."""
        self._continue_batches()
        self.path = self._compiled() if self.options.compiler == "inductor" else "the traced graph"
        self.resumed_at, self.started = self.training.taken, time.perf_counter()
        stop = StopReason.STEPS
        self.generators = generator_states()
        try:
            while self.training.taken < self.options.steps and self.training.running:
                self._take_window()
        except KeyboardInterrupt:
            if not self.training.taken or self.ranks.size > 1:
                raise
            stop = StopReason.INTERRUPTED
            set_generator_states(self.generators)  # where the unfinished window began
            self.training.iterates.discard_since_mark()
        self._save()
        self.training.stop(stop)
        self._reseed()
        results = self._ended()
        if not any(results):
            raise InputError(self.localisation.verdict(self.training))
        return results, self.path

    def _take_window(self) -> None:
        """Take a window of steps, judge every restart by it, and compile where that repays from here on."""
        training = self.training
        judge = training.taken >= self.warm_up
        self._reseed()
        self.generators = generator_states()
        num_steps = min(WINDOW, self.options.steps - training.taken)
        state, losses = self.engine.run(training.state, training.rates, num_steps, training.notice)
        faults: dict[int, NonFinite] = {}
        if non_finite := training.non_finite(state, losses):
            state = State(*(value.clone() for value in state))
            faults = self.localisation.locate(training, len(losses), self.generators, non_finite[:LOOKED_AT])
        training.advance(state, losses, judge=judge, faults=faults)
        self.generators = generator_states()
        if non_finite and self.ranks.first:
            self.localisation.warn(training, non_finite)
        elapsed, done = time.perf_counter() - self.started, training.taken - self.resumed_at
        self._tell(done / elapsed, self.path)
        if self.checkpoint and self.ranks.first and self.checkpoint.due():
            self._save()
        if self.options.compiler == "auto" and done == WINDOW and self._compiling_repays(elapsed / done):
            self._tell(done / elapsed, "compiling")
            self.path = self._compiled()

    def _tell(self, rate: float, doing: str) -> None:
        if self.report:
            self.report(self.training.taken, self.training.best_mean, rate, doing)

    def _compiling_repays(self, seconds: float) -> bool:
        """Whether the steps that are left, of so many seconds each, take longer than compiling; alike on all ranks."""
        remaining = seconds * (min(self.options.steps, EXPECTED_STEPS) - self.training.taken)
        repays = remaining > max(REPAYS, PER_NODE * len(self.graph.module.graph.nodes))
        return self.ranks.all_gather(repays)[0]

    def _compiled(self) -> str:
        """Compile the step where that is faithful, on all ranks; return the path that runs from here on."""
        path = "the compiled graph"
        with seeded(self.seed):  # leaves the generator where it was
            try:
                with self.ranks.shared_errors():
                    self.engine.compile(self.training.rates)
                if not self.ranks.all_equal(self.engine.block_size):
                    raise NotTraceable("ranks would take different numbers of steps at once")
            except NotTraceable as reason:
                self.engine.discard_compiled()
                path = f"the traced graph, for {reason}"
        self._continue_batches()
        return path

    def _rising_buffer(self) -> tuple[int, int] | None:
        """Return which of the graph's buffers rises to one, and over how many steps."""
        if not self.warm_up:
            return None
        return next(i for i, own in enumerate(self.graph.buffers) if own is self.first.kl_weight), self.warm_up

    def _batches_from(self, taken: int) -> Iterator[tuple[Any, ...]]:
        """Return the arguments of every step after ``taken`` of them."""
        with self.first.isolated():
            return self.options.batching.of(self.first, seed=self.seed, skip=taken, shard=self.shard)[0]

    def _continue_batches(self) -> None:
        """Let the next batch be that of the next step, whatever else has taken any."""
        if not self.same_rows:
            self.engine.data = map(tensors_of, self._batches_from(self.training.taken))

    def _reseed(self) -> None:
        """Give several ranks the random numbers of the next step."""
        self.ranks.reseed(self.seed, self.training.taken, per_rank=bool(self.first.structure.row_latent))

    def _checkpoint(self, vectors: Tensor) -> Checkpoint | None:
        """Open the fit's checkpoint, and continue from it where there is one."""
        if self.options.checkpoint is None:
            return None
        checkpoint = self.ranks.on_first_rank(
            partial(Checkpoint, self.options.checkpoint, self._identity(vectors), vectors.device)
        )
        if loaded := self.ranks.on_first_rank(checkpoint.load):
            self.training = TrainingState.from_tensors(*loaded, vectors.device)
        return checkpoint

    def _identity(self, vectors: Tensor) -> str:
        """Digest of all that decides how the fit goes on."""
        batching, graph = self.options.batching, self.graph
        facts: dict[str, Any] = {
            "seeds": self.seeds,
            "batch_size": batching.batch_size,
            "optimiser": asdict(self.options.optimiser),
            "graph": graph.module.code,
            "rows": self.first.num_rows,
            "version": version("pplgen"),
            "stream": self.first.fingerprint,
        }
        if self.ranks.size > 1:
            facts["ranks"] = self.ranks.size
        if self.warm_up or batching.augment:
            augment = getattr(batching.augment, "__qualname__", repr(batching.augment))
            facts |= {"warm_up": self.warm_up, "augment": augment}
        constants = [value for value in vars(graph.module).values() if isinstance(value, Tensor)]
        start = [vectors, *graph.buffers, *graph.module.buffers(), *constants, *tensors_of(self.first.data)]
        return content_digest(facts, start)

    def _save(self) -> None:
        """Write a checkpoint, where there are any."""
        if self.checkpoint and self.ranks.first:
            self.checkpoint.save(*self.training.to_tensors())

    def _ended(self) -> list[Training | None]:
        """Leave every pair at its last good state, and summarise it by evaluations of the bound there."""
        good = self.training.good.vectors
        finals: Any = (-self.engine.evaluate(good, num_evaluations(self.training.taken))).cpu().numpy()
        finals = np.asarray(finals, dtype="float64")
        results: list[Training | None] = []
        for index, (pair, seed, restart) in enumerate(zip(self.pairs, self.seeds, self.training.restarts, strict=True)):
            values = finals[:, index]
            if not restart.history or restart.stop is None or not np.isfinite(values).all():
                results.append(None)
                continue
            with pair.isolated():
                pair.restore(self.graph.unpack(good[index]))
            ended = (values, restart.stop, restart.iterates, good[index], restart.faults)
            results.append(Training.ended(seed, restart.history, *ended))
        return results


@contextlib.contextmanager
def _half_warmed_up(pair: Pair) -> Iterator[None]:
    """Trace and prove a graph where the weight of the KL terms can be seen."""
    assert pair.kl_weight is not None, "only a pair with such a weight is warmed up"
    pair.kl_weight.fill_(0.5)
    try:
        yield
    finally:
        pair.kl_weight.fill_(1.0)


def _stacked(pairs: list[Pair], graph: Graph) -> tuple[Tensor, tuple[Tensor, ...] | None]:
    """Lay out the parameters of all pairs, shape ``(R, P)``, and their buffers where these differ."""
    vectors, buffers = [], []
    for pair in pairs:
        with pair.isolated():
            vectors.append(graph.pack(pair.snapshot()))
        buffers.append(buffers_of(pair))
    shared = all(torch.equal(own, first) for one in buffers for own, first in zip(one, graph.buffers, strict=True))
    return torch.stack(vectors), None if shared else tuple(torch.stack(each) for each in zip(*buffers, strict=True))


def stacked_data(pairs: list[Pair]) -> tuple[Tensor, ...]:
    """Lay out the tensors among the pairs' arguments, shape ``(R, ...)`` each."""
    return tuple(torch.stack(each) for each in zip(*(tensors_of(pair.data) for pair in pairs), strict=True))
