"""Checks of mixture components and regimes: duplicates and label switching."""

from __future__ import annotations

import torch
from torch import Tensor

from pplgen.checks.check import Check, Verdict, not_applicable
from pplgen.checks.inputs import CheckInputs
from pplgen.posterior import relabelling
from pplgen.posterior.exchangeability import axes_of_components, exchangeable

__all__ = ["duplicate_components", "label_switching"]

WEIGHTS = {"weights", "pi", "P", "sticks", "alpha"}
"""Sites of component frequencies, which do not identify a component."""
ALIKE = 2.0
"""Two components are duplicates if all parameters differ by less than this, in posterior standard deviations."""
MAX_SWITCHED = 0.01
"""Largest accepted fraction of label-switched draws."""


def duplicate_components(inputs: CheckInputs) -> Check:
    """Count duplicate components: all parameter means within ``ALIKE`` standard deviations of the difference."""
    name, source = "duplicate components", "Fruehwirth-Schnatter 2006"
    sites = _sites(inputs)
    if isinstance(sites, str):
        return not_applicable(name, source, sites)
    parameters = _flattened(sites, axes_of_components(inputs.pair, sites)).double()
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
    axes = exchangeable(inputs.pair, sites)
    if not axes:
        return not_applicable(name, source, "components are not exchangeable: permuting them changes the density")
    ordered = relabelling.match_components(sites, sites, axes)
    moved = [(ordered[n] != sites[n]).reshape(len(sites[n]), -1).any(1) for n in axes]
    value = float(torch.stack(moved).any(0).double().mean())
    if value <= MAX_SWITCHED:
        return Check(name, value, MAX_SWITCHED, source, Verdict.PASS)
    remedy = "posterior means average over several components: relabel draws before averaging, or order the components"
    return Check(name, value, MAX_SWITCHED, source, Verdict.WARN, f"{remedy}; use fewer if some are duplicates")


def _sites(inputs: CheckInputs) -> dict[str, Tensor] | str:
    """Return the draws of sites that identify components, or why there are none."""
    if inputs.why_no_shared:
        return inputs.why_no_shared
    if "sticks" in inputs.structure.latent:
        return "surplus components are part of the story, and follow the prior"
    sites = {n: v for n, v in inputs.weighted.sites.items() if n not in WEIGHTS}
    return sites if axes_of_components(inputs.pair, sites) else "no shared latent has a component dimension"


def _flattened(sites: dict[str, Tensor], axes: dict[str, list[int]]) -> Tensor:
    """Concatenate the parameters of each component, shape ``(num_draws, K, n)``."""
    with_components = {name: value for name, value in sites.items() if name in axes}
    moved = [value.movedim(axes[name][0], 1) for name, value in with_components.items() if len(axes[name]) == 1]
    moved = moved or list(with_components.values())  # a transition matrix alone
    return torch.cat([value.reshape(*value.shape[:2], -1) for value in moved], dim=2)
