"""Trials of a calibration: simulated data sets, a fit to each, and draws of the fits next to the truths."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pplgen.calibration.fixed_priors import fix_priors
from pplgen.calibration.quantities import evaluate_quantities, exchangeable_axes, relabel_quantities
from pplgen.calibration.replication import replicated_datasets, untrained_copy
from pplgen.calibration.simulation import Simulator, require_fixed_prior, require_prior, simulate_datasets
from pplgen.compiler.traceable_pyro import NotTraceable
from pplgen.data.columns import unnamed_columns
from pplgen.distributed.ranks import Ranks
from pplgen.errors import InputError
from pplgen.inference.batched_restarts import Report, train_together
from pplgen.inference.model_arguments import bare_arguments, read_rows
from pplgen.inference.optimisers import Optimiser
from pplgen.inference.training_options import TrainingOptions
from pplgen.inference.training_result import StopReason, Training, best_first
from pplgen.posterior.parameter_names import entry_names
from pplgen.story.base import Story
from pplgen.story.isolation import seeded
from pplgen.story.pair import Pair

__all__ = ["Settings", "Study", "Trials", "posterior_study", "prior_study", "run_trials"]

FINAL_RATE = 0.05
"""Final learning rate relative to the initial one, so that fits converge within their steps."""
DEFAULT_ROWS = 100
"""Default number of rows of a data set that is simulated from the prior."""
COMPARED = 5
"""Number of data sets on which the prior before and after initialisation is compared."""


@dataclass(frozen=True)
class Settings:
    """Options of ``pplgen.calibrate``; ``num_draws`` is its ``draws``."""

    num_datasets: int
    num_rows: int | None
    num_draws: int
    restarts: int
    steps: int
    learning_rate: float
    seed: int
    simulator: Simulator | None
    exchangeable: Mapping[str, int] | None

    @property
    def seeds(self) -> list[int]:
        """Seeds of the simulation, of draws, and of each restart of each fit."""
        count = self.num_datasets * self.restarts + 2
        draws, simulation, *fits = np.random.SeedSequence(self.seed).generate_state(count).tolist()
        return [simulation, draws, *fits]


@dataclass(frozen=True)
class Trials:
    """Truths and draws of simulated data sets."""

    truths: dict[str, Tensor]
    """True quantities of each data set, shape ``(num_datasets, ...)`` each."""
    draws: dict[str, Tensor]
    """Draws of the quantities from each fit, shape ``(num_datasets, num_draws, ...)`` each."""
    names: Mapping[str, list[str]]
    """Names of the scalars of each quantity."""
    stops: tuple[StopReason, ...]
    """Why each fit stopped."""
    num_failed: int
    """Number of fits that broke down and are left out."""
    path: str
    """How the fits were run."""


@dataclass(frozen=True)
class Study:
    """Simulated data sets with their true latents, and the pair that is fitted to each."""

    template: Pair
    """A pair on data of their shapes."""
    refit: Callable[[tuple[Any, ...]], Pair]
    """Makes a new pair on the arguments of a data set."""
    latents: dict[str, Tensor]
    """True latents, shape ``(num_datasets, ...)`` each."""
    datasets: list[tuple[Any, ...]]
    columns: tuple[str, ...] = ()
    """Names of the columns of a story's rows."""


def prior_study(model: Simulator, guide: Callable[..., Any] | None, data: Any, settings: Settings) -> Study:
    """Simulate data sets from the prior; arguments as for ``pplgen.calibrate``."""
    num_rows = DEFAULT_ROWS if settings.num_rows is None else settings.num_rows
    columns: tuple[str, ...] = ()
    with seeded(settings.seeds[0]):
        if isinstance(model, Story):
            table = None if data is None else read_rows(model, data)
            model = fix_priors(model, None if table is None else table.values)
            template = Pair.of_story(model, model.simulate(num_rows), initialise=False)
            columns = unnamed_columns(template.data[0].shape[-1]) if table is None else table.columns
        else:
            template = Pair(model, guide, bare_arguments(data, None, model, guide))
        require_prior(template)
        simulator = model if settings.simulator is None else settings.simulator
        latents, datasets = simulate_datasets(template, simulator, settings.num_datasets, num_rows)

    def refit(arguments: tuple[Any, ...]) -> Pair:
        return Pair.of_story(model, arguments[0]) if isinstance(model, Story) else Pair(model, guide, arguments)

    return Study(template, refit, latents, datasets, columns)


def posterior_study(pair: Pair, columns: tuple[str, ...], settings: Settings) -> Study:
    """Simulate rows from a fit's posterior, and join them to its own."""
    require_prior(pair)
    with seeded(settings.seeds[0]), pair.isolated():
        latents, datasets = replicated_datasets(pair, settings.num_datasets, settings.num_rows)
    template = untrained_copy(pair, datasets[0])
    return Study(template, partial(untrained_copy, pair), latents, datasets, columns)


def run_trials(study: Study, settings: Settings, *, report: Report | None, ranks: Ranks) -> Trials:
    """Fit the data sets of a study, and draw. Each of ``ranks`` fits some of them."""
    num_datasets, restarts, template = settings.num_datasets, settings.restarts, study.template
    _, draws_seed, *seeds = settings.seeds
    axes = exchangeable_axes(template, study.latents, settings.exchangeable)
    local = list(range(ranks.rank, num_datasets, ranks.size))
    latents = {name: value[local] for name, value in study.latents.items()}
    seeds = [seeds[index * restarts + restart] for index in local for restart in range(restarts)]
    pairs = []
    for index, pair_seed in enumerate(seeds):
        with seeded(pair_seed):
            pairs.append(study.refit(study.datasets[local[index // restarts]]))
    if template.story is not None:
        require_fixed_prior(template, pairs[::restarts][:COMPARED], latents)
    try:
        runs, path = _train(pairs, seeds, settings, report, alone=ranks.size == 1)
        best = [_best_restart(range(first, first + restarts), runs) for first in range(0, len(pairs), restarts)]
        succeeded = [index for index, restart in enumerate(best) if restart is not None]
        true_latents = {name: value[succeeded] for name, value in latents.items()}
        fitted = [pairs[index] for index in best if index is not None]
        seed = draws_seed + ranks.rank
        evaluated = evaluate_quantities(fitted, true_latents, settings.num_draws, seed) if fitted else None
    except NotTraceable as reason:
        raise InputError(f"calibration runs all fits as one program, and the pair cannot be traced: {reason}") from None
    gathered = ranks.all_gather((evaluated, [runs[index].stop for index in best if index is not None]))
    stops = tuple(stop for _, of_rank in gathered for stop in of_rank)
    if len(stops) < 2:
        raise InputError(f"{num_datasets - len(stops)} of {num_datasets} fits broke down; ranks need at least two fits")
    results = [of_rank for of_rank, _ in gathered if of_rank]
    truths, draws = ({name: torch.cat([each[i][name] for each in results]) for name in results[0][i]} for i in (0, 1))
    truths, draws = relabel_quantities(truths, draws, axes)
    for name in template.story.auxiliary if template.story else ():
        truths.pop(name, None)
    names = entry_names({name: value.shape[1:] for name, value in truths.items()}, template.story, study.columns)
    return Trials(truths, draws, names, stops, num_datasets - len(stops), path)


def _train(
    pairs: list[Pair], seeds: list[int], settings: Settings, report: Report | None, *, alone: bool
) -> tuple[dict[int, Training], str]:
    """Fit all pairs; return the runs that did not break down, by index, and how they were run.

    With several ranks (not ``alone``), one rank may have no such run.
    """
    with pairs[0].isolated():
        learns = bool(pairs[0].snapshot())
    if not learns:
        untrained = Training(0, np.empty(0), 0.0, 0.0, StopReason.CONVERGED)
        return dict.fromkeys(range(len(pairs)), untrained), "a guide without parameters"
    options = TrainingOptions(
        settings.steps, Optimiser(settings.learning_rate, decay=FINAL_RATE ** (1 / settings.steps))
    )
    try:
        with seeded(seeds[0]):
            runs, path = train_together(pairs, options, seeds=seeds, report=report, own_data=True)
    except InputError:
        if alone:
            raise
        return {}, "the traced graph"
    return {index: run for index, run in enumerate(runs) if run and not run.failed}, path


def _best_restart(indices: Iterable[int], runs: Mapping[int, Training]) -> int | None:
    """Return the index of the run with the best ELBO, ``None`` if all broke down."""
    done = {index: runs[index] for index in indices if index in runs}
    best = next(iter(best_first(done.values())), None)
    return next((index for index, run in done.items() if run is best), None)
