"""L-BFGS for many functions at once, each with its own line search (Nocedal and Wright 2006, algorithm 7.5).

The line search brackets and bisects a step that satisfies the weak Wolfe conditions (Lewis and Overton 2013, Nonsmooth
optimization via quasi-Newton methods); where a function is not finite, the step is too long.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["DenseInverseHessian", "InverseHessian", "LimitedMemoryInverseHessian", "Point", "line_search"]

MEMORY = 30
"""Number of pairs of steps and gradient differences that approximate the inverse Hessian."""
DECREASE, CURVATURE = 1e-4, 0.9
"""Constants of the weak Wolfe conditions: sufficient decrease, and fraction of the slope that may remain."""
LARGEST_DECREASE = 10.0
"""Decrease relative to that of the tangent (plus 1) beyond which a value is an overflow or a cancellation."""
FLAT = 1e-8
"""Curvature, relative to the largest, below which a direction is flat."""
SAFE = 0.1
"""Curvature along a step, relative to the expected one, from which the derivatives are corrected."""
MAX_TRIALS = 40
"""Maximum number of step lengths tried."""
ROUNDING = 1e-13
"""Relative increase of a function that is rounding error."""


class Point(NamedTuple):
    """R points with their function values and gradients."""

    vectors: Tensor
    """Shape ``(R, P)``."""
    values: Tensor
    """Shape ``(R,)``."""
    gradients: Tensor
    """Shape ``(R, P)``."""

    def where(self, which: Tensor, other: Point) -> Point:
        """Return these points where ``which``, and others elsewhere."""
        rows = which[:, None]
        vectors = torch.where(rows, self.vectors, other.vectors)
        gradients = torch.where(rows, self.gradients, other.gradients)
        return Point(vectors, torch.where(which, self.values, other.values), gradients)


class InverseHessian:
    """R inverse Hessians."""

    def times(self, vectors: Tensor) -> Tensor:
        """Multiply vectors of shape ``(..., R, P)`` by the R inverse Hessians."""
        raise NotImplementedError

    def update(self, before: Point, after: Point) -> None:
        """Learn from a step."""

    def step(self, gradients: Tensor) -> Tensor:
        """Return Newton steps to the zeros of R gradients, shape ``(R, P)``, to be subtracted."""
        return self.times(gradients)

    def decrement(self, gradients: Tensor) -> Tensor:
        """Return the decrease that a Newton step promises, half the squared gradient norm in this metric, in nats."""
        return (gradients * self.times(gradients)).sum(-1) / 2


class LimitedMemoryInverseHessian(InverseHessian):
    """Approximation of R inverse Hessians from the last steps.

    Parameters
    ----------
    diagonal
        Initial inverse Hessians up to a factor: their diagonals, shape ``(R, P)``.
    """

    def __init__(self, diagonal: Tensor) -> None:
        self._diagonal = diagonal
        self._scale = torch.zeros_like(diagonal[:, 0])
        R, P = diagonal.shape
        self._steps, self._changes, self._inverses = (diagonal.new_zeros(0, R, *tail) for tail in ((P,), (P,), ()))

    def update(self, before: Point, after: Point) -> None:
        """Add a step; where the curvature along it is not positive, it is ignored."""
        step, change = after.vectors - before.vectors, after.gradients - before.gradients
        curvature = (step * change).sum(-1)
        weighted = (change * change * self._diagonal).sum(-1)
        positive = (curvature > 1e-14 * weighted) & curvature.isfinite() & weighted.isfinite()
        self._scale = torch.where(positive, curvature / weighted, self._scale)
        self._steps, self._changes, self._inverses = (
            _appended(memory, new, positive)
            for memory, new in ((self._steps, step), (self._changes, change), (self._inverses, 1 / curvature))
        )

    def forget(self, which: Tensor) -> None:
        """Return to the initial inverse Hessian where ``which``."""
        self._steps[:, which] = self._changes[:, which] = self._inverses[:, which] = 0.0
        self._scale = torch.where(which, 0.0, self._scale)

    def times(self, vectors: Tensor) -> Tensor:
        """Multiply vectors of shape ``(..., R, P)`` by the R inverse Hessians.

        Before the first step the result is that for gradients: no longer than one in the metric of the diagonal.
        """
        pairs = list(zip(self._steps, self._changes, self._inverses, strict=True))
        lengths = []
        for step, change, inverse in reversed(pairs):
            along = inverse * (step * vectors).sum(-1)
            lengths.append(along)
            vectors = vectors - along[..., None] * change
        length = (vectors * vectors * self._diagonal).sum(-1).sqrt().clamp(min=1.0)
        scale = torch.where(self._scale > 0, self._scale, 1 / length)
        vectors = scale[..., None] * self._diagonal * vectors
        for (step, change, inverse), along in zip(pairs, reversed(lengths), strict=True):
            vectors = vectors + step * (along - inverse * (change * vectors).sum(-1))[..., None]
        return vectors


def _appended(memory: Tensor, new: Tensor, which: Tensor) -> Tensor:
    """Append R values to a memory of shape ``(M, R, ...)`` where ``which``; only the last are kept."""
    new = new[None]
    which = which.view(1, -1, *[1] * (new.dim() - 2))
    memory = torch.where(which, torch.cat([memory, new]), torch.cat([torch.zeros_like(new), memory]))
    return memory[-MEMORY:]


class DenseInverseHessian(InverseHessian):
    """R inverse Hessians; directions without curvature are left out, and negative curvature counts as positive.

    Parameters
    ----------
    hessians
        Shape ``(R, P, P)``.
    derivatives
        Derivatives of the gradients whose zeros are sought, of the same shape; they need not be symmetric.
    """

    def __init__(self, hessians: Tensor, derivatives: Tensor) -> None:
        curvature, self._directions = torch.linalg.eigh(hessians.nan_to_num())
        size = curvature.abs()
        self._inverse = torch.where(size > FLAT * size.amax(-1, keepdim=True), 1 / size, 0.0)
        self._inverse_derivatives = torch.linalg.pinv(derivatives.nan_to_num(), rtol=FLAT)

    def update(self, before: Point, after: Point) -> None:
        """Correct the derivatives by the change of the gradients over a step (Broyden 1965)."""
        step, change = after.vectors - before.vectors, after.gradients - before.gradients
        row = torch.einsum("rp,rpq->rq", step, self._inverse_derivatives)
        size = (row * change).sum(-1)
        correction = ((step - self.step(change)) / size[:, None])[:, :, None] * row[:, None]
        known = (size > SAFE * (step * step).sum(-1)) & correction.isfinite().all((-2, -1))
        self._inverse_derivatives = self._inverse_derivatives + torch.where(known[:, None, None], correction, 0.0)

    def step(self, gradients: Tensor) -> Tensor:
        """Return Newton steps to the zeros of R gradients, shape ``(R, P)``, to be subtracted."""
        return torch.einsum("rpq,rq->rp", self._inverse_derivatives, gradients)

    def times(self, vectors: Tensor) -> Tensor:
        """Multiply vectors of shape ``(..., R, P)`` by the R inverse Hessians."""
        along = torch.einsum("rpq,...rp->...rq", self._directions, vectors)
        return torch.einsum("rpq,...rq->...rp", self._directions, self._inverse * along)


def line_search(
    function: Callable[[Tensor, Tensor], Point], start: Point, directions: Tensor, moving: Tensor
) -> tuple[Point, Tensor]:
    """Find steps along descent directions that satisfy the weak Wolfe conditions.

    Parameters
    ----------
    function
        Evaluates the functions at vectors, shape ``(R, P)``, where a mask, shape ``(R,)``, is true.
    start
        Current points.
    directions
        Descent directions, shape ``(R, P)``.
    moving
        Which points may move, shape ``(R,)``.

    Returns
    -------
    tuple
        New points; and where a lower value was found, shape ``(R,)``.
    """
    descent = (start.gradients * directions).sum(-1)
    length = torch.ones_like(descent)
    shortest, longest = torch.zeros_like(length), torch.full_like(length, math.inf)
    best, found, searching = start, torch.zeros_like(moving), moving.clone()
    for _ in range(MAX_TRIALS):
        trial = function(start.vectors + length[:, None] * directions, searching)
        possible = trial.values >= start.values + LARGEST_DECREASE * length * descent - 1
        finite = possible & trial.values.isfinite() & trial.gradients.isfinite().all(-1)
        bound = start.values + DECREASE * length * descent + ROUNDING * start.values.abs()
        lower = finite & (trial.values <= bound)
        flat = (trial.gradients * directions).sum(-1) >= CURVATURE * descent
        best = trial.where(searching & lower, best)
        found = found | (searching & lower)
        searching = searching & ~(lower & flat)
        if not searching.any():
            break
        longest = torch.where(lower, longest, length)
        shortest = torch.where(lower, length, shortest)
        length = torch.where(longest.isfinite(), (shortest + longest) / 2, 2 * length)
    return best, found
