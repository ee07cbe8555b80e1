"""Initial loadings of linear state space models."""

from __future__ import annotations

import torch
from torch import Tensor


def initial_loadings(steps: Tensor, num_states: int) -> Tensor:
    """Return jittered principal loadings, rotated to be lower trapezoidal.

    Parameters
    ----------
    steps
        Standardised observations, NaN where missing, shape ``(num_steps, num_features)``.
    num_states
        Number of columns, D.

    Returns
    -------
    Tensor
        Half the loadings of states of unit variance, shape ``(num_features, D)``.
    """
    filled = steps.nan_to_num()
    _, variances, directions = torch.linalg.svd(filled.mT @ filled / len(filled))
    loadings = filled.new_zeros(filled.shape[1], num_states)
    rank = min(loadings.shape)
    loadings[:, :rank] = directions[:rank].mT * variances[:rank].sqrt()
    loadings += 0.3 * torch.randn_like(loadings)
    return torch.linalg.qr(loadings.mT, mode="complete").R.mT / 2
