"""Series as states: principal components of steps, or of stretches of several where states outnumber features."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Projection(NamedTuple):
    """Series as states of unit variance."""

    x: Tensor
    """Shape ``(num_series, T, D)``."""
    C: Tensor
    """``y = C x + d``, on the scale of y, shape ``(E, D)``."""
    r: Tensor
    """Standard deviation of what the states leave out, shape ``(E,)``."""


def interpolated(y: Tensor) -> Tensor:
    """Fill missing entries on straight lines between their neighbours in time; ends, with the nearest seen entry."""
    T = y.shape[-2]
    steps = torch.arange(T, device=y.device)[:, None].expand(y.shape)
    seen = ~y.isnan()
    before = torch.where(seen, steps, -1).cummax(-2).values
    after = torch.where(seen, steps, T).flip(-2).cummin(-2).values.flip(-2)
    none = (before < 0) & (after >= T)
    before, after = torch.where(before < 0, after, before), torch.where(after >= T, before, after)
    filled = y.nan_to_num()
    left, right = (torch.gather(filled, -2, place.clamp(0, T - 1)) for place in (before, after))
    share = (steps - before).to(y.dtype) / (after - before).clamp_min(1)
    return torch.where(none, 0.0, left + share * (right - left))


def projected(y: Tensor, inside: Tensor, num_states: int) -> Projection:
    """Project series without missing entries, of mean 0 and variance 1, shape ``(num_series, T, E)``.

    ``inside`` tells which steps belong to their series, shape ``(num_series, T)``; the others do not count.
    """
    T, E = y.shape[1:]
    lags = min(-(-num_states // E), T)
    ahead = torch.nn.functional.pad(y.mT, (0, lags - 1), mode="replicate").mT
    stretches = torch.cat([ahead[:, lag : lag + T] for lag in range(lags)], -1)
    rows = stretches[inside]
    _, values, vectors = torch.linalg.svd(rows, full_matrices=False)
    values, vectors = values[:num_states], vectors[:num_states]
    scale = (values / len(rows) ** 0.5).clamp_min(1e-3)
    x, C = (stretches @ vectors.mT) / scale, vectors[:, :E].mT * scale
    lacking = num_states - x.shape[-1]
    if lacking > 0:
        x, C = torch.nn.functional.pad(x, (0, lacking)), torch.nn.functional.pad(C, (0, lacking))
    return Projection(x, C, (y - x @ C.mT)[inside].std(0, correction=0))
