"""Simulated data sets: latents from the prior, data given them, and the requirement that there is a prior."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pplgen.compiler.vectorisation import map_draws
from pplgen.errors import InputError
from pplgen.inference.log_joint import delta_guide, latent_sites, log_joint_at
from pplgen.story.base import Story
from pplgen.story.conditioning import unconditioned
from pplgen.story.isolation import copy_pair
from pplgen.story.pair import Pair

__all__ = ["Simulated", "Simulator", "observed_sites", "require_fixed_prior", "require_prior", "simulate_datasets"]

Simulator = Story | Callable[..., Any]
Simulated = tuple[dict[str, Tensor], list[tuple[Any, ...]]]
"""Latents, shape ``(num_datasets, ...)`` each, and the arguments of each data set."""


@torch.no_grad()
def simulate_datasets(template: Pair, simulator: Simulator, num_datasets: int, num_rows: int) -> Simulated:
    """Draw latents from the prior, and a data set given each draw."""
    arguments = template.data
    copied: Any = copy_pair(simulator, None)[0]
    if (template.story is None) is isinstance(simulator, Story):
        raise InputError("simulator: expected a Story for a Story, and a Pyro model for a bare model")

    def from_story(_: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        trace = poutine.trace(copied.model).get_trace(None, num_rows=num_rows)
        return _latents(trace, template), {"0": trace.nodes["_RETURN"]["value"]}

    def from_model(_: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        trace = poutine.trace(unconditioned(copied)).get_trace(*arguments)
        return _latents(trace, template), {index: trace.nodes[name]["value"] for index, name in sites.items()}

    with template.isolated():
        sites = {} if template.story else observed_sites(poutine.trace(copied).get_trace(*arguments), arguments)
        latents, observed = map_draws(from_story if template.story else from_model, num_datasets)
    datasets = [
        tuple(observed[str(i)][s] if str(i) in observed else value for i, value in enumerate(arguments))
        for s in range(num_datasets)
    ]
    return latents, datasets


def _latents(trace: poutine.Trace, template: Pair) -> dict[str, Tensor]:
    """Return the simulator's values of the fitted model's latents."""
    for name in template.structure.latent:
        if name not in trace.nodes:
            raise InputError(f"simulator: it has no sample site {name!r}, which is a latent of the model")
    return {name: trace.nodes[name]["value"] for name in template.structure.latent}


def observed_sites(trace: poutine.Trace, arguments: tuple[Any, ...]) -> dict[str, str]:
    """Map indices of arguments to the observed sites whose values they are."""
    sites = {}
    for name in trace.observation_nodes:
        node = trace.nodes[name]
        if node["infer"].get("_deterministic"):
            continue
        if not node["value"].numel():
            raise InputError(f"site {name!r}: a pyro.factor cannot be simulated")
        matching = [index for index, value in enumerate(arguments) if value is node["value"]]
        if not matching:
            raise InputError(f"observed site {name!r}: expected one of the arguments as its value, to be simulated")
        sites[str(matching[0])] = name
    return sites


@torch.no_grad()
def require_prior(template: Pair) -> None:
    """Raise ``InputError`` unless all unknowns of the model have a prior."""
    if template.structure.guide_enumerated:
        raise InputError("calibration by refitting needs a guide without enumerated sites")
    with template.isolated():
        trace = poutine.trace(template.model).get_trace(*template.data)
    if params := sorted(name for name, node in trace.nodes.items() if node["type"] == "param"):
        raise InputError(
            f"the model has learnable parameters, such as {params[0]!r}, without a prior to draw them from; "
            "for a latent-variable story, fit it and calibrate the fit"
        )


@torch.no_grad()
def require_fixed_prior(template: Pair, pairs: list[Pair], latents: Mapping[str, Tensor]) -> None:
    """Raise ``InputError`` if a story's prior depends on its rows, since its latents are then not drawn from it."""
    for index, pair in enumerate(pairs):
        values = {name: value[index] for name, value in latents.items()}
        before, after = (_log_joint(each, values, pair.data) for each in (template, pair))
        if not torch.allclose(before, after, rtol=1e-4, atol=1e-2):
            name = type(template.story).__name__
            raise InputError(f"{name} takes a prior from its rows, which no option fixes, so it cannot be simulated")


def _log_joint(pair: Pair, values: dict[str, Tensor], data: tuple[Any, ...]) -> Tensor:
    """Return log p(x, theta) under a pair's model."""
    with pair.isolated(), pyro.validation_enabled(False):
        return log_joint_at(pair, delta_guide(latent_sites(pair, pair.structure.latent), values), data)
