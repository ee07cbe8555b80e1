"""Initial states: principal components of steps, or of lagged steps if there are more states than features."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Projection(NamedTuple):
    """Projection of series to states of unit variance."""

    x: Tensor
    """Shape ``(num_series, T, D)``."""
    C: Tensor
    """``y = C x + d``, on the scale of y, shape ``(E, D)``."""
    r: Tensor
    """Residual standard deviation, shape ``(E,)``."""


def interpolate(y: Tensor) -> Tensor:
    """Fill missing entries by linear interpolation in time; at the ends, by the nearest observed entry."""
    T = y.shape[-2]
    steps = torch.arange(T, device=y.device)[:, None].expand(y.shape)
    observed = ~y.isnan()
    before = torch.where(observed, steps, -1).cummax(-2).values
    after = torch.where(observed, steps, T).flip(-2).cummin(-2).values.flip(-2)
    none = (before < 0) & (after >= T)
    before, after = torch.where(before < 0, after, before), torch.where(after >= T, before, after)
    filled = y.nan_to_num()
    left, right = (torch.gather(filled, -2, step.clamp(0, T - 1)) for step in (before, after))
    fraction = (steps - before).to(y.dtype) / (after - before).clamp_min(1)
    return torch.where(none, 0.0, left + fraction * (right - left))


def project(y: Tensor, inside: Tensor, num_states: int) -> Projection:
    """Project series without missing entries, of mean 0 and variance 1, shape ``(num_series, T, E)``.

    ``inside`` marks the steps that belong to their series, shape ``(num_series, T)``; the others are ignored.
    """
    T, E = y.shape[1:]
    lags = min(-(-num_states // E), T)
    ahead = torch.nn.functional.pad(y.mT, (0, lags - 1), mode="replicate").mT
    lagged = torch.cat([ahead[:, lag : lag + T] for lag in range(lags)], -1)
    rows = lagged[inside]
    _, values, vectors = torch.linalg.svd(rows, full_matrices=False)
    values, vectors = values[:num_states], vectors[:num_states]
    scale = (values / len(rows) ** 0.5).clamp_min(1e-3)
    x, C = (lagged @ vectors.mT) / scale, vectors[:, :E].mT * scale
    num_missing = num_states - x.shape[-1]
    if num_missing > 0:
        x, C = torch.nn.functional.pad(x, (0, num_missing)), torch.nn.functional.pad(C, (0, num_missing))
    return Projection(x, C, (y - x @ C.mT)[inside].std(0, correction=0))
