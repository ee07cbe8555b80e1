"""Parameters of a guide in posterior deviations from where it starts: one step length for any number of rows."""

from __future__ import annotations

import torch
from pyro.nn import PyroModule, PyroParam
from torch import Tensor


class Offset(PyroModule):
    """Unconstrained vectors ``start + unit * offset``, of which ``offset`` is learned.

    The posterior of n rows is about n^(-1/2) wide, so a step of fixed length in data units is too long for many rows;
    one of .02 posterior deviations never is.

    Parameters
    ----------
    *shape
        Of the parameter; its last axis are the vectors.
    correlated
        Whether the unit is a Cholesky factor for each vector, in place of a deviation for each entry.
    spread
        Deviation of the random start of an instance that is never told where to begin.
    """

    start: Tensor
    unit: Tensor

    def __init__(self, *shape: int, correlated: bool = False, spread: float = 0.0) -> None:
        super().__init__()
        self.correlated = correlated
        self.register_buffer("start", torch.zeros(shape))
        unit = torch.eye(shape[-1]).expand(*shape, shape[-1]) if correlated else torch.ones(shape)
        self.register_buffer("unit", unit.clone())
        self.q_offset = PyroParam(spread * torch.randn(shape))

    def begin(self, start: Tensor, unit: Tensor) -> None:
        """Start at ``start``, in posterior deviations, or Cholesky factors, ``unit``."""
        self.start.copy_(start)
        self.unit.copy_(unit)
        self.q_offset = torch.zeros_like(start)

    @property
    def value(self) -> Tensor:
        """The vectors."""
        if self.correlated:
            return self.start + (self.unit @ self.q_offset.unsqueeze(-1)).squeeze(-1)
        return self.start + self.unit * self.q_offset
