"""Laplace's approximation: a mode, found by a quasi-Newton climb, and the curvature there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pyro
import torch
from torch import Tensor

MOST_CURVED, LEAST_CURVED = 1e8, 1e-2
"""Bounds of the eigenvalues of the curvature; a flat direction is as wide as ten units at most."""


def laplace(loss: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """Climb to a mode, and invert the curvature there.

    Parameters
    ----------
    loss
        Negative log density in nats of a vector.
    start
        Where to start, shape ``(P,)``.
    steps
        Of the climb, at most.

    Returns
    -------
    tuple or None
        The mode ``(P,)``, the inverse of the curvature ``(P, P)`` and the curvature's diagonal ``(P,)``, both within
        bounds; ``None`` where there is no finite mode or curvature.
    """
    with torch.enable_grad(), pyro.validation_enabled(False):
        u = _climb(loss, start, steps)
        curvature = torch.autograd.functional.hessian(loss, u)
    if not (u.isfinite().all() and curvature.isfinite().all()):
        return None
    values, vectors = torch.linalg.eigh((curvature + curvature.mT).double() / 2)
    inverse = vectors @ (vectors / values.clamp(LEAST_CURVED, MOST_CURVED)).mT
    return u, inverse.to(u.dtype), curvature.diagonal().clamp(LEAST_CURVED, MOST_CURVED)


def _climb(loss: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> Tensor:
    """Minimise by L-BFGS with a line search; where it breaks down the best point so far is kept."""
    u = start.clone().requires_grad_()
    optimiser = torch.optim.LBFGS([u], max_iter=steps, line_search_fn="strong_wolfe", tolerance_grad=1e-5)
    best = (float("inf"), start.clone())

    def closure() -> Tensor:
        nonlocal best
        optimiser.zero_grad()
        value = loss(u)
        value.backward()
        if value.item() < best[0]:
            best = (value.item(), u.detach().clone())
        return value

    with contextlib.suppress(RuntimeError, ValueError):
        optimiser.step(closure)
    return best[1]
