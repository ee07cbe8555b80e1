"""Quantile residuals of predictive probabilities, and their autocorrelations."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["autocorrelations", "quantile_residuals"]

CLIP = 1e-12
"""Smallest distance of a probability from 0 and 1, whose normal quantile is finite."""


def quantile_residuals(probabilities: Tensor) -> Tensor:
    """Return the standard normal quantiles of predictive probabilities (Dunn and Smyth 1996), NaN where they are."""
    return torch.special.ndtri(probabilities.clamp(CLIP, 1 - CLIP))


def autocorrelations(residuals: Tensor, num_lags: int) -> tuple[Tensor, Tensor]:
    """Return autocorrelations of series at lags 1, 2, ..., pooled, and the number of pairs of each.

    Parameters
    ----------
    residuals
        Shape ``(num_series, T)``, NaN where missing.
    num_lags
        Number of lags.
    """
    seen = ~residuals.isnan()
    centred = torch.where(seen, residuals - residuals.nanmean(), 0.0)
    variance = centred.square().sum() / seen.sum()
    products = [(centred[:, lag:] * centred[:, :-lag]).sum() for lag in range(1, num_lags + 1)]
    pairs = torch.stack([(seen[:, lag:] & seen[:, :-lag]).sum() for lag in range(1, num_lags + 1)])
    return torch.stack(products) / (variance * seen.sum()), pairs
