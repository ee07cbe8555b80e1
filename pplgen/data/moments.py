"""Moments and ranges of columns, accumulated in pieces."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Moments"]


class Moments:
    """Moments, ranges and rounding of columns, leaving missing entries out.

    With delta = mean_b - mean, a piece b of n_b rows makes mean += delta n_b / (n + n_b) and, for the sum of squares
    around it, squares += squares_b + delta^2 n n_b / (n + n_b) (Chan, Golub and LeVeque 1983,
    doi:10.1080/00031305.1983.10483115).

    Attributes
    ----------
    seen, mean, squares
        Number of observed entries, their mean and their sum of squares around it, shape ``(num_features,)``.
    min, max
        Least and greatest observed entry, inf and -inf where there is none.
    lost
        The most that rounding changed an entry by.
    """

    def __init__(self, num_columns: int) -> None:
        self.seen, self.mean, self.squares, self.lost = torch.zeros(4, num_columns, dtype=torch.float64)
        self.min, self.max = torch.tensor([[torch.inf], [-torch.inf]]).double().expand(2, num_columns)

    def add(self, wide: Tensor, narrow: Tensor) -> None:
        """Add rows of shape ``(num_rows, num_features)`` in float64: as they are, and after rounding."""
        observed = ~wide.isnan()
        seen = observed.sum(dim=0).double()
        mean = wide.nansum(dim=0) / seen.clamp(min=1)
        squares = (wide - mean).square_().nansum(dim=0)
        total = (self.seen + seen).clamp(min=1)
        delta = mean - self.mean
        self.squares = self.squares + squares + delta.square() * self.seen * seen / total
        self.mean = self.mean + delta * seen / total
        self.seen = self.seen + seen
        self.min = self.min.minimum(torch.where(observed, wide, torch.inf).amin(dim=0))
        self.max = self.max.maximum(torch.where(observed, wide, -torch.inf).amax(dim=0))
        self.lost = self.lost.maximum((wide - narrow).abs_().nan_to_num_().amax(dim=0))
