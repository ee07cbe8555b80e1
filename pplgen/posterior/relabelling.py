"""Label switching undone: components matched to a reference, in every draw alike."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import permutations

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from pplgen.story.pair import Pair

__all__ = ["component_axes", "matched", "relabelled"]

LABELS = ("component", "regime")
"""Names of axes whose entries have names that the likelihood does not tell apart."""
FEW = 6
"""Components up to which all orders are tried; of more, the nearest ones are paired off first."""

TINY = 1e-12
"""Deviation of what does not vary."""

Axes = Mapping[str, tuple[int, ...]]
"""For each site the axes, counted from the end, along which components lie."""


def component_axes(pair: Pair) -> dict[str, tuple[int, ...]]:
    """Find the axes of components, or regimes, among a story's sites; none for a bare pair, which names no axes."""
    dims = {} if pair.story is None else pair.story.dims
    names = (*pair.structure.latent, *pair.structure.deterministic)
    found = {
        name: tuple(
            axis - len(dims[name])
            for axis, dim in enumerate(dims[name])
            if any(dim == label or dim.endswith(f"_{label}") for label in LABELS)
        )
        for name in names
        if name in dims
    }
    return {name: axes for name, axes in found.items() if axes}


def matched(draws: Mapping[str, Tensor], reference: Mapping[str, Tensor], axes: Axes) -> dict[str, Tensor]:
    """Order the components of every draw so that they are likeliest under the reference's, as Gaussians.

    What is done to a draw depends on that draw and the reference alone, and on no order that it came in. Each component
    of the reference has deviations of its own, so that one of many rows is matched closely and one of none anyhow
    (Stephens 2000, Dealing with label switching in mixture models, https://doi.org/10.1111/1467-9868.00265).

    Parameters
    ----------
    draws
        Sites of shape ``(num_draws, ...)``.
    reference
        Draws of the same sites in which components keep their names, such as those of a guide with one mode.
    axes
        Of those sites that have components; the others stay as they are.
    """
    single = [name for name in axes if len(axes[name]) == 1] or list(axes)
    if not single:
        return dict(draws)
    own, theirs = (torch.cat([_by_component(each[n], axes[n]) for n in single], dim=-1) for each in (draws, reference))
    mean, deviation = theirs.mean(0), theirs.std(0).clamp_min(TINY)
    distance = ((own[:, :, None] - mean) / deviation).square().sum(-1)
    order = _orders(distance)
    found = dict(draws)
    for name, along in axes.items():
        for axis in along:
            value = found[name]
            index = order.reshape(len(order), *(order.shape[1] if d == axis else 1 for d in range(1 - value.ndim, 0)))
            found[name] = value.gather(value.ndim + axis, index.expand(value.shape))
    return found


def relabelled(posterior: xr.Dataset, reference: Mapping[str, Tensor], axes: Axes) -> xr.Dataset:
    """Do the same to a dataset with dimensions ``(chain, draw, ...)``; axes of sites that it lacks do not matter."""
    own = {name: along for name, along in axes.items() if name in posterior and name in reference}
    flat = {name: torch.as_tensor(posterior[name].values).flatten(0, 1) for name in own}
    ordered = matched(flat, {name: reference[name] for name in own}, own)
    shaped = {n: (posterior[n].dims, value.reshape(posterior[n].shape).numpy()) for n, value in ordered.items()}
    return posterior.assign(shaped)


def _by_component(value: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Lay what each component has of its own out, shape ``(num_draws, K, entries)``."""
    value = value.diagonal(dim1=axes[0], dim2=axes[1]).movedim(-1, 1) if len(axes) > 1 else value.movedim(axes[0], 1)
    return value.reshape(*value.shape[:2], -1)


def _orders(distance: Tensor) -> Tensor:
    """Return which component of each draw stands for each of the reference, from distances ``(draws, K, K)``."""
    K = distance.shape[1]
    if K <= FEW:
        orders = torch.tensor(list(permutations(range(K))), device=distance.device)
        totals = distance[:, orders, torch.arange(K)].sum(-1)
        return orders[totals.argmin(1)]
    held = distance.detach().cpu().numpy().copy()
    order = np.zeros(held.shape[:2], dtype=np.int64)
    rows = np.arange(len(held))
    for _ in range(K):
        own, theirs = np.divmod(held.reshape(len(held), -1).argmin(1), K)
        order[rows, theirs] = own
        held[rows, own], held[rows, :, theirs] = np.inf, np.inf
    return torch.as_tensor(order, device=distance.device)
