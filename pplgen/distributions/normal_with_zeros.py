"""Normal distributions of matrices with structural zeros, such as loadings identified up to signs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.distributions import biject_to, constraints
from torch.distributions.transforms import Transform


class ZeroPattern(constraints.Constraint):
    """Constraint: matrices that are zero wherever a mask is False.

    Parameters
    ----------
    free
        Mask of the nonzero entries.
    """

    event_dim = 2

    def __init__(self, free: Bool[Tensor, "rows columns"]) -> None:
        self.free = free

    def __repr__(self) -> str:
        return f"zero except in {int(self.free.sum())} of {self.free.numel()} entries"

    def check(self, value: Float[Tensor, "... rows columns"]) -> Bool[Tensor, "..."]:
        """Return whether matrices satisfy the constraint."""
        return ((value == 0) | self.free.to(value.device)).flatten(-2).all(-1)


class _FreeEntries(Transform):
    """Transform from the vector of free entries, row by row, to the matrix."""

    bijective = True
    domain = constraints.real_vector

    def __init__(self, free: Bool[Tensor, "rows columns"]) -> None:
        super().__init__(cache_size=0)
        self.free = free
        self.codomain = ZeroPattern(free)

    def _call(self, x: Float[Tensor, "... free"]) -> Float[Tensor, "... rows columns"]:
        return (x @ self._one_hot(x)).unflatten(-1, self.free.shape)

    def _inverse(self, y: Float[Tensor, "... rows columns"]) -> Float[Tensor, "... free"]:
        return y.flatten(-2) @ self._one_hot(y).mT

    def _one_hot(self, like: Float[Tensor, "..."]) -> Float[Tensor, "free entries"]:
        """One-hot vectors of the free entries in the flattened matrix."""
        identity = torch.eye(self.free.numel(), dtype=like.dtype, device=like.device)
        return identity[self.free.flatten().nonzero().squeeze(-1).to(like.device)]

    def log_abs_det_jacobian(
        self, x: Float[Tensor, "... free"], y: Float[Tensor, "... rows columns"]
    ) -> Float[Tensor, "..."]:
        """Return zero: entries keep their values."""
        return x.new_zeros(x.shape[:-1])

    def forward_shape(self, shape: Sequence[int]) -> torch.Size:
        """Return the matrices' shape."""
        return torch.Size([*shape[:-1], *self.free.shape])

    def inverse_shape(self, shape: Sequence[int]) -> torch.Size:
        """Return the vectors' shape."""
        return torch.Size([*shape[:-2], int(self.free.sum())])


@biject_to.register(ZeroPattern)
def _free_entries(constraint: ZeroPattern) -> _FreeEntries:
    return _FreeEntries(constraint.free)


class NormalWithZeros(dist.TorchDistribution):
    """Matrices of independent normal entries and structural zeros.

    Parameters
    ----------
    loc, scale
        Means and standard deviations; they broadcast to the mask.
    free
        Mask of the nonzero entries.
    """

    arg_constraints: dict = {}  # noqa: RUF012
    has_rsample = False

    def __init__(
        self, loc: Float[Tensor, "..."], scale: Float[Tensor, "..."], free: Bool[Tensor, "rows columns"]
    ) -> None:
        self.base_dist: Any = dist.Normal(*torch.broadcast_tensors(loc, scale.expand(free.shape)), validate_args=False)
        self.free = free
        super().__init__(torch.Size(), free.shape, validate_args=False)

    @property
    def support(self) -> ZeroPattern:
        """Matrices with these zeros."""
        return ZeroPattern(self.free)

    def sample(self, sample_shape: Sequence[int] = ()) -> Float[Tensor, "... rows columns"]:
        """Draw matrices."""
        return self.base_dist.sample(torch.Size(sample_shape)) * self.free.to(self.base_dist.loc)

    def log_prob(self, value: Float[Tensor, "... rows columns"]) -> Float[Tensor, "..."]:
        """Log density of the free entries in nats."""
        return (self.base_dist.log_prob(value) * self.free.to(self.base_dist.loc)).sum((-2, -1))
