"""Checks of mixture components and regimes: duplicates and label switching."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pplgen.checks.check import Check, Verdict, not_applicable
from pplgen.checks.inputs import CheckInputs
from pplgen.inference.log_joint import delta_guide, latent_sites, log_joint_at
from pplgen.posterior import relabelling
from pplgen.story.isolation import seeded

__all__ = ["duplicate_components", "exchangeable", "label_switching"]

AXES = ("component", "regime")
"""Dimension names whose order is arbitrary."""
WEIGHTS = {"weights", "pi", "P", "sticks", "alpha"}
"""Sites of component frequencies, which do not identify a component."""
ALIKE = 2.0
"""Two components are duplicates if all parameters differ by less than this, in posterior standard deviations."""
NUM_TRIALS = 3
"""Draws of the guide, and of the prior, at which component labels are permuted."""
ROUNDING = 100
"""Relative tolerance when comparing log densities, in units of machine epsilon."""
MAX_SWITCHED = 0.01
"""Largest accepted fraction of label-switched draws."""


def duplicate_components(inputs: CheckInputs) -> Check:
    """Count duplicate components: all parameter means within ``ALIKE`` standard deviations of the difference."""
    name, source = "duplicate components", "Fruehwirth-Schnatter 2006"
    sites = _sites(inputs)
    if isinstance(sites, str):
        return not_applicable(name, source, sites)
    parameters = _flattened(sites, _axes(inputs, sites)).double()
    mean, variance = parameters.mean(0), parameters.var(0)
    distance = (mean[:, None] - mean[None]).abs() / (variance[:, None] + variance[None]).clamp_min(1e-24).sqrt()
    same = (distance.amax(-1) < ALIKE).triu(1)
    pairs = [f"{j} and {k}" for j, k in same.nonzero().tolist()]
    value = int(same.any(0).sum())
    if not value:
        return Check(name, value, 0, source, Verdict.PASS)
    finding = f"{', '.join(pairs[:4])} are equal within posterior uncertainty"
    remedy = f"{finding}: {mean.shape[0] - value} components suffice, or the data cannot identify more"
    return Check(name, value, 0, source, Verdict.WARN, remedy)


def label_switching(inputs: CheckInputs) -> Check:
    """Fraction of draws whose components match the posterior means best in a different order."""
    name, source = "label-switched draws (fraction)", "Stephens 2000"
    sites = _sites(inputs)
    if isinstance(sites, str):
        return not_applicable(name, source, sites)
    axes = exchangeable(inputs, sites)
    if not axes:
        return not_applicable(name, source, "components are not exchangeable: permuting them changes the density")
    ordered = relabelling.match_components(sites, sites, axes)
    moved = [(ordered[n] != sites[n]).reshape(len(sites[n]), -1).any(1) for n in axes]
    value = float(torch.stack(moved).any(0).double().mean())
    if value <= MAX_SWITCHED:
        return Check(name, value, MAX_SWITCHED, source, Verdict.PASS)
    remedy = "posterior means average over several components: relabel draws before averaging, or order the components"
    return Check(name, value, MAX_SWITCHED, source, Verdict.WARN, f"{remedy}; use fewer if some are duplicates")


def exchangeable(inputs: CheckInputs, sites: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Component axes of draws, counted from the end, whose permutation leaves log p(x, theta) unchanged.

    A story declares candidates by dimension names; of a bare pair they are the first axis as long as the enumerated
    latent's support, or all such axes, as in a transition matrix. log p(x, theta) must be equal, up to rounding, under
    their permutations: components with different fixed probabilities or priors are not exchangeable.
    """
    candidates = (False, True) if inputs.story is None else (False,)
    axes = _axes(inputs, sites)
    if axes:
        invariant = next((every for every in candidates if _is_permutation_invariant(inputs, every)), None)
        axes = {} if invariant is None else _axes(inputs, sites, invariant)
    return {name: tuple(axis - sites[name].ndim for axis in axes[name]) for name in axes}


def _is_permutation_invariant(inputs: CheckInputs, every: bool) -> bool:
    """Whether the density is unchanged under two generators of all permutations, at draws of guide and prior."""
    pair = inputs.pair
    names = pair.structure.latent
    with seeded(0), torch.no_grad(), pyro.validation_enabled(False):
        sites = latent_sites(pair, names)
        for function in (pair.guide, pair.model) * NUM_TRIALS:
            trace = poutine.trace(function).get_trace(*pair.data)
            values = {name: trace.nodes[name]["value"] for name in names}
            axes = _axes(inputs, {name: values[name][None] for name in pair.structure.shared_latent}, every)
            for permute in (_rolled, _first_two_swapped):
                permuted = {name: permute(value, axes.get(name, [])) for name, value in values.items()}
                before, after = (_joint(inputs, delta_guide(sites, each)) for each in (values, permuted))
                rounding = ROUNDING * torch.finfo(before.dtype).eps
                if not torch.isclose(after, before, rtol=rounding, atol=rounding, equal_nan=True):
                    return False
    return True


def _joint(inputs: CheckInputs, guide: Callable[..., None]) -> Tensor:
    with seeded(0):  # the same subsample of rows each time
        return log_joint_at(inputs.pair, guide, inputs.pair.data)


def _rolled(value: Tensor, axes: list[int]) -> Tensor:
    for axis in axes:
        value = value.roll(1, axis - 1)
    return value


def _first_two_swapped(value: Tensor, axes: list[int]) -> Tensor:
    for axis in axes:
        order = torch.tensor([1, 0, *range(2, value.shape[axis - 1])], device=value.device)
        value = value.index_select(axis - 1, order)
    return value


def _sites(inputs: CheckInputs) -> dict[str, Tensor] | str:
    """Return the draws of sites that identify components, or why there are none."""
    if inputs.why_no_shared:
        return inputs.why_no_shared
    if "sticks" in inputs.structure.latent:
        return "surplus components are part of the story, and follow the prior"
    sites = {n: v for n, v in inputs.weighted.sites.items() if n not in WEIGHTS}
    return sites if _axes(inputs, sites) else "no shared latent has a component dimension"


def _axes(inputs: CheckInputs, sites: dict[str, Tensor], every: bool = False) -> dict[str, list[int]]:
    """Component axes of each site's draws; for a bare pair, the first or all as long as an enumerated support."""
    if inputs.story is None:
        lengths = {_support_size(inputs, name) for name in inputs.structure.enumerated} - {1}
        candidates = {n: range(1, v.ndim if every else min(2, v.ndim)) for n, v in sites.items()}
        matching = {n: [axis for axis in candidates[n] if v.shape[axis] in lengths] for n, v in sites.items()}
        return {name: axes for name, axes in matching.items() if axes}
    component_axes = {}
    for name in sites:
        dims = inputs.story.dims.get(name, ())
        axes = [1 + axis for axis, dim in enumerate(dims) if dim.removeprefix("next_") in AXES]
        if axes and sites[name].ndim == len(dims) + 1 and sites[name].shape[axes[0]] > 1:
            component_axes[name] = axes
    return component_axes


def _support_size(inputs: CheckInputs, name: str) -> int:
    """Count the values of an enumerated site."""
    fn = inputs.traces[1].nodes[name]["fn"]
    return int(fn.enumerate_support(expand=False).shape[0])


def _flattened(sites: dict[str, Tensor], axes: dict[str, list[int]]) -> Tensor:
    """Concatenate the parameters of each component, shape ``(num_draws, K, n)``."""
    with_components = {name: value for name, value in sites.items() if name in axes}
    moved = [value.movedim(axes[name][0], 1) for name, value in with_components.items() if len(axes[name]) == 1]
    moved = moved or list(with_components.values())  # a transition matrix alone
    return torch.cat([value.reshape(*value.shape[:2], -1) for value in moved], dim=2)
