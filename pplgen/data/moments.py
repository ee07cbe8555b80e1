"""Column moments and ranges, accumulated in chunks."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Moments"]


class Moments:
    """Moments, ranges and rounding errors of columns, ignoring missing entries.

    With delta = mean_b - mean, a chunk b of n_b rows updates mean += delta n_b / (n + n_b) and the sum of squared
    deviations squares += squares_b + delta^2 n n_b / (n + n_b) (Chan, Golub and LeVeque 1983,
    doi:10.1080/00031305.1983.10483115).

    Attributes
    ----------
    count, mean, squares
        Number of observed entries, their mean and their sum of squared deviations from it, shape ``(num_features,)``.
    min, max
        Minimum and maximum of the observed entries, inf and -inf where there are none.
    rounding
        Maximum absolute rounding error.
    """

    def __init__(self, num_columns: int) -> None:
        self.count, self.mean, self.squares, self.rounding = torch.zeros(4, num_columns, dtype=torch.float64)
        self.min, self.max = torch.tensor([[torch.inf], [-torch.inf]]).double().expand(2, num_columns)

    def add(self, wide: Tensor, narrow: Tensor) -> None:
        """Add rows of shape ``(num_rows, num_features)`` in float64, exact (``wide``) and rounded (``narrow``)."""
        observed = ~wide.isnan()
        count = observed.sum(dim=0).double()
        mean = wide.nansum(dim=0) / count.clamp(min=1)
        squares = (wide - mean).square_().nansum(dim=0)
        total = (self.count + count).clamp(min=1)
        delta = mean - self.mean
        self.squares = self.squares + squares + delta.square() * self.count * count / total
        self.mean = self.mean + delta * count / total
        self.count = self.count + count
        self.min = self.min.minimum(torch.where(observed, wide, torch.inf).amin(dim=0))
        self.max = self.max.maximum(torch.where(observed, wide, -torch.inf).amax(dim=0))
        self.rounding = self.rounding.maximum((wide - narrow).abs_().nan_to_num_().amax(dim=0))
