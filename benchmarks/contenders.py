"""What is timed: a hand-written step, plain Pyro, the engine; each does some steps a call and goes on from there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro.infer import ELBO, SVI

from pplgen.compiler.graph import tensors_of, trace
from pplgen.inference.engine import Engine, State
from pplgen.story.pair import Pair


def runner(step, state, steps):
    """Return a contender that goes on from where it stopped."""
    kept = [state]

    def run() -> int:
        with torch.no_grad():
            for _ in range(steps):
                kept[0] = step(*kept[0])
        return steps

    run()
    return run


def svi_contender(
    model: Any, guide: Any, bound: ELBO, x: torch.Tensor, *, rate: float, steps: int, validate: bool
) -> Callable[[], int]:
    """Return plain Pyro."""
    pyro.clear_param_store()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": rate}), bound)

    def run() -> int:
        with pyro.validation_enabled(validate):
            for _ in range(steps):
                svi.step(x)
        return steps

    run()
    return run


def engine_contender(
    pair: Pair, bound: ELBO, *, rate: float, restarts: int, steps: int, compiled: bool
) -> Callable[[], int]:
    """Return the engine, on the traced or the compiled graph."""
    with pair.isolated():
        graph = trace(pair, bound, pair.data)
        state = State.start(graph.pack(pair.snapshot())[None].repeat(restarts, 1))
    rates = torch.full((restarts, 1), rate)
    engine = Engine(graph, state, tensors_of(pair.data))
    if compiled:
        engine.compile(rates)
    kept = [state]

    def run() -> int:
        kept[0], _ = engine.run(kept[0], rates, steps)
        return steps

    run()
    return run
