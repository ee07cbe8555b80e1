"""Which axes of latents are exchangeable components: permuting them leaves log p(x, theta) unchanged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pplgen.compiler.graph import resample_rows
from pplgen.inference.log_joint import delta_guide, latent_sites, log_joint_at
from pplgen.posterior.model_traces import model_trace
from pplgen.posterior.relabelling import LABELS
from pplgen.story.isolation import seeded
from pplgen.story.pair import Pair

__all__ = ["axes_of_components", "exchangeable", "is_invariant"]

NUM_TRIALS = 3
"""Draws of the guide, and of the prior, at which latents are transformed."""
ROUNDING = 100
"""Relative tolerance when comparing log densities, in units of machine epsilon."""

Values = dict[str, Tensor]


def exchangeable(pair: Pair, sites: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Component axes of draws, counted from the end, whose permutation leaves log p(x, theta) unchanged.

    A story declares candidates by dimension names; of a bare pair they are the first axis as long as the enumerated
    latent's support, or all such axes, as in a transition matrix. log p(x, theta) must be equal, up to rounding, under
    their permutations: components with different fixed probabilities or priors are not exchangeable. Call it inside
    ``pair.isolated``.
    """
    nodes = model_trace(pair).nodes
    shared = {name: nodes[name]["value"][None] for name in pair.structure.shared_latent}
    for every in (False, True) if pair.story is None else (False,):
        axes, moved = (axes_of_components(pair, each, every) for each in (sites, shared))
        if axes and all(
            is_invariant(pair, partial(_permuted, permute, moved)) for permute in (_rolled, _first_two_swapped)
        ):
            return {name: tuple(axis - sites[name].ndim for axis in along) for name, along in axes.items()}
    return {}


def axes_of_components(pair: Pair, sites: Mapping[str, Tensor], every: bool = False) -> dict[str, list[int]]:
    """Component axes of each site's draws; for a bare pair, the first or all as long as an enumerated support."""
    if pair.story is None:
        nodes = model_trace(pair).nodes
        lengths = {len(nodes[name]["fn"].enumerate_support(expand=False)) for name in pair.structure.enumerated} - {1}
        candidates = {n: range(1, v.ndim if every else min(2, v.ndim)) for n, v in sites.items()}
        matching = {n: [axis for axis in candidates[n] if v.shape[axis] in lengths] for n, v in sites.items()}
        return {name: axes for name, axes in matching.items() if axes}
    component_axes = {}
    for name in sites:
        dims = pair.story.dims.get(name, ())
        axes = [1 + axis for axis, dim in enumerate(dims) if dim.removeprefix("next_") in LABELS]
        if axes and sites[name].ndim == len(dims) + 1 and sites[name].shape[axes[0]] > 1:
            component_axes[name] = axes
    return component_axes


def is_invariant(pair: Pair, transform: Callable[[Values], Values]) -> bool:
    """Whether log p(x, theta) is equal, up to rounding, at transformed latents: at draws of the guide and the prior.

    It must be so for the pair's rows and for others, drawn from them with replacement: rows may happen to be symmetric.
    Call it inside ``pair.isolated``.
    """
    names = pair.structure.latent
    with seeded(0), torch.no_grad(), pyro.validation_enabled(False):
        sites = latent_sites(pair, names)
        for function in (pair.guide, pair.model) * NUM_TRIALS:
            trace = poutine.trace(function).get_trace(*pair.data)
            values = {name: trace.nodes[name]["value"] for name in names}
            transformed = transform(values)
            for data in (pair.data, resample_rows(pair.data, pair.structure.row_axes)):
                before, after = (_joint(pair, delta_guide(sites, each), data) for each in (values, transformed))
                rounding = ROUNDING * torch.finfo(before.dtype).eps
                if not torch.isclose(after, before, rtol=rounding, atol=rounding, equal_nan=True):
                    return False
    return True


def _permuted(permute: Callable[[Tensor, list[int]], Tensor], axes: Mapping[str, list[int]], values: Values) -> Values:
    """Permute the components of latents along axes that are counted with one of draws before them."""
    return {name: permute(value, axes.get(name, [])) for name, value in values.items()}


def _joint(pair: Pair, guide: Callable[..., None], data: tuple[Any, ...]) -> Tensor:
    with seeded(0):  # the same subsample of rows each time
        return log_joint_at(pair, guide, data)


def _rolled(value: Tensor, axes: list[int]) -> Tensor:
    for axis in axes:
        value = value.roll(1, axis - 1)
    return value


def _first_two_swapped(value: Tensor, axes: list[int]) -> Tensor:
    for axis in axes:
        order = torch.tensor([1, 0, *range(2, value.shape[axis - 1])], device=value.device)
        value = value.index_select(axis - 1, order)
    return value
