"""Initial loadings of linear Gaussian latent-variable models: probabilistic PCA in closed form."""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST = 0.05
"""Smallest initial noise variance of a feature, as a fraction of its variance."""
SPREAD = 0.03
"""Standard deviation of the perturbation that makes restarts differ, relative to the size of the loadings."""


def principal_loadings(
    rows: Tensor, num_latents: int, weights: Tensor | None, *, shared: bool
) -> tuple[Tensor, Tensor]:
    """Return loadings and noise standard deviations near the maximum of pPCA's likelihood (Tipping and Bishop 1999).

    Parameters
    ----------
    rows
        Rows with mean zero, shape ``(num_rows, D)``; missing entries count as zero.
    num_latents
        Number of latent dimensions k.
    weights
        Weights of the rows; ``None`` for equal ones.
    shared
        Whether all features have the same noise; otherwise each has the variance that the loadings leave.

    Returns
    -------
    tuple
        Loadings, randomly rotated and perturbed, shape ``(D, k)``; noise standard deviations, ``(D,)`` or ``(1,)``.
    """
    rows = rows.nan_to_num()
    weights = torch.ones_like(rows[:, 0]) if weights is None else weights
    covariance = (rows * weights[:, None]).mT @ rows / weights.sum()
    values, vectors = torch.linalg.eigh(covariance)
    D = len(values)
    noise = values[: D - num_latents].mean() if num_latents < D else values.min()
    noise = noise.clamp_min(SMALLEST * values.mean())
    W = torch.zeros_like(covariance[:, :1]).expand(D, num_latents).clone()
    number = min(num_latents, D)
    W[:, :number] = vectors[:, -number:] * (values[-number:] - noise).clamp_min(0.0).sqrt()
    rotation = torch.linalg.qr(torch.randn(num_latents, num_latents).to(W)).Q
    W = W @ rotation + SPREAD * W.square().mean().sqrt() * torch.randn(D, num_latents).to(W)
    if shared:
        return W, noise.sqrt()[None]
    left = covariance.diagonal() - W.square().sum(-1)
    return W, left.clamp_min(SMALLEST * covariance.diagonal().clamp_min(1e-3)).sqrt()
