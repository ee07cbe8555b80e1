"""The ranked quantities: latents, deterministic sites and log-likelihood, at truths and at draws of fitted guides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pplgen.calibration.batched_pairs import BatchedPairs
from pplgen.errors import InputError
from pplgen.inference.log_joint import delta_guide, latent_sites, log_joint_at
from pplgen.posterior.relabelling import component_axes, match_components
from pplgen.story.pair import Pair

__all__ = ["LOG_LIKELIHOOD", "evaluate_quantities", "exchangeable_axes", "relabel_quantities"]

LOG_LIKELIHOOD = "log_likelihood"
"""Name of log p(x | theta) among the quantities."""
ROWS = 8
"""Number of rows whose latents are ranked."""


def evaluate_quantities(
    pairs: list[Pair], latents: dict[str, Tensor], num_draws: int, seed: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Evaluate every quantity at the true latents, and at draws of the fitted guides."""
    first, structure = pairs[0], pairs[0].structure
    with first.isolated():
        sites = latent_sites(first, (*structure.latent, *structure.deterministic))
    # the prior of a row latent may depend on enumerated latents, and is then part of the likelihood
    prior = structure.shared_latent if structure.enumerated else structure.latent

    def evaluate(values: dict[str, Tensor], data: tuple[Any, ...]) -> dict[str, Tensor]:
        guide = delta_guide({name: sites[name] for name in structure.latent}, values)
        trace = poutine.trace(poutine.replay(first.model, poutine.trace(guide).get_trace(*data))).get_trace(*data)
        quantities = {name: trace.nodes[name]["value"] for name in sites}
        log_likelihood = log_joint_at(first, guide, data) - trace.log_prob_sum(lambda name, _: name in prior)
        for name, site in sites.items():
            if (axis := site.axis_of(structure.row_plate)) is not None:
                quantities[name] = quantities[name].narrow(axis, 0, min(ROWS, quantities[name].shape[axis]))
        return {**quantities, LOG_LIKELIHOOD: log_likelihood}

    def draw(_: dict[str, Tensor], data: tuple[Any, ...]) -> dict[str, Tensor]:
        trace = poutine.trace(first.guide).get_trace(*data)
        return evaluate({name: trace.nodes[name]["value"] for name in structure.latent}, data)

    batch = BatchedPairs(pairs)
    single = {name: value[:, None] for name, value in latents.items()}
    truths = batch.evaluate(evaluate, single, num_draws=1, seed=seed)
    draws = batch.evaluate(draw, num_draws=num_draws, seed=seed)
    return {name: value[:, 0] for name, value in truths.items()}, draws


def exchangeable_axes(
    template: Pair, latents: Mapping[str, Tensor], exchangeable: Mapping[str, int] | None
) -> dict[str, tuple[int, ...]]:
    """Return component axes, counted from the end, as declared by the story or by the ``exchangeable`` option."""
    structure = template.structure
    if exchangeable is None:
        if template.story is None and structure.enumerated:
            raise InputError(
                f"{structure.enumerated[0]!r} is enumerated and its values may be exchangeable: give the component "
                "axis of each latent that has one, exchangeable={'mu': 0}, or {} if none are exchangeable"
            )
        return component_axes(template)
    for name, axis in exchangeable.items():
        if name not in latents or not 0 <= axis < latents[name].ndim - 1:
            raise InputError(f"exchangeable={dict(exchangeable)!r}: there is no latent {name!r} with an axis {axis}")
    return {name: (axis - latents[name].ndim + 1,) for name, axis in exchangeable.items()}


def relabel_quantities(
    truths: dict[str, Tensor], draws: dict[str, Tensor], axes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Match the components of each truth, and of each draw, to the draws of its fit."""
    if not axes:
        return truths, draws
    matched_truths, matched_draws = [], []
    for index in range(len(truths[LOG_LIKELIHOOD])):
        drawn = {name: value[index] for name, value in draws.items()}
        matched_truths.append(
            match_components({name: value[index, None] for name, value in truths.items()}, drawn, axes)
        )
        matched_draws.append(match_components(drawn, drawn, axes))
    return (
        {name: torch.cat([each[name] for each in matched_truths]) for name in truths},
        {name: torch.stack([each[name] for each in matched_draws]) for name in draws},
    )
