"""The loop over many restarts as one program, with the same rules as the plain one."""

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
from pyro.infer import ELBO
from torch import Tensor

from pplgen.compiler.graph import Graph, buffers_of, tensors_of, trace
from pplgen.compiler.tracing import NotTraceable
from pplgen.distributed.ranks import ALONE, Ranks
from pplgen.distributed.sharding import shard_of
from pplgen.errors import InputError
from pplgen.inference.convergence import WINDOW
from pplgen.inference.engine import Engine, State
from pplgen.inference.fault_localisation import LOOKED_AT, FaultLocalisation
from pplgen.inference.minibatches import Augment, are_all_rows, batching
from pplgen.inference.svi import Adam, StopReason, Training, num_evaluations
from pplgen.inference.training_state import Met, TrainingState
from pplgen.storage.checkpoint import Checkpoint, CheckpointOptions, identity
from pplgen.story.isolation import continue_from, generator_states, seeded
from pplgen.story.pair import Pair

__all__ = ["Report", "stacked_data", "train_together"]

REPAYS = 30.0
"""Seconds that the uncompiled graph must be expected to run before compiling it repays, at least."""
PER_NODE = 0.05
"""Seconds likewise for each of its nodes: a graph of thousands takes minutes to compile."""
EXPECTED_STEPS = 1500
"""Steps that a fit is expected to take, where more are allowed."""

Report = Callable[[int, float, float, str], None]


def train_together(
    pairs: list[Pair],
    *,
    seeds: list[int],
    steps: int,
    optimiser: Adam,
    batch_size: int | None,
    elbo: ELBO | None,
    compiler: str,
    report: Report | None,
    warm_up: int = 0,
    augment: Augment | None = None,
    checkpoint: CheckpointOptions | None = None,
    own_data: bool = False,
    ranks: Ranks = ALONE,
) -> tuple[list[Training | None], str]:
    """Train pairs that differ only in their parameters as one batched program; each is left at its last good state.

    The rules of ``pplgen.inference.svi.train`` hold for each of them on its own: windows, plateaus, what is not finite.

    Parameters
    ----------
    pairs, seeds
        Restarts and the seeds that they were made with.
    steps, optimiser, batch_size, elbo, warm_up, augment
        As for ``train``.
    compiler
        ``"inductor"`` to compile at once, ``"graph"`` never, ``"auto"`` once it repays.
    report
        Called after each window with step, best smoothed ELBO, steps per second, and what is going on.
    checkpoint
        Where to keep, and how often, where the fit stands; the same fit continues from there.
    own_data
        Whether the pairs also differ in their data, which have the same shapes; then without minibatches.
    ranks
        Processes that share the rows; all of them return the same.

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
    first, seed, shard = pairs[0], seeds[0], shard_of(pairs[0], ranks)
    with first.isolated(), ranks.agreeing():
        batches, scale = batching(first, batch_size, seed=seed, augment=augment, shard=shard)
        with _warmed_by_half(first) if warm_up else contextlib.nullcontext():
            graph = trace(first, elbo or first.elbo(), next(batches), scale)
    vectors, buffers = _stacked(pairs, graph)
    now = TrainingState.start(vectors, optimiser)
    same = augment is None and are_all_rows(first, batch_size)
    data: Any = tensors_of(next(batches)) if same else map(tensors_of, batches)
    if own_data:
        data = stacked_data(pairs)
    rising = (next(i for i, own in enumerate(graph.buffers) if own is first.kl_weight), warm_up) if warm_up else None
    adam: dict[str, Any] = {"clip": optimiser.clip, "decay": optimiser.decay}
    with ranks.agreeing():
        engine = Engine(graph, now.state, data, **adam, buffers=buffers, own_data=own_data, warm_up=rising, ranks=ranks)

    def compiled() -> str:
        with seeded(seed):  # leaves the generator where it was
            path = _compile(engine, now.rates, ranks)
        continue_batches()
        return path

    def batches_from(taken: int) -> Iterator[tuple[Any, ...]]:
        with first.isolated():
            return batching(first, batch_size, seed=seed, skip=taken, augment=augment, shard=shard)[0]

    def continue_batches() -> None:
        """Let the next batch be that of the next step, whatever else has taken any."""
        if not same:
            engine.data = map(tensors_of, batches_from(now.taken))

    again = FaultLocalisation(pairs, engine, elbo, None if same else batches_from, "fit" if own_data else "restart")

    kept = None
    if checkpoint is not None:
        options = {"seeds": seeds, "batch_size": batch_size, "optimiser": asdict(optimiser)}
        computed = {"graph": graph.module.code, "rows": first.num_rows, "version": version("pplgen")}
        computed["stream"] = first.fingerprint
        if ranks.size > 1:
            computed["ranks"] = ranks.size
        if warm_up or augment:
            computed |= {"warm_up": warm_up, "augment": getattr(augment, "__qualname__", repr(augment))}
        constants = [value for value in vars(graph.module).values() if isinstance(value, Tensor)]
        start = [vectors, *graph.buffers, *graph.module.buffers(), *constants, *tensors_of(first.data)]
        fit = identity(options | computed, start)
        kept = ranks.once(partial(Checkpoint, checkpoint, fit, vectors.device))
        if found := ranks.once(kept.load):
            now = TrainingState.from_tensors(*found, vectors.device)
    continue_batches()
    path = compiled() if compiler == "inductor" else "the traced graph"
    began, started, interrupted = now.taken, time.perf_counter(), False
    generators = generator_states()
    try:
        while now.taken < steps and now.running:
            judge = now.taken >= warm_up
            ranks.reseed(seed, now.taken, apart=bool(first.structure.row_latent))
            generators = generator_states()
            state, losses = engine.run(now.state, now.rates, min(WINDOW, steps - now.taken), now.notice)
            met: dict[int, Met] = {}
            if non_finite := now.non_finite(state, losses):
                state = State(*(value.clone() for value in state))
                met = again.met(now, len(losses), generators, non_finite[:LOOKED_AT])
            now.advance(state, losses, judge=judge, met=met)
            generators = generator_states()
            if non_finite and ranks.first:
                again.warn(now, non_finite)
            elapsed, done = time.perf_counter() - started, now.taken - began
            if report:
                report(now.taken, now.best_mean, done / elapsed, path)
            if kept and ranks.first and kept.due():
                kept.save(*now.to_tensors())
            if compiler == "auto" and done == WINDOW:
                remaining = elapsed / done * (min(steps, EXPECTED_STEPS) - now.taken)
                repays = remaining > max(REPAYS, PER_NODE * len(engine.graph.module.graph.nodes))
                if ranks.gathered(repays)[0]:
                    if report:
                        report(now.taken, now.best_mean, done / elapsed, "compiling")
                    path = compiled()
    except KeyboardInterrupt:
        if not now.taken or ranks.size > 1:
            raise
        interrupted = True
        continue_from(generators)  # where the window began that was not ended
        now.iterates.forget()
    if kept and ranks.first:
        kept.save(*now.to_tensors())
    now.stop(StopReason.INTERRUPTED if interrupted else StopReason.STEPS)
    ranks.reseed(seed, now.taken, apart=bool(first.structure.row_latent))
    results = _ended(pairs, seeds, graph, now, _final_values(engine, now))
    if not any(results):
        raise InputError(again.verdict(now))
    return results, path


@contextlib.contextmanager
def _warmed_by_half(pair: Pair) -> Iterator[None]:
    """Trace and prove a graph where the weight of the codes' terms can be seen."""
    assert pair.kl_weight is not None, "only a pair with such a weight is warmed up"
    pair.kl_weight.fill_(0.5)
    try:
        yield
    finally:
        pair.kl_weight.fill_(1.0)


def _ended(
    pairs: list[Pair], seeds: list[int], graph: Graph, now: TrainingState, finals: np.ndarray
) -> list[Training | None]:
    """Leave every pair at its good state, and summarise it by bounds of shape ``(num_evaluations, R)``."""
    results: list[Training | None] = []
    for index, (pair, seed, restart) in enumerate(zip(pairs, seeds, now.restarts, strict=True)):
        values = finals[:, index]
        if not restart.history or restart.stop is None or not np.isfinite(values).all():
            results.append(None)
            continue
        end = now.good.vectors[index]
        with pair.isolated():
            pair.restore(graph.unpack(end))
        results.append(
            Training.ended(seed, restart.history, values, restart.stop, restart.iterates, end, restart.faults)
        )
    return results


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


def _compile(engine: Engine, rates: Tensor, ranks: Ranks) -> str:
    """Compile the step where that is faithful, on all ranks; return the path that runs from here on."""
    try:
        with ranks.agreeing():
            engine.compile(rates)
        if not ranks.same(engine.block_size):
            raise NotTraceable("ranks would take different numbers of steps at once")
    except NotTraceable as reason:
        engine.discard_compiled()
        return f"the traced graph, for {reason}"
    return "the compiled graph"


def _final_values(engine: Engine, now: TrainingState) -> np.ndarray:
    """Evaluate the bound at the good states, shape ``(num_evaluations, R)``."""
    values: Any = (-engine.evaluate(now.good.vectors, num_evaluations(now.taken))).cpu().numpy()
    return np.asarray(values, dtype="float64")
