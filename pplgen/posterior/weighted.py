"""Moments and quantiles of what is known at each of many draws: mixtures of Gaussians, and weighted draws."""

from __future__ import annotations

import math

import arviz_stats.base
import numpy as np
import torch
from torch import Tensor

__all__ = [
    "CONSTANT",
    "GOOD_K",
    "GaussianMixtures",
    "k_limit",
    "smoothed_weights",
    "weighted_moments",
    "weighted_quantile",
]

GOOD_K = 0.7
"""Pareto k above which an importance-weighted mean is not to be trusted (Vehtari et al. 2024, Pareto smoothed
importance sampling, https://jmlr.org/papers/v25/19-556.html)."""
CONSTANT = 1e-3
"""Nats within which log ratios lie that differ by their rounding alone."""
FEW = 3
"""Effective draws below which Pareto k counts as infinite."""
BISECTIONS = 16
"""Halvings of the bracket of a quantile, whose width is the spread of the components' own quantiles."""


def k_limit(num_draws: int) -> float:
    """Return the Pareto k above which so many draws are too few: ``min(1 - 1 / log10(num_draws), GOOD_K)``, ibid."""
    return min(GOOD_K, 1 - 1 / math.log10(max(num_draws, 11)))


class GaussianMixtures:
    """Equally weighted Gaussians, one to a draw, given in pieces along the draws."""

    def __init__(self) -> None:
        self._means: list[Tensor] = []
        self._deviations: list[Tensor] = []
        self._second: Tensor | None = None

    def add(self, mean: Tensor, covariance: Tensor) -> None:
        """Add components, shapes ``(draws, ..., D)`` and ``(draws, ..., D, D)``."""
        if not self._means:
            self._origin = mean[0]
        around = mean - self._origin
        second = covariance.sum(dim=0) + torch.einsum("s...i,s...j->...ij", around, around)
        self._second = second if self._second is None else self._second + second
        self._means.append(mean)
        # rounding may leave a variance of nothing below zero
        self._deviations.append(covariance.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt())

    @property
    def empty(self) -> bool:
        """Whether nothing was added."""
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
        means, deviations = torch.cat(self._means), torch.cat(self._deviations)
        own = means + deviations * torch.special.ndtri(torch.tensor(probability, dtype=means.dtype))
        low, high = own.amin(dim=0), own.amax(dim=0)
        if len(means) == 1:
            return low
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            below = torch.special.ndtr((middle - means) / deviations.clamp_min(1e-300)).mean(dim=0) < probability
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2


def smoothed_weights(log_ratios: Tensor) -> tuple[Tensor, Tensor]:
    """Turn log importance ratios into Pareto-smoothed weights.

    Parameters
    ----------
    log_ratios
        ``log p - log q`` of draws from q in nats, shape ``(num_draws, ...)``.

    Returns
    -------
    weights : Tensor
        Summing to one over the draws, shape ``(num_draws, ...)``.
    pareto_k : Tensor
        Shape of the tail of the ratios, ``(...)``: minus infinity where all are the same but for rounding, infinity
        where too few draws carry all the weight for a tail to be fitted.
    """
    log_ratios = log_ratios.double()
    flat = log_ratios.reshape(len(log_ratios), -1)
    flat = (flat - flat.amax(dim=0)).cpu()
    weights, ks = [], []
    for ratios in flat.T:
        if ratios.min() > -CONSTANT:
            weights.append(ratios.softmax(dim=0))
            ks.append(-np.inf)
            continue
        try:
            with np.errstate(all="ignore"):
                # arviz_stats takes minus the log ratio
                log_weights, k = arviz_stats.base.array_stats.psislw(-ratios.numpy())
            smoothed = torch.as_tensor(np.exp(log_weights), dtype=torch.float64)
        except ValueError:  # the largest ratios are all alike
            smoothed, k = ratios.softmax(dim=0), np.inf
        # the fitted tail says nothing where hardly any draw weighs anything
        lost = not smoothed.isfinite().all() or 1 / ratios.softmax(dim=0).square().sum() < FEW or np.isnan(k)
        weights.append(ratios.softmax(dim=0) if lost else smoothed)
        ks.append(np.inf if lost else float(k))
    shape, like = log_ratios.shape, log_ratios.device
    return torch.stack(weights, -1).reshape(shape).to(like), torch.tensor(ks).double().reshape(shape[1:]).to(like)


def weighted_moments(values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and covariance of draws.

    Parameters
    ----------
    values
        Shape ``(num_draws, ..., D)``.
    weights
        Summing to one over the draws; broadcast against ``values`` without their last axis.
    """
    weights = weights.unsqueeze(-1)
    mean = (weights * values).sum(dim=0)
    around = values - mean
    return mean, torch.einsum("s...i,s...j->...ij", (weights * around).expand_as(values), around)


def weighted_quantile(values: Tensor, weights: Tensor, probability: float) -> Tensor:
    """Return the least draw at which the weights of the draws up to it reach a probability.

    Shapes as of ``weighted_moments``; the answer's is ``(..., D)``.
    """
    ordered, order = values.sort(dim=0)
    reached = weights.unsqueeze(-1).expand_as(values).gather(0, order).cumsum(dim=0)
    place = (reached < probability * reached[-1]).sum(dim=0, keepdim=True).clamp_max(len(values) - 1)
    return ordered.gather(0, place).squeeze(0)
