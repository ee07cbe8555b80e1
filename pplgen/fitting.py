"""``fit``: a story, or any Pyro pair, and data become a ``Fit``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from pyro.infer import ELBO

from pplgen.arguments import bare_arguments, check_device, training_rows
from pplgen.data import Table
from pplgen.errors import InputError
from pplgen.fitted import Fit
from pplgen.isolation import seeded
from pplgen.pair import Pair
from pplgen.story import Story, check_count, check_positive
from pplgen.terminal import ProgressCallback, reporting
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
        Where to compute, such as ``"cuda"``. ``None``: the CPU for a story, where the data are for a bare pair.
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
    restart_seeds = np.random.SeedSequence(seed).generate_state(restarts).tolist()
    table: Table | None = None
    if isinstance(model, Story):
        table = training_rows(model, data)
        arguments: tuple[Any, ...] = (table.values.to(target),)
    else:
        arguments = bare_arguments(data, target)
    runs: list[Training] = []
    best: Pair | None = None
    failures: list[InputError] = []
    with reporting(progress) as callback:
        try:
            for index, restart_seed in enumerate(restart_seeds, start=1):
                with seeded(restart_seed):
                    try:
                        pair = _prepare(model, guide, arguments, target)
                        with pair.isolated():
                            run = train(
                                pair,
                                seed=restart_seed,
                                steps=steps,
                                learning_rate=learning_rate,
                                batch_size=batch_size,
                                elbo=elbo,
                                report=_reporter(callback, index, restarts, steps),
                            )
                    except InputError as error:
                        failures.append(error)
                        continue
                if best is None or run.elbo > max(other.elbo for other in runs):
                    best = pair
                runs.append(run)
                if run.stop is StopReason.INTERRUPTED:
                    break
        except KeyboardInterrupt:  # between two restarts, or before the first step of one
            if best is None:
                raise InputError("interrupted before the first step; there is no fit to keep") from None
    if best is None:
        raise failures[0]
    return Fit(best, tuple(runs), table=table, seed=seed, num_failed=len(failures))


def _prepare(
    model: Story | Callable[..., Any],
    guide: Callable[..., Any] | None,
    arguments: tuple[Any, ...],
    device: torch.device | None,
) -> Pair:
    """Copy and start a pair: a story near the data, a bare pair as its parameters' own starts say."""
    if not isinstance(model, Story):
        return Pair(model, guide, arguments, device)
    try:
        return Pair.of_story(model, arguments[0])
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise InputError(f"data and priors do not fit together numerically; check their scale: {error}") from error


def _reporter(
    callback: ProgressCallback | None, restart: int, restarts: int, steps: int
) -> Callable[[int, float, float], None] | None:
    """Complete what the loop reports to what the callback takes."""
    if callback is None:
        return None
    return lambda step, value, rate: callback(Progress(restart, restarts, step, steps, value, rate))
