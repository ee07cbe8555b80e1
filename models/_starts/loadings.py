"""Initial matrices of linear state space models."""

from __future__ import annotations

import torch
from torch import Tensor


def initial_matrices(steps: Tensor, scale: Tensor, free: Tensor) -> dict[str, Tensor]:
    """Return A, random near 0.7, and C, jittered principal loadings rotated to be lower trapezoidal.

    Parameters
    ----------
    steps
        Standardised observations, NaN where missing, shape ``(num_steps, E)``.
    scale
        Standard deviations of the columns, shape ``(E,)``.
    free
        Mask of the nonzero entries of C stacked on A, shape ``(E + D, D)``.

    Returns
    -------
    dict
        ``A``, shape ``(D, D)``, and ``C``, half the loadings of states of unit variance, shape ``(E, D)``.
    """
    (num_steps, E), D = steps.shape, free.shape[1]
    A = (0.7 * torch.eye(D) + 0.3 * torch.randn(D, D)).to(steps) * free[E:]
    filled = steps.nan_to_num()
    _, variances, directions = torch.linalg.svd(filled.mT @ filled / num_steps)
    loadings, rank = filled.new_zeros(E, D), min(E, D)
    loadings[:, :rank] = directions[:rank].mT * variances[:rank].sqrt()
    loadings += 0.3 * torch.randn_like(loadings)
    return {"A": A, "C": scale[:, None] * torch.linalg.qr(loadings.mT, mode="complete").R.mT / 2}
