"""``fit``: a story, or any Pyro pair, and data become a ``Fit``."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from pyro.infer import ELBO

from pplgen.arguments import bare_arguments, check_device, training_rows
from pplgen.data import Table
from pplgen.errors import InputError
from pplgen.fitted import Fit
from pplgen.pair import Pair, seeded
from pplgen.progress import ProgressCallback, reporting
from pplgen.story import Story, check_count, check_positive
from pplgen.training import Progress, StopReason, Training, train

__all__ = ["fit"]


def fit(
    model: Story | Callable[..., Any],
    data: Any,
    guide: Callable[..., Any] | None = None,
    *,
    seed: int = 0,
    steps: int = 10_000,
    learning_rate: float = 0.02,
    restarts: int = 1,
    batch_size: int | None = None,
    device: str | torch.device | None = None,
    elbo: ELBO | None = None,
    progress: bool | ProgressCallback = True,
) -> Fit:
    """Fit a story, or any Pyro model and guide, by stochastic variational inference.

    Nothing that is given is changed: modules are copied, Pyro's parameter store and every random generator are left as
    they were found. The same seed gives the same numbers.

    Parameters
    ----------
    model
        A ``Story``, or a Pyro model.
    data
        For a story, whatever ``load_data`` takes. For a bare model its argument, or a tuple of its arguments.
    guide
        The guide of a bare model; ``None`` for ``AutoNormal`` over its continuous latents, discrete ones summed out.
    seed
        Of initialisation and optimisation.
    steps
        At most so many for each restart; it stops earlier once the smoothed ELBO has stopped improving.
    learning_rate
        Adam's first one; it is cut at each plateau.
    restarts
        Independent runs, of which the one with the best final ELBO is kept.
    batch_size
        Rows per step, the row plate being scaled to all of them; ``None`` for all rows.
    device
        Where to compute, such as ``"cuda"``; ``None`` for where the data are.
    elbo
        Pyro's bound. ``None``: ``TraceEnum_ELBO`` where discrete latents are summed out, else ``Trace_ELBO``.
    progress
        A bar on the terminal, nothing, or a function called with a ``Progress`` every few steps.

    Raises
    ------
    InputError
        Where the data, the pair or an option cannot be fitted.
    """
    check_count("seed", seed, minimum=0)
    check_count("steps", steps)
    check_count("restarts", restarts)
    check_positive("learning_rate", learning_rate)
    if batch_size is not None:
        check_count("batch_size", batch_size)
    target = None if device is None else check_device(device)
    if isinstance(model, Story) and guide is not None:
        raise InputError(
            f"guide: {type(model).__name__} brings its own guide; fit(story.model, data, guide) takes yours"
        )
    table: Table | None = None
    if isinstance(model, Story):
        table = training_rows(model, data)
        arguments: tuple[Any, ...] = (table.values.to(target),)
    else:
        arguments = bare_arguments(data, target)
    runs: list[Training] = []
    best: Pair | None = None
    failure: InputError | None = None
    with reporting(progress) as callback:
        for index, restart_seed in enumerate(np.random.SeedSequence(seed).generate_state(restarts).tolist(), start=1):

            def report(step: int, value: float, rate: float, index: int = index) -> None:
                if callback:
                    callback(Progress(index, restarts, step, steps, value, rate))

            try:
                with seeded(restart_seed):
                    pair = _prepare(model, guide, arguments, target)
                    with pair.isolated():
                        run = train(
                            pair,
                            seed=restart_seed,
                            steps=steps,
                            learning_rate=learning_rate,
                            batch_size=batch_size,
                            elbo=elbo,
                            report=report,
                        )
            except InputError as error:
                failure = failure or error
                continue
            if best is None or run.elbo > max(other.elbo for other in runs):
                best = pair
            runs.append(run)
            if run.stop is StopReason.INTERRUPTED:
                break
    if best is None:
        raise failure or InputError("interrupted before the first step")
    return Fit(best, tuple(runs), table=table, seed=seed)


def _prepare(
    model: Story | Callable[..., Any],
    guide: Callable[..., Any] | None,
    arguments: tuple[Any, ...],
    device: torch.device | None,
) -> Pair:
    """Copy and start a pair: a story near the data, a bare pair as its parameters' own starts say."""
    if isinstance(model, Story):
        (x,) = arguments
        story = copy.deepcopy(model).to(device=x.device, dtype=x.dtype)
        story.initialise(x)
        return Pair(story.model, story.guide, arguments)
    return Pair(model, guide, arguments, device)
