"""Checks of components and regimes: which are the same, and whether their labels stay where they are."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from pplgen.checks.check import Check, Verdict, beside
from pplgen.checks.material import Material

__all__ = ["duplicate_components", "label_switching", "matched"]

AXES = ("component", "regime")
"""Names of axes whose order means nothing."""
WEIGHTS = {"weights", "pi", "P", "sticks", "alpha"}
"""Sites that say how frequent components are, not what they are."""
ALIKE = 2.0
"""Standard errors within which all parameters of two components lie where these are the same."""
SWITCHED = 0.01
"""Share of draws that may be labelled otherwise."""


def duplicate_components(material: Material) -> Check:
    """Components that are the same as another: all their means lie within ``ALIKE`` standard errors of each other."""
    name, source = "components that repeat another", "Fruehwirth-Schnatter 2006"
    described = _described(material)
    if isinstance(described, str):
        return beside(name, source, described)
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
    described = _described(material)
    if isinstance(described, str):
        return beside(name, source, described)
    scale = described.var(0).mean(0).clamp_min(1e-24).sqrt()
    orders = _orders(described / scale, described.mean(0) / scale)
    value = float((orders != np.arange(described.shape[1])).any(1).mean())
    if value <= SWITCHED:
        return Check(name, value, SWITCHED, source, Verdict.PASS)
    remedy = "means of components mix several of them: relabel draws before averaging, or order the components"
    return Check(
        name, value, SWITCHED, source, Verdict.WARN, f"{remedy}; where components repeat each other, take fewer"
    )


def matched(material: Material, sites: dict[str, Tensor], reference: dict[str, Tensor]) -> dict[str, Tensor]:
    """Order the components of draws as those of a reference, both of shape ``(num_draws, ...)``; others stay."""
    axes = _axes(material, sites)
    if not axes:
        return sites
    own, other = (_flattened({name: drawn[name] for name in axes}, axes) for drawn in (sites, reference))
    scale = other.std(0).mean(0).clamp_min(1e-12)
    order = torch.from_numpy(_orders(own.mean(0, keepdim=True) / scale, other.mean(0) / scale)[0])
    arranged = dict(sites)
    for name, positions in axes.items():
        for axis in positions:
            arranged[name] = arranged[name].index_select(axis, order)
    return arranged


def _described(material: Material) -> Tensor | str:
    """Lay out what draws say of each component, shape ``(num_draws, K, n)``; or say why there is nothing."""
    if material.why_no_shared:
        return material.why_no_shared
    if "sticks" in material.structure.latent:
        return "surplus components are part of the story, and repeat the prior"
    sites = {n: v for n, v in material.weighed.sites.items() if n not in WEIGHTS}
    axes = _axes(material, sites)
    if not axes:
        return "nothing that the rows share has an axis of components"
    return _flattened({name: sites[name] for name in axes}, axes).double()


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
    moved = [value.movedim(axes[name][0], 1) for name, value in sites.items() if len(axes[name]) == 1]
    moved = moved or list(sites.values())  # transitions alone
    return torch.cat([value.reshape(*value.shape[:2], -1) for value in moved], dim=2)


def _orders(described: Tensor, reference: Tensor) -> np.ndarray:
    """Match components of each draw, ``(num_draws, K, n)``, to those of a reference, ``(K, n)``."""
    costs = torch.cdist(described.double(), reference.double().expand(len(described), -1, -1)).square()
    return np.stack([linear_sum_assignment(cost.T)[1] for cost in costs.cpu().numpy()])
