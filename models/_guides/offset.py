"""Preconditioned guide parameters: offsets in posterior standard deviations, for one step size at any row count."""

from __future__ import annotations

import torch
from pyro.nn import PyroModule, PyroParam
from torch import Tensor


class Offset(PyroModule):
    """Unconstrained vectors ``start + unit * offset``, with ``offset`` learned and ``unit`` a preconditioner.

    The posterior of n rows is about n^(-1/2) wide, so a fixed step in data units is too long for many rows; a step of
    .02 posterior standard deviations is not.

    Parameters
    ----------
    *shape
        Shape of the parameter; its last axis holds the vectors.
    correlated
        Whether ``unit`` is a Cholesky factor for each vector instead of a standard deviation for each entry.
    initial_scale
        Standard deviation of the random offsets before ``initialise``.
    """

    start: Tensor
    unit: Tensor

    def __init__(self, *shape: int, correlated: bool = False, initial_scale: float = 0.0) -> None:
        super().__init__()
        self.correlated = correlated
        self.register_buffer("start", torch.zeros(shape))
        unit = torch.eye(shape[-1]).expand(*shape, shape[-1]) if correlated else torch.ones(shape)
        self.register_buffer("unit", unit.clone())
        self.q_offset = PyroParam(initial_scale * torch.randn(shape))

    def initialise(self, start: Tensor, unit: Tensor) -> None:
        """Set the initial value and the preconditioner: posterior standard deviations, or Cholesky factors."""
        self.start.copy_(start)
        self.unit.copy_(unit)
        self.q_offset = torch.zeros_like(start)

    @property
    def value(self) -> Tensor:
        """Current value of the vectors."""
        if self.correlated:
            return self.start + (self.unit @ self.q_offset.unsqueeze(-1)).squeeze(-1)
        return self.start + self.unit * self.q_offset
