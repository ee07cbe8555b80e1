"""The loop over many restarts as one program, with the same rules as the plain one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pyro.infer import ELBO
from torch import Tensor

from pplgen.batches import batching
from pplgen.checkpoint import Checkpoint, identity
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
    checkpoint: Path | None = None,
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
    checkpoint
        Directory in which to keep where the fit stands; one that was killed continues from there.

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
        batches, scale = batching(pairs[0], batch_size, seed=seeds[0])
        graph = trace(pairs[0], elbo or pairs[0].elbo(), next(batches), scale)
    vectors, buffers = _stacked(pairs, graph)
    state = State.start(vectors)
    rates = torch.full((len(pairs), 1), optimiser.learning_rate, dtype=vectors.dtype, device=vectors.device)
    data = tensors_of(pairs[0].data) if scale is None else map(tensors_of, batches)
    engine = Engine(graph, state, data, clip=optimiser.clip, decay=optimiser.decay, buffers=buffers)

    def continue_batches() -> None:
        """Let the next batch be that of the next step, whatever tracing and compiling took."""
        if scale is not None:
            engine.data = map(tensors_of, batching(pairs[0], batch_size, seed=seeds[0], skip=taken)[0])

    path = _compile(engine, rates) if compiler == "inductor" else "the traced graph"
    lanes = [_Lane() for _ in pairs]
    good = vectors.clone()
    taken = 0
    kept = None
    if checkpoint is not None:
        options = {
            "seeds": seeds,
            "batch_size": batch_size,
            "optimiser": asdict(optimiser),
            "num_rows": pairs[0].num_rows,
        }
        kept = Checkpoint(checkpoint, identity(options, [vectors, *graph.buffers, *tensors_of(pairs[0].data)]))
        if found := kept.load():
            state, rates, good, lanes, taken = _thawed(*found, state)
    continue_batches()
    began, started = taken, time.perf_counter()
    try:
        while taken < steps and any(lane.stop is None for lane in lanes):
            state, losses = engine.run(state, rates, min(WINDOW, steps - taken))
            taken += len(losses)
            _judge(lanes, state, rates, good, (-losses).cpu().numpy())
            elapsed, done = time.perf_counter() - started, taken - began
            if report:
                report(taken, _best_mean(lanes), done / elapsed, path)
            if kept and kept.due():
                kept.save(*_frozen(state, rates, good, lanes, taken))
            if compiler == "auto" and done == WINDOW:
                remaining = elapsed / done * (min(steps, EXPECTED_STEPS) - taken)
                if remaining > REPAYS:
                    if report:
                        report(taken, _best_mean(lanes), done / elapsed, "compiling")
                    path = _compile(engine, rates)
                    continue_batches()
    except KeyboardInterrupt:
        if not taken:
            raise
        for lane in lanes:
            lane.stop = lane.stop or StopReason.INTERRUPTED
    finals = _final_values(engine, good, rates)
    if kept and not any(lane.stop is StopReason.INTERRUPTED for lane in lanes):
        kept.remove()
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


def _frozen(
    state: State, rates: Tensor, good: Tensor, lanes: list[_Lane], taken: int
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Lay out where a fit stands, as tensors and facts."""
    tensors = {**state._asdict(), "rates": rates, "good": good}
    tensors |= {f"history{index}": torch.tensor(lane.history).double() for index, lane in enumerate(lanes)}
    facts = [
        {"means": lane.watch.means, "plateaus": lane.watch.plateaus, "broken": lane.broken}
        | {"stop": lane.stop.name if lane.stop else None}
        for lane in lanes
    ]
    return tensors, {"taken": taken, "lanes": facts}


def _thawed(
    tensors: dict[str, Tensor], facts: dict[str, Any], like: State
) -> tuple[State, Tensor, Tensor, list[_Lane], int]:
    """Take a fit up from where ``_frozen`` found it."""
    moved = {name: value.to(like.vectors.device) for name, value in tensors.items()}
    lanes = []
    for index, lane in enumerate(facts["lanes"]):
        stop = None if lane["stop"] is None else StopReason[lane["stop"]]
        watch = PlateauWatch(lane["means"], lane["plateaus"])
        lanes.append(_Lane(watch, tensors[f"history{index}"].tolist(), stop, lane["broken"]))
    state = State(*(moved[name] for name in State._fields))
    return state, moved["rates"], moved["good"], lanes, facts["taken"]


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
