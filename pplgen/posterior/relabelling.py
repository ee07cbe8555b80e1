"""Undo label switching: match the components of each draw to a reference."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import permutations

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from pplgen.story.pair import Pair

__all__ = ["LABELS", "Axes", "component_axes", "match_components", "relabel_dataset"]

LABELS = ("component", "regime")
"""Names of axes along which the likelihood is invariant to permutations."""
EXHAUSTIVE = 6
"""Largest number of components for which all permutations are tried; beyond it, matching is greedy."""
TINY = 1e-12
"""Smallest standard deviation, for entries that do not vary."""

Axes = Mapping[str, tuple[int, ...]]
"""Component axes of each site, counted from the end."""


def component_axes(pair: Pair) -> dict[str, tuple[int, ...]]:
    """Return the axes of components or regimes of a story's sites; none for a bare pair, whose axes have no names."""
    dims = {} if pair.story is None else pair.story.dims
    names = (*pair.structure.latent, *pair.structure.deterministic)
    component_dims = {
        name: tuple(
            axis - len(dims[name])
            for axis, dim in enumerate(dims[name])
            if any(dim == label or dim.endswith(f"_{label}") for label in LABELS)
        )
        for name in names
        if name in dims
    }
    return {name: axes for name, axes in component_dims.items() if axes}


def match_components(
    draws: Mapping[str, Tensor], reference: Mapping[str, Tensor], axes: Axes, *, together: bool = False
) -> dict[str, Tensor]:
    """Permute the components of every draw to the most likely order under Gaussians fitted to the reference.

    Each draw is permuted independently of the others, or all ``together``, by the order of their mean. Each component
    of the reference has its own standard deviations, so that one with many rows is matched closely and an empty one
    loosely (Stephens 2000, Dealing with label switching in mixture models, https://doi.org/10.1111/1467-9868.00265).

    Parameters
    ----------
    draws
        Sites of shape ``(num_draws, ...)``.
    reference
        Draws of the same sites without label switching, such as those of a unimodal guide.
    axes
        Component axes of sites; other sites are returned unchanged.
    """
    single = [name for name in axes if len(axes[name]) == 1] or list(axes)
    if not single:
        return dict(draws)
    values, target = (
        torch.cat([_by_component(each[n], axes[n]) for n in single], dim=-1) for each in (draws, reference)
    )
    mean, sd = target.mean(0), target.std(0).clamp_min(TINY)
    values = values.mean(0, keepdim=True).expand_as(values) if together else values
    distance = ((values[:, :, None] - mean) / sd).square().sum(-1)
    order = _orders(distance)
    matched = dict(draws)
    for name, along in axes.items():
        for axis in along:
            value = matched[name]
            index = order.reshape(len(order), *(order.shape[1] if d == axis else 1 for d in range(1 - value.ndim, 0)))
            matched[name] = value.gather(value.ndim + axis, index.expand(value.shape))
    return matched


def relabel_dataset(posterior: xr.Dataset, reference: Mapping[str, Tensor], axes: Axes) -> xr.Dataset:
    """Apply ``match_components`` to a dataset with dimensions ``(chain, draw, ...)``; absent sites are ignored."""
    selected = {name: along for name, along in axes.items() if name in posterior and name in reference}
    flat = {name: torch.as_tensor(posterior[name].values).flatten(0, 1) for name in selected}
    ordered = match_components(flat, {name: reference[name] for name in selected}, selected)
    shaped = {n: (posterior[n].dims, value.reshape(posterior[n].shape).numpy()) for n, value in ordered.items()}
    return posterior.assign(shaped)


def _by_component(value: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Reshape to ``(num_draws, K, entries)``; of matrices with two component axes, the diagonal."""
    value = value.diagonal(dim1=axes[0], dim2=axes[1]).movedim(-1, 1) if len(axes) > 1 else value.movedim(axes[0], 1)
    return value.reshape(*value.shape[:2], -1)


def _orders(distance: Tensor) -> Tensor:
    """Return the component of each draw assigned to each of the reference, from distances ``(draws, K, K)``."""
    K = distance.shape[1]
    if K <= EXHAUSTIVE:
        orders = torch.tensor(list(permutations(range(K))), device=distance.device)
        totals = distance[:, orders, torch.arange(K)].sum(-1)
        return orders[totals.argmin(1)]
    remaining = distance.detach().cpu().numpy().copy()
    order = np.zeros(remaining.shape[:2], dtype=np.int64)
    rows = np.arange(len(remaining))
    for _ in range(K):
        component, target = np.divmod(remaining.reshape(len(remaining), -1).argmin(1), K)
        order[rows, target] = component
        remaining[rows, component], remaining[rows, :, target] = np.inf, np.inf
    return torch.as_tensor(order, device=distance.device)
