"""Modes that a symmetry of the model exchanges: signs, complements of weights, sites or entries that swap.

Which symmetry could take one mode to another is read from the means of draws there; that it is one, from equality of
log p(x, theta) at transformed draws of the guide and the prior.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from pplgen.inference.log_joint import latent_sites
from pplgen.posterior.exchangeability import is_invariant
from pplgen.story.pair import Pair

__all__ = ["are_mirrored", "differ"]

APART = 5.0
"""Minimum distance between the means of two modes, in units of the larger posterior standard deviation."""
MAX_CANDIDATES = 64
"""Maximum number of transformations that are tried."""

Action = Callable[[Tensor], Tensor]


def differ(first: Tensor, second: Tensor) -> bool:
    """Whether the means of some entry differ by ``APART`` times the larger standard deviation.

    Both are draws of a site, shape ``(num_draws, ...)``.
    """
    if not first.numel():
        return False
    a, b = first.double(), second.double()
    sd = torch.maximum(a.std(0), b.std(0)).clamp_min(1e-12)
    return bool(((a.mean(0) - b.mean(0)).abs() / sd).max() > APART)


def are_mirrored(pair: Pair, first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Whether a symmetry of log p(x, theta) takes draws at one mode near those at another.

    Sites of real values may change sign, as a whole or by columns; those between 0 and 1 become their complements;
    entries along an axis of two swap, and so do sites of the same shape and support; each alone or together. Call it
    inside ``pair.isolated``.

    Parameters
    ----------
    pair
        The pair.
    first, second
        Draws of all latents at either mode, shape ``(num_draws, ...)`` each.
    """
    names = pair.structure.latent
    supports = {name: site.support for name, site in latent_sites(pair, names).items()}
    options = []
    for name in names:
        alike = [n for n in names if first[n].shape == first[name].shape and str(supports[n]) == str(supports[name])]
        actions = [(source, each) for source in alike for each in _actions(first[name], second[source], supports[name])]
        options.append([(s, action) for s, action in actions if not differ(first[name], action(second[s]))])
    if math.prod(map(len, options)) == 0:
        return False
    for chosen in itertools.islice(itertools.product(*options), MAX_CANDIDATES):
        if len({source for source, _ in chosen}) < len(names):
            continue
        if is_invariant(pair, partial(_transformed, dict(zip(names, chosen, strict=True)))):
            return True
    return False


def _transformed(parts: Mapping[str, tuple[str, Action]], values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return values of sites, each from that of its source."""
    return {name: action(values[source]) for name, (source, action) in parts.items()}


def _actions(first: Tensor, second: Tensor, support: Any) -> Iterator[Action]:
    """Yield transformations of a site's values that leave its support unchanged."""
    base = getattr(support, "base_constraint", support)
    axes = range(1 - second.ndim, 0)
    swaps = [None, *(axis for axis in axes if second.shape[axis] == 2)]
    for axis in swaps:
        swap: Action = (lambda v: v) if axis is None else (lambda v, axis=axis: v.flip(axis))  # type: ignore[misc]
        yield swap
        if base is constraints.real:
            yield lambda v, swap=swap: -swap(v)  # type: ignore[misc]
            for along in axes:
                signs = _signs(first, swap(second), along)
                yield lambda v, swap=swap, signs=signs: signs * swap(v)  # type: ignore[misc]
        elif base is constraints.unit_interval:
            yield lambda v, swap=swap: 1 - swap(v)  # type: ignore[misc]


def _signs(first: Tensor, second: Tensor, along: int) -> Tensor:
    """Return the sign of each slice along an axis with which the means of the second are nearer those of the first."""
    a, b = first.mean(0), second.mean(0)
    others = [axis for axis in range(-a.ndim, 0) if axis != along]
    product = (a * b).sum(others, keepdim=True) if others else a * b
    return torch.where(product < 0, -1.0, 1.0).to(second)
