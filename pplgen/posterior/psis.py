"""Pareto-smoothed importance sampling: weights from log importance ratios, and whether they can be trusted."""

from __future__ import annotations

import math

import arviz_stats.base
import numpy as np
import torch
from torch import Tensor

__all__ = ["CONSTANT", "GOOD_K", "k_limit", "smoothed_weights"]

GOOD_K = 0.7
"""Pareto k above which an importance-weighted mean is unreliable (Vehtari et al. 2024, Pareto smoothed
importance sampling, https://jmlr.org/papers/v25/19-556.html)."""
CONSTANT = 1e-3
"""Range in nats within which log ratios are regarded as equal up to rounding."""
HARMLESS = math.log(2)
"""Log of the largest weight, relative to their mean, below which their tail cannot matter."""
MIN_EFFECTIVE_DRAWS = 3
"""Effective sample size below which Pareto k is reported as infinite."""


def k_limit(num_draws: int) -> float:
    """Return the sample-size-dependent threshold of Pareto k: ``min(1 - 1 / log10(num_draws), GOOD_K)``, ibid."""
    return min(GOOD_K, 1 - 1 / math.log10(max(num_draws, 11)))


def smoothed_weights(log_ratios: Tensor) -> tuple[Tensor, Tensor]:
    """Return Pareto-smoothed importance weights and Pareto k.

    Parameters
    ----------
    log_ratios
        ``log p - log q`` of draws from q in nats, shape ``(num_draws, ...)``.

    Returns
    -------
    weights : Tensor
        Normalised weights, which sum to one over the draws, shape ``(num_draws, ...)``.
    pareto_k : Tensor
        Tail shape of the ratios, ``(...)``: minus infinity where no weight is twice their mean, infinity where too few
        draws carry all the weight to fit a tail.
    """
    log_ratios = log_ratios.double()
    flat = log_ratios.reshape(len(log_ratios), -1)
    flat = (flat - flat.amax(dim=0)).cpu()
    weights, ks = [], []
    for ratios in flat.T:
        if math.log(len(ratios)) - float(ratios.logsumexp(0)) < HARMLESS:
            weights.append(ratios.softmax(dim=0))
            ks.append(-np.inf)
            continue
        try:
            with np.errstate(all="ignore"):
                # arviz_stats expects the negative log ratio
                log_weights, k = arviz_stats.base.array_stats.psislw(-ratios.numpy())
            smoothed = torch.as_tensor(np.exp(log_weights), dtype=torch.float64)
        except ValueError:  # the largest ratios are all equal
            smoothed, k = ratios.softmax(dim=0), np.inf
        # the fitted tail is meaningless where hardly any draw has weight
        degenerate = (
            not smoothed.isfinite().all()
            or 1 / ratios.softmax(dim=0).square().sum() < MIN_EFFECTIVE_DRAWS
            or np.isnan(k)
        )
        weights.append(ratios.softmax(dim=0) if degenerate else smoothed)
        ks.append(np.inf if degenerate else float(k))
    shape, like = log_ratios.shape, log_ratios.device
    return torch.stack(weights, -1).reshape(shape).to(like), torch.tensor(ks).double().reshape(shape[1:]).to(like)
