"""Checks of components and regimes: which are the same, and whether their labels stay where they are."""

from __future__ import annotations

import torch
from torch import Tensor

from pplgen import relabelling
from pplgen.checks.check import Check, Verdict, beside
from pplgen.checks.material import Material

__all__ = ["duplicate_components", "label_switching", "matched"]

AXES = ("component", "regime")
"""Names of axes whose order means nothing."""
WEIGHTS = {"weights", "pi", "P", "sticks", "alpha"}
"""Sites that say how frequent components are, not what they are."""
ALIKE = 2.0
"""Posterior deviations of a difference within which all of two components' parameters lie where these are the same."""
SWITCHED = 0.01
"""Share of draws that may be labelled otherwise."""


def duplicate_components(material: Material) -> Check:
    """Components that are the same as another: all their means lie within ``ALIKE`` deviations of their difference."""
    name, source = "components that repeat another", "Fruehwirth-Schnatter 2006"
    sites = _sites(material)
    if isinstance(sites, str):
        return beside(name, source, sites)
    described = _flattened(sites, _axes(material, sites)).double()
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


def label_switching(material: Material) -> Check:
    """Share of draws whose components are nearest to the mean ones in another order."""
    name, source = "draws with switched labels (share)", "Stephens 2000"
    sites = _sites(material)
    if isinstance(sites, str):
        return beside(name, source, sites)
    ordered = matched(material, sites, sites)
    moved = [(ordered[n] != sites[n]).reshape(len(sites[n]), -1).any(1) for n in _axes(material, sites)]
    value = float(torch.stack(moved).any(0).double().mean())
    if value <= SWITCHED:
        return Check(name, value, SWITCHED, source, Verdict.PASS)
    remedy = "means of components mix several of them: relabel draws before averaging, or order the components"
    return Check(
        name, value, SWITCHED, source, Verdict.WARN, f"{remedy}; where components repeat each other, take fewer"
    )


def matched(material: Material, sites: dict[str, Tensor], reference: dict[str, Tensor]) -> dict[str, Tensor]:
    """Order the components of each draw as those of a reference, both of shape ``(num_draws, ...)``; others stay."""
    axes = _axes(material, sites)
    return relabelling.matched(sites, reference, {n: tuple(a - sites[n].ndim for a in axes[n]) for n in axes})


def _sites(material: Material) -> dict[str, Tensor] | str:
    """Return the draws of sites that say what components are; or why there are none."""
    if material.why_no_shared:
        return material.why_no_shared
    if "sticks" in material.structure.latent:
        return "surplus components are part of the story, and repeat the prior"
    sites = {n: v for n, v in material.weighed.sites.items() if n not in WEIGHTS}
    return sites if _axes(material, sites) else "nothing that the rows share has an axis of components"


def _axes(material: Material, sites: dict[str, Tensor]) -> dict[str, list[int]]:
    """Axes of components of each site's draws; a bare pair's are the first ones as long as what is summed out."""
    if material.story is None:
        lengths = {_values(material, name) for name in material.structure.enumerated}
        return {n: [1] for n, v in sites.items() if v.ndim > 1 and v.shape[1] in lengths and v.shape[1] > 1}
    found = {}
    for name in sites:
        dims = material.story.dims.get(name, ())
        axes = [1 + axis for axis, dim in enumerate(dims) if dim.removeprefix("next_") in AXES]
        if axes and sites[name].ndim == len(dims) + 1 and sites[name].shape[axes[0]] > 1:
            found[name] = axes
    return found


def _values(material: Material, name: str) -> int:
    """Count the values of a site that is summed out."""
    fn = material.traces[1].nodes[name]["fn"]
    return int(fn.enumerate_support(expand=False).shape[0])


def _flattened(sites: dict[str, Tensor], axes: dict[str, list[int]]) -> Tensor:
    """Put the parameters of each component side by side, shape ``(num_draws, K, n)``."""
    own = {name: value for name, value in sites.items() if name in axes}
    moved = [value.movedim(axes[name][0], 1) for name, value in own.items() if len(axes[name]) == 1]
    moved = moved or list(own.values())  # transitions alone
    return torch.cat([value.reshape(*value.shape[:2], -1) for value in moved], dim=2)
