"""The loop over many restarts as one program, with the same rules as the plain one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from pyro.infer import ELBO
from torch import Tensor

from pplgen.engine import Engine, State
from pplgen.graph import Graph, buffers_of, tensors_of, trace
from pplgen.pair import Pair
from pplgen.tracing import NotTraceable
from pplgen.training import (
    DECAY,
    FINAL_EVALUATIONS,
    PLATEAUS,
    WINDOW,
    Adam,
    PlateauWatch,
    StopReason,
    Training,
    batching,
)

__all__ = ["train_together"]

REPAYS = 30.0
"""Seconds that the uncompiled graph must be expected to run before compiling it repays."""
EXPECTED_STEPS = 1500
"""Steps that a fit is expected to take, where more are allowed."""

Report = Callable[[int, float, float, str], None]


@dataclass
class _Lane:
    """One restart among those that run together."""

    watch: PlateauWatch = field(default_factory=PlateauWatch)
    history: list[float] = field(default_factory=list)
    stop: StopReason | None = None
    broken: bool = False


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
) -> tuple[list[Training | None], str]:
    """Train pairs that differ only in their parameters as one batched program; each is left at its last good state.

    The same rules as ``pplgen.training.train`` hold for each of them on its own: windows, plateaus, NaN.

    Parameters
    ----------
    pairs, seeds
        Restarts and the seeds that they were made with.
    steps, optimiser, batch_size, elbo
        As for ``train``.
    compiler
        ``"inductor"`` to compile at once, ``"graph"`` never, ``"auto"`` once it repays.
    report
        Called after each window with step, best smoothed ELBO, steps per second, and what is going on.

    Returns
    -------
    tuple
        One ``Training`` each, ``None`` for a pair that had no finite ELBO; and the path that ran, in words.

    Raises
    ------
    NotTraceable
        Where the pair has no faithful graph.
    KeyboardInterrupt
        Where it comes before the first window has ended; later, it ends the fit.
    """
    with pairs[0].isolated():
        batches, scale = batching(pairs[0], batch_size)
        graph = trace(pairs[0], elbo or pairs[0].elbo(), next(batches), scale)
    vectors, buffers = _stacked(pairs, graph)
    state = State.start(vectors)
    rates = torch.full((len(pairs), 1), optimiser.learning_rate, dtype=vectors.dtype, device=vectors.device)
    data = tensors_of(pairs[0].data) if scale is None else (tensors_of(batch) for batch in batches)
    engine = Engine(graph, state, data, clip=optimiser.clip, decay=optimiser.decay, buffers=buffers)
    path = _compile(engine, rates) if compiler == "inductor" else "the traced graph"
    lanes = [_Lane() for _ in pairs]
    good = vectors.clone()
    taken, started = 0, time.perf_counter()
    try:
        while taken < steps and any(lane.stop is None for lane in lanes):
            state, losses = engine.run(state, rates, min(WINDOW, steps - taken))
            taken += len(losses)
            _judge(lanes, state, rates, good, (-losses).cpu().numpy())
            elapsed = time.perf_counter() - started
            if report:
                report(taken, _best_mean(lanes), taken / elapsed, path)
            if compiler == "auto" and taken == WINDOW:
                remaining = elapsed / taken * (min(steps, EXPECTED_STEPS) - taken)
                if remaining > REPAYS:
                    if report:
                        report(taken, _best_mean(lanes), taken / elapsed, "compiling")
                    path = _compile(engine, rates)
    except KeyboardInterrupt:
        if not taken:
            raise
        for lane in lanes:
            lane.stop = lane.stop or StopReason.INTERRUPTED
    finals = _final_values(engine, good, rates)
    results: list[Training | None] = []
    for index, (pair, seed, lane) in enumerate(zip(pairs, seeds, lanes, strict=True)):
        values = finals[:, index]
        if lane.broken or not np.isfinite(values).all():
            results.append(None)
            continue
        with pair.isolated():
            pair.restore(graph.unpack(good[index]))
        results.append(Training.ended(seed, lane.history, values, lane.stop or StopReason.STEPS))
    return results, path


def _stacked(pairs: list[Pair], graph: Graph) -> tuple[Tensor, tuple[Tensor, ...] | None]:
    """Lay out the parameters of all pairs, shape ``(R, P)``, and their buffers where these differ."""
    vectors, buffers = [], []
    for pair in pairs:
        with pair.isolated():
            vectors.append(graph.pack(pair.snapshot()))
        buffers.append(buffers_of(pair))
    shared = all(torch.equal(own, first) for one in buffers for own, first in zip(one, graph.buffers, strict=True))
    return torch.stack(vectors), None if shared else tuple(torch.stack(each) for each in zip(*buffers, strict=True))


def _compile(engine: Engine, rates: Tensor) -> str:
    """Compile the step where that is faithful; return the path that runs from here on."""
    try:
        engine.compile(rates)
    except NotTraceable as reason:
        return f"the traced graph, for {reason}"
    return "the compiled graph"


def _judge(lanes: list[_Lane], state: State, rates: Tensor, good: Tensor, elbos: np.ndarray) -> None:
    """Take a window's ELBOs, shape ``(num_steps, R)``: keep good states, cut rates at plateaus, stop what is done."""
    finite = state.vectors.isfinite().all(dim=1).tolist()
    for index, lane in enumerate(lanes):
        if lane.stop is not None:
            continue
        window = elbos[:, index]
        if not (finite[index] and np.isfinite(window).all()):
            lane.stop, lane.broken = StopReason.NOT_FINITE, not lane.history
            rates[index] = 0.0
            continue
        lane.history.extend(window.tolist())
        good[index] = state.vectors[index]
        if len(window) == WINDOW and lane.watch.plateau(window.tolist()):
            rates[index] *= DECAY
            if lane.watch.plateaus == PLATEAUS:
                lane.stop = StopReason.CONVERGED
                rates[index] = 0.0


def _best_mean(lanes: list[_Lane]) -> float:
    """Best smoothed ELBO among the restarts."""
    means = [float(np.mean(lane.history[-WINDOW:])) for lane in lanes if lane.history]
    return max(means, default=math.nan)


def _final_values(engine: Engine, good: Tensor, rates: Tensor) -> np.ndarray:
    """Evaluate the bound at the good states, shape ``(FINAL_EVALUATIONS, R)``: steps of length zero."""
    _, losses = engine.run(State.start(good.clone()), torch.zeros_like(rates), FINAL_EVALUATIONS)
    values: Any = (-losses).cpu().numpy()
    return np.asarray(values, dtype="float64")
