"""Train restarts as one batched program if the pair can be traced, else one by one in plain Pyro."""

from __future__ import annotations

import contextlib
import warnings
from dataclasses import dataclass

from torch import Tensor

from pplgen.compiler.inductor import use_writable_cache
from pplgen.compiler.traceable_pyro import NotTraceable
from pplgen.errors import DataWarning, InputError
from pplgen.inference.batched_restarts import train_together
from pplgen.inference.svi import train
from pplgen.inference.training_options import TrainingOptions
from pplgen.inference.training_result import Progress, ProgressCallback, StopReason, Training, best_first
from pplgen.storage.checkpoint import exists
from pplgen.story.isolation import seeded
from pplgen.story.pair import Pair
from pplgen.story.site_checks import invalid_draw
from pplgen.story.trial_runs import check_minibatch

__all__ = ["Trained", "train_restarts", "train_separate_data"]

MAX_STACKED = 2**27
"""Maximum number of entries of the data of all pairs in one program."""
MIN_STEPS_TO_TRACE = 100
"""Minimum number of steps, over all restarts, for which tracing takes less time than it saves."""


@dataclass
class Trained:
    """Results of all restarts."""

    results: list[Training | None]
    """One per started restart, ``None`` for a failed one."""
    path: str
    """Execution path, as in ``Fit.path``."""
    failure: InputError | None = None
    """Error of the first failed restart."""


def train_restarts(
    pairs: list[Pair], seeds: list[int], options: TrainingOptions, callback: ProgressCallback | None
) -> Trained:
    """Train all restarts, each pair in place; one whose draws leave the support of the model has failed.

    Raises
    ------
    InputError
        If minibatches cannot stand for all rows, or the directory contains a checkpoint of a traced graph, but the pair
        is trained in plain Pyro.
    KeyboardInterrupt
        If interrupted before any result.
    """
    _check_minibatch(pairs[0], options)
    trained = _trained(pairs, seeds, options, callback)
    while best := best_first([result for result in trained.results if result is not None])[:1]:
        index = next(i for i, result in enumerate(trained.results) if result is best[0])
        fault = _invalid(pairs[index], seeds[index], options)
        if fault is None:
            break
        trained.results[index] = None
        trained.failure = trained.failure or InputError(f"at the fitted parameters, {fault}")
    return trained


def train_separate_data(pairs: list[Pair], seeds: list[int], options: TrainingOptions) -> list[Training | None]:
    """Train pairs of the same structure, each on its own data, in place; ``None`` for one that has failed.

    They are one program if they can be traced, every step uses all rows, and their copies fit into memory; else they
    are trained one by one.

    Raises
    ------
    KeyboardInterrupt
        If interrupted: results of some pairs cannot stand for those of all.
    """
    results: list[Training | None] = [None] * len(pairs)
    entries = sum(value.numel() for pair in pairs for value in pair.data if isinstance(value, Tensor))
    same = len({tuple(getattr(value, "shape", ()) for value in pair.data) for pair in pairs}) == 1
    if same and options.batching.is_constant(pairs[0]) and options.compiler != "off" and entries <= MAX_STACKED:
        with contextlib.suppress(NotTraceable, InputError), seeded(seeds[0]):
            results, _ = train_together(pairs, options, seeds=seeds, own_data=True)
    for index, result in enumerate(results):
        if result is None:
            alone = train_restarts([pairs[index]], seeds[index : index + 1], options, None).results[0]
            if alone is not None and alone.stop is StopReason.INTERRUPTED:
                raise KeyboardInterrupt
            results[index] = alone
    return results


def _check_minibatch(pair: Pair, options: TrainingOptions) -> None:
    """Raise ``InputError`` if the rows of a step are not all, and cannot stand for all."""
    rows = pair.structure.row_axes.count(pair.data) or 0
    size = options.batching.batch_size or pair.num_rows // options.ranks.size
    if pair.structure.row_plate is not None and 1 <= size < rows:
        with pair.isolated():
            pair.check_amortised()
            check_minibatch(pair, size)


def _invalid(pair: Pair, seed: int, options: TrainingOptions) -> str | None:
    """Describe what Pyro would refuse of draws at the fitted parameters; the steps ran without validation."""
    with pair.isolated():
        batches, _ = options.batching.of(pair, seed=seed)
        return options.ranks.first_not_none(invalid_draw(pair.model, pair.guide, next(batches)))


def _trained(
    pairs: list[Pair], seeds: list[int], options: TrainingOptions, callback: ProgressCallback | None
) -> Trained:
    """Train all restarts over the traced graph, or else in plain Pyro."""
    use_writable_cache()
    num_steps = len(pairs) * options.steps
    if options.compiler == "off":
        reason = "compile='off'"
    elif options.optimiser.own is not None:
        reason = f"the optimiser is an object, {type(options.optimiser.own).__name__}"
    elif options.compiler == "auto" and num_steps < MIN_STEPS_TO_TRACE:
        reason = f"{num_steps} steps are too few to repay tracing"
    else:
        try:
            return _together(pairs, seeds, options, callback)
        except NotTraceable as error:
            reason = str(error)
            if options.checkpoint is not None:
                warnings.warn(f"no checkpoint is written, because plain Pyro runs: {reason}", DataWarning, stacklevel=3)
    directory = options.checkpoint and options.checkpoint.directory
    if directory and options.ranks.on_first_rank(lambda: exists(directory)):
        raise InputError(
            f"{str(directory)!r} holds a checkpoint, which plain Pyro cannot resume; plain Pyro runs: {reason}"
        )
    return _one_by_one(pairs, seeds, options, callback, reason)


def _together(
    pairs: list[Pair], seeds: list[int], options: TrainingOptions, callback: ProgressCallback | None
) -> Trained:
    """Train all restarts as one program over the traced graph."""
    rows, number = options.batching.batch_size or pairs[0].num_rows, len(pairs)

    def report(step: int, value: float, rate: float, doing: str) -> None:
        if callback:
            callback(Progress(number, number, step, options.steps, value, rate, rows * rate, doing))

    try:
        with seeded(seeds[0]):
            return Trained(*train_together(pairs, options, seeds=seeds, report=report))
    except InputError as error:  # another rank may have a result
        return Trained([None] * number, "the traced graph", error)


def _one_by_one(
    pairs: list[Pair],
    seeds: list[int],
    options: TrainingOptions,
    callback: ProgressCallback | None,
    reason: str,
) -> Trained:
    """Train one restart after the other in plain Pyro; an interrupt returns the results so far."""
    rows = options.batching.batch_size or pairs[0].num_rows
    trained = Trained([], f"plain Pyro: {reason}")
    for index, (pair, seed) in enumerate(zip(pairs, seeds, strict=True), start=1):

        def report(step: int, value: float, rate: float, index: int = index) -> None:
            if callback:
                callback(Progress(index, len(pairs), step, options.steps, value, rate, rows * rate, "plain Pyro"))

        try:
            with seeded(seed), pair.isolated():
                result: Training | None = train(pair, options, seed=seed, report=report)
        except InputError as error:
            result, trained.failure = None, trained.failure or error
        except KeyboardInterrupt:
            if not any(trained.results) or options.ranks.size > 1:
                raise
            break
        trained.results.append(result)
        if result is not None and result.stop is StopReason.INTERRUPTED:
            break
    return trained
