"""Contenders: a hand-written step, plain Pyro, the engine; each call takes some steps and continues from the last."""

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
    """Return a contender that repeats a step function on its own state."""
    current = [state]

    def run() -> int:
        with torch.no_grad():
            for _ in range(steps):
                current[0] = step(*current[0])
        return steps

    run()
    return run


def svi_contender(
    model: Any, guide: Any, bound: ELBO, x: torch.Tensor, *, rate: float, steps: int, validate: bool
) -> Callable[[], int]:
    """Return plain Pyro's ``svi.step`` as a contender."""
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
    """Return the engine as a contender, on the traced or the compiled graph."""
    with pair.isolated():
        graph = trace(pair, bound, pair.data)
        state = State.start(graph.pack(pair.snapshot())[None].repeat(restarts, 1))
    rates = torch.full((restarts, 1), rate)
    engine = Engine(graph, state, tensors_of(pair.data))
    if compiled:
        engine.compile(rates)
    current = [state]

    def run() -> int:
        current[0], _ = engine.run(current[0], rates, steps)
        return steps

    run()
    return run
