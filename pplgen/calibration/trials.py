"""Simulated data sets, a fit to each, and draws of the fits beside the truths: one batched program."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from torch import Tensor

from pplgen.calibration.ensemble import Ensemble
from pplgen.calibration.fixed_priors import with_fixed_priors
from pplgen.compiler.tracing import NotTraceable
from pplgen.compiler.vectorised import map_draws
from pplgen.data.columns import unnamed_columns
from pplgen.distributed.ranks import Ranks
from pplgen.errors import InputError
from pplgen.inference.arguments import bare_arguments, read_rows
from pplgen.inference.log_joint import delta_guide, latent_sites, log_joint_at
from pplgen.inference.options import Adam, TrainingOptions
from pplgen.inference.restarts import Report, train_together
from pplgen.inference.training import StopReason, Training
from pplgen.posterior.parameter_names import entry_names
from pplgen.posterior.relabelling import component_axes, match_components
from pplgen.story.base import Story
from pplgen.story.isolation import copy_pair, seeded
from pplgen.story.pair import Pair

__all__ = ["LOG_LIKELIHOOD", "Trials", "run_trials"]

LOG_LIKELIHOOD = "log_likelihood"
"""Name of log p(x | theta) among the quantities."""
ROWS = 8
"""Rows of which latents of single rows are ranked."""
SLOWED = 0.05
"""Factor by which learning rates have fallen at the last step, so that fits are done by then, at a plateau or not."""
COMPARED = 5
"""Data sets of which priors are compared before and after a story has seen them."""


@dataclass(frozen=True)
class Trials:
    """What was simulated and what was found."""

    truths: dict[str, Tensor]
    """Quantities behind each data set, shape ``(num_datasets, ...)`` each."""
    draws: dict[str, Tensor]
    """The fits' draws of them, shape ``(num_datasets, num_draws, ...)`` each."""
    names: Mapping[str, list[str]]
    """Of every number of each quantity."""
    stops: tuple[StopReason, ...]
    """Why each fit stopped."""
    num_failed: int
    """Fits that broke down, and are left out."""
    path: str
    """What ran."""


Simulator = Story | Callable[..., Any]
Simulated = tuple[dict[str, Tensor], list[tuple[Any, ...]]]
"""Latents, shape ``(num_datasets, ...)`` each, and the arguments of each data set."""


def run_trials(
    model: Simulator,
    guide: Callable[..., Any] | None,
    data: Any,
    *,
    num_datasets: int,
    num_rows: int,
    num_draws: int,
    restarts: int,
    steps: int,
    learning_rate: float,
    seed: int,
    simulator: Simulator | None,
    exchangeable: Mapping[str, int] | None,
    report: Callable[[int, float, float, str], None] | None,
    ranks: Ranks,
) -> Trials:
    """Simulate, fit and draw; arguments as of ``pplgen.calibrate``. Each of ``ranks`` fits some of the data sets."""
    draws_seed, simulation_seed, *seeds = (
        np.random.SeedSequence(seed).generate_state(num_datasets * restarts + 2).tolist()
    )
    columns: tuple[str, ...] = ()
    with seeded(simulation_seed):
        if isinstance(model, Story):
            given = None if data is None else read_rows(model, data)
            model = with_fixed_priors(model, None if given is None else given.values)
            template = Pair.of_story(model, model.simulate(num_rows), initialise=False)
            columns = unnamed_columns(template.data[0].shape[-1]) if given is None else given.columns
        else:
            template = Pair(model, guide, bare_arguments(data, None, model, guide))
        _require_prior(template)
        latents, sets = _simulate(template, model if simulator is None else simulator, num_datasets, num_rows)
    axes = _axes(template, latents, exchangeable)
    mine = list(range(ranks.rank, num_datasets, ranks.size))
    latents, sets = {name: value[mine] for name, value in latents.items()}, [sets[index] for index in mine]
    seeds = [seeds[index * restarts + start] for index in mine for start in range(restarts)]
    pairs = []
    for index, own_seed in enumerate(seeds):
        own = sets[index // restarts]
        with seeded(own_seed):
            pairs.append(Pair.of_story(model, own[0]) if isinstance(model, Story) else Pair(model, guide, own))
    if isinstance(model, Story):
        _require_same_prior(template, pairs[::restarts][:COMPARED], latents)
    try:
        runs, path = _train(pairs, seeds, steps, learning_rate, report, alone=ranks.size == 1)
        best = [_best(range(first, first + restarts), runs) for first in range(0, len(pairs), restarts)]
        kept = [index for index, chosen in enumerate(best) if chosen is not None]
        drawn_from = {name: value[kept] for name, value in latents.items()}
        done = [pairs[index] for index in best if index is not None]
        measured = _measured(done, drawn_from, num_draws, draws_seed + ranks.rank) if done else None
    except NotTraceable as reason:
        raise InputError(f"calibration runs all fits as one program, and the pair has no graph: {reason}") from None
    every = ranks.all_gather((measured, [runs[index].stop for index in best if index is not None]))
    stops = tuple(stop for _, own in every for stop in own)
    if len(stops) < 2:
        raise InputError(f"{num_datasets - len(stops)} of {num_datasets} fits broke down, so there are none to rank")
    found = [own for own, _ in every if own]
    truths, draws = ({name: torch.cat([own[i][name] for own in found]) for name in found[0][i]} for i in (0, 1))
    truths, draws = _relabelled(truths, draws, axes)
    for name in template.story.auxiliary if template.story else ():
        truths.pop(name, None)
    names = entry_names({name: value.shape[1:] for name, value in truths.items()}, template.story, columns)
    return Trials(truths, draws, names, stops, num_datasets - len(stops), path)


@torch.no_grad()
def _simulate(template: Pair, simulator: Simulator, num_datasets: int, num_rows: int) -> Simulated:
    """Draw latents from the prior, and data sets given them."""
    arguments = template.data
    own: Any = copy_pair(simulator, None)[0]
    if (template.story is None) is isinstance(simulator, Story):
        raise InputError("simulator: data sets of a Story come from a Story, and those of a bare model from a model")

    def of_story(_: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        trace = poutine.trace(own.model).get_trace(None, num_rows=num_rows)
        return _latents(trace, template), {"0": trace.nodes["_RETURN"]["value"]}

    def of_model(_: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        trace = poutine.trace(poutine.uncondition(own)).get_trace(*arguments)
        return _latents(trace, template), {place: trace.nodes[name]["value"] for place, name in places.items()}

    with template.isolated():
        places = {} if template.story else _places(poutine.trace(own).get_trace(*arguments), arguments)
        latents, observed = map_draws(of_story if template.story else of_model, num_datasets)
    sets = [
        tuple(observed[str(i)][s] if str(i) in observed else value for i, value in enumerate(arguments))
        for s in range(num_datasets)
    ]
    return latents, sets


def _latents(trace: poutine.Trace, template: Pair) -> dict[str, Tensor]:
    """Values that a simulator has drawn for the latents of the model that is fitted."""
    for name in template.structure.latent:
        if name not in trace.nodes:
            raise InputError(f"simulator: it draws no site {name!r}, which the model has")
    return {name: trace.nodes[name]["value"] for name in template.structure.latent}


def _places(trace: poutine.Trace, arguments: tuple[Any, ...]) -> dict[str, str]:
    """Find which arguments are values of which observed sites."""
    places = {}
    for name in trace.observation_nodes:
        node = trace.nodes[name]
        if node["infer"].get("_deterministic"):
            continue
        if not node["value"].numel():
            raise InputError(f"site {name!r}: pyro.factor says of no data set how it comes about")
        matching = [index for index, value in enumerate(arguments) if value is node["value"]]
        if not matching:
            raise InputError(f"observed site {name!r}: expected one of the arguments as its value, to be simulated")
        places[str(matching[0])] = name
    return places


@torch.no_grad()
def _require_prior(template: Pair) -> None:
    """Refuse a pair whose latents do not all come from a prior."""
    if template.structure.guide_enumerated:
        raise InputError("calibration by refitting needs a guide that enumerates nothing itself")
    with template.isolated():
        trace = poutine.trace(template.model).get_trace(*template.data)
    if learned := sorted(name for name, node in trace.nodes.items() if node["type"] == "param"):
        raise InputError(
            f"the model has parameters that are learned, such as {learned[0]!r}, and no prior to draw them from; "
            "for a story with codes fit it, and calibrate the fit"
        )


@torch.no_grad()
def _require_same_prior(template: Pair, pairs: list[Pair], latents: Mapping[str, Tensor]) -> None:
    """Refuse a story that takes its prior from the rows, for then nothing is drawn from the prior that is fitted."""
    for index, pair in enumerate(pairs):
        values = {name: value[index] for name, value in latents.items()}
        before, after = (_joint(each, values, pair.data) for each in (template, pair))
        if not torch.allclose(before, after, rtol=1e-4, atol=1e-2):
            name = type(template.story).__name__
            raise InputError(
                f"{name} takes a prior from its rows, which no option settles, so it has none to draw from"
            )


def _joint(pair: Pair, values: dict[str, Tensor], data: tuple[Any, ...]) -> Tensor:
    """Return log p(x, theta) under a pair's model."""
    with pair.isolated(), pyro.validation_enabled(False):
        return log_joint_at(pair, delta_guide(latent_sites(pair, pair.structure.latent), values), data)


def _axes(template: Pair, latents: Mapping[str, Tensor], given: Mapping[str, int] | None) -> dict[str, tuple[int, ...]]:
    """Return the axes of components, as the story names them or as they are given."""
    structure = template.structure
    if given is None:
        if template.story is None and structure.enumerated:
            raise InputError(
                f"{structure.enumerated[0]!r} is summed out, and its values may swap names: say along which axis of "
                "which latents they lie, exchangeable={'mu': 0}, or {} where each has a name of its own"
            )
        return component_axes(template)
    for name, axis in given.items():
        if name not in latents or not 0 <= axis < latents[name].ndim - 1:
            raise InputError(f"exchangeable={dict(given)!r}: there is no latent {name!r} with an axis {axis}")
    return {name: (axis - latents[name].ndim + 1,) for name, axis in given.items()}


def _train(
    pairs: list[Pair], seeds: list[int], steps: int, learning_rate: float, report: Report | None, *, alone: bool
) -> tuple[dict[int, Training], str]:
    """Fit all pairs; return the runs that did not break down, by number, and what ran.

    Of several ranks (not ``alone``) one may have no such run, for others may.
    """
    with pairs[0].isolated():
        learns = bool(pairs[0].snapshot())
    if not learns:
        nothing = Training(0, np.empty(0), 0.0, 0.0, StopReason.CONVERGED)
        return dict.fromkeys(range(len(pairs)), nothing), "a guide without parameters"
    options = TrainingOptions(steps, Adam(learning_rate, decay=SLOWED ** (1 / steps)))
    try:
        with seeded(seeds[0]):
            runs, path = train_together(pairs, options, seeds=seeds, report=report, own_data=True)
    except InputError:
        if alone:
            raise
        return {}, "the traced graph"
    return {index: run for index, run in enumerate(runs) if run and not run.broke_down}, path


def _best(indices: Iterable[int], runs: Mapping[int, Training]) -> int | None:
    """Return which of some runs ended with the best ELBO, ``None`` where all broke down."""
    return max((index for index in indices if index in runs), key=lambda index: runs[index].rank, default=None)


def _measured(
    pairs: list[Pair], latents: dict[str, Tensor], num_draws: int, seed: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Evaluate every quantity at the truths, and at draws of the fitted guides."""
    first, structure = pairs[0], pairs[0].structure
    with first.isolated():
        sites = latent_sites(first, (*structure.latent, *structure.deterministic))
    # a latent's prior may depend on what is summed out: it stays a part of the density then
    prior = structure.shared_latent if structure.enumerated else structure.latent

    def measure(values: dict[str, Tensor], data: tuple[Any, ...]) -> dict[str, Tensor]:
        guide = delta_guide({name: sites[name] for name in structure.latent}, values)
        trace = poutine.trace(poutine.replay(first.model, poutine.trace(guide).get_trace(*data))).get_trace(*data)
        found = {name: trace.nodes[name]["value"] for name in sites}
        density = log_joint_at(first, guide, data) - trace.log_prob_sum(lambda name, _: name in prior)
        for name, site in sites.items():
            if (axis := site.axis_of(structure.row_plate)) is not None:
                found[name] = found[name].narrow(axis, 0, min(ROWS, found[name].shape[axis]))
        return {**found, LOG_LIKELIHOOD: density}

    def draw(_: dict[str, Tensor], data: tuple[Any, ...]) -> dict[str, Tensor]:
        trace = poutine.trace(first.guide).get_trace(*data)
        return measure({name: trace.nodes[name]["value"] for name in structure.latent}, data)

    ensemble = Ensemble(pairs)
    once = {name: value[:, None] for name, value in latents.items()}
    truths = ensemble.evaluate(measure, once, num_draws=1, seed=seed)
    draws = ensemble.evaluate(draw, num_draws=num_draws, seed=seed)
    return {name: value[:, 0] for name, value in truths.items()}, draws


def _relabelled(
    truths: dict[str, Tensor], draws: dict[str, Tensor], axes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Match the components of each truth, and of each draw alike, to the draws of its fit."""
    if not axes:
        return truths, draws
    own, theirs = [], []
    for index in range(len(truths[LOG_LIKELIHOOD])):
        drawn = {name: value[index] for name, value in draws.items()}
        own.append(match_components({name: value[index, None] for name, value in truths.items()}, drawn, axes))
        theirs.append(match_components(drawn, drawn, axes))
    return (
        {name: torch.cat([each[name] for each in own]) for name in truths},
        {name: torch.stack([each[name] for each in theirs]) for name in draws},
    )
