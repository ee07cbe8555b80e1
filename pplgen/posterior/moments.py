"""Moments and quantiles of Gaussian mixtures and of weighted draws."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["GaussianMixtures", "weighted_moments", "weighted_quantile"]

BISECTIONS = 16
"""Bisection steps for a quantile, from a bracket as wide as the range of the components' quantiles."""


class GaussianMixtures:
    """Equally weighted mixture of Gaussians, one per draw, added in chunks of draws."""

    def __init__(self) -> None:
        self._means: list[Tensor] = []
        self._sds: list[Tensor] = []
        self._second: Tensor | None = None

    def add(self, mean: Tensor, covariance: Tensor) -> None:
        """Add components, shapes ``(draws, ..., D)`` and ``(draws, ..., D, D)``."""
        if not self._means:
            self._origin = mean[0]
        centred = mean - self._origin
        second = covariance.sum(dim=0) + torch.einsum("s...i,s...j->...ij", centred, centred)
        self._second = second if self._second is None else self._second + second
        self._means.append(mean)
        # rounding can leave a zero variance negative
        self._sds.append(covariance.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt())

    @property
    def empty(self) -> bool:
        """Whether no component was added."""
        return not self._means

    def moments(self) -> tuple[Tensor, Tensor]:
        """Return mean and covariance of the mixtures, shapes ``(..., D)`` and ``(..., D, D)``."""
        means = torch.cat(self._means)
        assert self._second is not None, "components were added"
        shift = (means - self._origin).mean(dim=0)
        covariance = self._second / len(means) - shift.unsqueeze(-1) * shift.unsqueeze(-2)
        return self._origin + shift, covariance

    def quantile(self, probability: float) -> Tensor:
        """Return the quantile of each coordinate by bisection, shape ``(..., D)``."""
        means, sds = torch.cat(self._means), torch.cat(self._sds)
        each = means + sds * torch.special.ndtri(torch.tensor(probability, dtype=means.dtype))
        low, high = each.amin(dim=0), each.amax(dim=0)
        if len(means) == 1:
            return low
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            below = torch.special.ndtr((middle - means) / sds.clamp_min(1e-300)).mean(dim=0) < probability
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2


def weighted_moments(values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and covariance of weighted draws.

    Parameters
    ----------
    values
        Shape ``(num_draws, ..., D)``.
    weights
        Normalised over the draws; broadcast against ``values`` without their last axis.
    """
    weights = weights.unsqueeze(-1)
    mean = (weights * values).sum(dim=0)
    centred = values - mean
    return mean, torch.einsum("s...i,s...j->...ij", (weights * centred).expand_as(values), centred)


def weighted_quantile(values: Tensor, weights: Tensor, probability: float) -> Tensor:
    """Return the smallest draw at which the cumulative weight reaches a probability.

    Shapes as for ``weighted_moments``; the result's is ``(..., D)``.
    """
    ordered, order = values.sort(dim=0)
    cumulative = weights.unsqueeze(-1).expand_as(values).gather(0, order).cumsum(dim=0)
    index = (cumulative < probability * cumulative[-1]).sum(dim=0, keepdim=True).clamp_max(len(values) - 1)
    return ordered.gather(0, index).squeeze(0)
