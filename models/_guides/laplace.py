"""Laplace's approximation: a mode found by L-BFGS, and the Hessian there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pyro
import torch
from torch import Tensor

MAX_CURVATURE, MIN_CURVATURE = 1e8, 1e-2
"""Bounds of the Hessian's eigenvalues: posterior standard deviations are at most ten."""


def laplace(loss: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """Find a mode and the inverse Hessian there.

    Parameters
    ----------
    loss
        Negative log density in nats of a vector.
    start
        Initial value, shape ``(P,)``.
    steps
        Maximum number of L-BFGS iterations.

    Returns
    -------
    tuple or None
        Mode ``(P,)``, inverse Hessian ``(P, P)`` and the Hessian's diagonal ``(P,)``, both bounded; ``None`` if the
        mode or the Hessian is not finite.
    """
    with torch.enable_grad(), pyro.validation_enabled(False):
        u = _minimise(loss, start, steps)
        hessian = torch.autograd.functional.hessian(loss, u)
    if not (u.isfinite().all() and hessian.isfinite().all()):
        return None
    values, vectors = torch.linalg.eigh((hessian + hessian.mT).double() / 2)
    inverse = vectors @ (vectors / values.clamp(MIN_CURVATURE, MAX_CURVATURE)).mT
    return u, inverse.to(u.dtype), hessian.diagonal().clamp(MIN_CURVATURE, MAX_CURVATURE)


def _minimise(loss: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> Tensor:
    """Minimise by L-BFGS with a line search; return the best point even if it breaks down."""
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
