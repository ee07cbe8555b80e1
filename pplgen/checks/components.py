"""Checks of components and regimes: which are the same, and whether their labels stay where they are."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pplgen.checks.check import Check, Verdict, beside
from pplgen.checks.inputs import CheckInputs
from pplgen.inference.log_joint import delta_guide, latent_sites, log_joint_at
from pplgen.posterior import relabelling
from pplgen.story.isolation import seeded

__all__ = ["duplicate_components", "exchangeable", "label_switching"]

AXES = ("component", "regime")
"""Names of axes whose order means nothing."""
WEIGHTS = {"weights", "pi", "P", "sticks", "alpha"}
"""Sites that say how frequent components are, not what they are."""
ALIKE = 2.0
"""Posterior deviations of a difference within which all of two components' parameters lie where these are the same."""
TRIED = 3
"""Draws of the guide, and as many of the prior, at which the names of components are swapped."""
ROUNDING = 100
"""Spacings of floating-point numbers at a log density within which two are the same."""
SWITCHED = 0.01
"""Share of draws that may be labelled otherwise."""


def duplicate_components(inputs: CheckInputs) -> Check:
    """Components that are the same as another: all their means lie within ``ALIKE`` deviations of their difference."""
    name, source = "components that repeat another", "Fruehwirth-Schnatter 2006"
    sites = _sites(inputs)
    if isinstance(sites, str):
        return beside(name, source, sites)
    described = _flattened(sites, _axes(inputs, sites)).double()
    mean, variance = described.mean(0), described.var(0)
    distance = (mean[:, None] - mean[None]).abs() / (variance[:, None] + variance[None]).clamp_min(1e-24).sqrt()
    same = (distance.amax(-1) < ALIKE).triu(1)
    pairs = [f"{j} and {k}" for j, k in same.nonzero().tolist()]
    value = int(same.any(0).sum())
    if not value:
        return Check(name, value, 0, source, Verdict.PASS)
    found = f"{', '.join(pairs[:4])} are the same within their error"
    remedy = f"{found}: {mean.shape[0] - value} are enough, or the data cannot tell more apart"
    return Check(name, value, 0, source, Verdict.WARN, remedy)


def label_switching(inputs: CheckInputs) -> Check:
    """Share of draws whose components are nearest to the mean ones in another order."""
    name, source = "draws with switched labels (share)", "Stephens 2000"
    sites = _sites(inputs)
    if isinstance(sites, str):
        return beside(name, source, sites)
    axes = exchangeable(inputs, sites)
    if not axes:
        return beside(name, source, "components are not exchangeable: the density tells them apart by their names")
    ordered = relabelling.match_components(sites, sites, axes)
    moved = [(ordered[n] != sites[n]).reshape(len(sites[n]), -1).any(1) for n in axes]
    value = float(torch.stack(moved).any(0).double().mean())
    if value <= SWITCHED:
        return Check(name, value, SWITCHED, source, Verdict.PASS)
    remedy = "means of components mix several of them: relabel draws before averaging, or order the components"
    return Check(
        name, value, SWITCHED, source, Verdict.WARN, f"{remedy}; where components repeat each other, take fewer"
    )


def exchangeable(inputs: CheckInputs, sites: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Axes of sites' draws, counted from the end, along which components may swap names and nothing else changes.

    A story says so by the names of its axes. Of a bare pair it is tried: log p(x, theta) must be the same, but for its
    rounding, whatever the order along the first axis as long as what is summed out, or along all of them, as in a
    matrix of transitions. Components of fixed and different shares are not exchangeable.
    """
    axes = _axes(inputs, sites)
    if axes and inputs.story is None:
        found = next((every for every in (False, True) if _swaps_change_nothing(inputs, every)), None)
        axes = {} if found is None else _axes(inputs, sites, found)
    return {name: tuple(axis - sites[name].ndim for axis in axes[name]) for name in axes}


def _swaps_change_nothing(inputs: CheckInputs, every: bool) -> bool:
    """Try swaps of a bare pair's components at draws of the guide and of the prior; two of them make up all orders."""
    pair = inputs.pair
    names = pair.structure.latent
    with seeded(0), torch.no_grad(), pyro.validation_enabled(False):
        sites = latent_sites(pair, names)
        for function in (pair.guide, pair.model) * TRIED:
            trace = poutine.trace(function).get_trace(*pair.data)
            values = {name: trace.nodes[name]["value"] for name in names}
            axes = _axes(inputs, {name: values[name][None] for name in pair.structure.shared_latent}, every)
            for order in (_rolled, _first_two_swapped):
                moved = {name: order(value, axes.get(name, [])) for name, value in values.items()}
                before, after = (_joint(inputs, delta_guide(sites, each)) for each in (values, moved))
                rounding = ROUNDING * torch.finfo(before.dtype).eps
                if not torch.isclose(after, before, rtol=rounding, atol=rounding, equal_nan=True):
                    return False
    return True


def _joint(inputs: CheckInputs, guide: Callable[..., None]) -> Tensor:
    with seeded(0):  # of rows that are drawn anew, the same ones
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
    """Return the draws of sites that say what components are; or why there are none."""
    if inputs.why_no_shared:
        return inputs.why_no_shared
    if "sticks" in inputs.structure.latent:
        return "surplus components are part of the story, and repeat the prior"
    sites = {n: v for n, v in inputs.weighted.sites.items() if n not in WEIGHTS}
    return sites if _axes(inputs, sites) else "nothing that the rows share has an axis of components"


def _axes(inputs: CheckInputs, sites: dict[str, Tensor], every: bool = False) -> dict[str, list[int]]:
    """Axes of components of each site's draws; a bare pair's are as long as what is summed out: the first, or all."""
    if inputs.story is None:
        lengths = {_values(inputs, name) for name in inputs.structure.enumerated} - {1}
        tried = {n: range(1, v.ndim if every else min(2, v.ndim)) for n, v in sites.items()}
        own = {n: [axis for axis in tried[n] if v.shape[axis] in lengths] for n, v in sites.items()}
        return {name: axes for name, axes in own.items() if axes}
    found = {}
    for name in sites:
        dims = inputs.story.dims.get(name, ())
        axes = [1 + axis for axis, dim in enumerate(dims) if dim.removeprefix("next_") in AXES]
        if axes and sites[name].ndim == len(dims) + 1 and sites[name].shape[axes[0]] > 1:
            found[name] = axes
    return found


def _values(inputs: CheckInputs, name: str) -> int:
    """Count the values of a site that is summed out."""
    fn = inputs.traces[1].nodes[name]["fn"]
    return int(fn.enumerate_support(expand=False).shape[0])


def _flattened(sites: dict[str, Tensor], axes: dict[str, list[int]]) -> Tensor:
    """Put the parameters of each component side by side, shape ``(num_draws, K, n)``."""
    own = {name: value for name, value in sites.items() if name in axes}
    moved = [value.movedim(axes[name][0], 1) for name, value in own.items() if len(axes[name]) == 1]
    moved = moved or list(own.values())  # transitions alone
    return torch.cat([value.reshape(*value.shape[:2], -1) for value in moved], dim=2)
