"""Series of a linear Gaussian state space model, their states and missing entries integrated out exactly.

The gradient is that of reverse accumulation in closed form (``_distributions/kalman.py``): once the derivatives of
``log p(y)`` in each step's predicted mean and covariance are known, what is left is the derivative of one step of the
filter, at all steps at once. Pyro's ``GaussianHMM`` has the same density for noise of full rank and complete series; it
works with precisions, which in float32 lose nats where states hardly move.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pplgen.models._distributions.kalman import adjoints, one_step, predicted, transposed
from torch import Tensor

from pplgen.story.dynamics import LinearGaussian


class LinearGaussianSeries(dist.TorchDistribution):
    """Series whose states are integrated out, and whose missing entries are.

    Parameters
    ----------
    parameters
        Constant, without axes of batch or time.
    num_steps
        Length T of the series.
    missing
        Whether entries may be NaN; complete series are cheaper.
    """

    arg_constraints: dict = {}  # noqa: RUF012
    has_rsample = False

    def __init__(self, parameters: LinearGaussian, num_steps: int, *, missing: bool = True) -> None:
        self.parameters, self.num_steps, self.missing = parameters, num_steps, missing
        super().__init__(torch.Size(), torch.Size([num_steps, len(parameters.d)]), validate_args=False)

    def expand(self, batch_shape: torch.Size, _instance: None = None) -> LinearGaussianSeries:
        """Repeat along new axes of series."""
        new = LinearGaussianSeries(self.parameters, self.num_steps, missing=self.missing)
        new._batch_shape = torch.Size(batch_shape)
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of the seen entries in nats, shape ``batch_shape``."""
        shape = torch.broadcast_shapes(value.shape[:-2], self.batch_shape)
        y = value.expand(*shape, *self.event_shape).reshape(-1, *self.event_shape).permute(2, 0, 1).unsqueeze(1)
        density: Any = _LogDensity.apply(self.missing, y, *(_untimed(part) for part in self.parameters))
        return density.reshape(shape)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw series: the sum of all noise so far, moved on by powers of A, in log2 T rounds."""
        with torch.no_grad():
            m0, S0, A, b, Q, C, d, R = self.parameters
            shape = (*sample_shape, *self.batch_shape)
            x = torch.cat([_noise(S0, (*shape, 1)) + m0, _noise(Q, (*shape, self.num_steps - 1)) + b], -2)
            stride = 1
            while stride < self.num_steps:
                x = torch.cat([x[..., :stride, :], x[..., stride:, :] + x[..., :-stride, :] @ A.mT], -2)
                A, stride = A @ A, 2 * stride
            return x @ C.mT + d + _noise(R, (*shape, self.num_steps))


class _LogDensity(torch.autograd.Function):
    """``log p(y)`` of each series, with the gradient in closed form; it can be differentiated again."""

    @staticmethod
    def forward(ctx: Any, missing: bool, y: Tensor, *parameters: Tensor) -> Tensor:
        ctx.missing = missing
        ctx.save_for_backward(y, *parameters)
        ctx.predicted = predicted(*_seen(missing, y, LinearGaussian(*parameters)))
        return ctx.predicted[2].log_density.sum(-1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        again = torch.is_grad_enabled()
        y, *given = ctx.saved_tensors
        seen, parts = _seen(ctx.missing, y, LinearGaussian(*given))
        m, P, *following = predicted(seen, parts) if again else ctx.predicted
        m_gradient, P_gradient = adjoints(*following)
        weight = gradient.unsqueeze(-1)
        with torch.enable_grad():
            # one step of the filter, its input held: neither m, P nor their gradients lead back to what is local
            local = [part.view_as(part).requires_grad_() for part in given]
            parts = _seen(ctx.missing, y, LinearGaussian(*local))[1]
            step = one_step(seen, m, P, parts)
            means = torch.cat([parts.m0.expand_as(m[..., :1]), step.mean[..., :-1]], -1)
            total = (weight * (step.log_density + (m_gradient * means).sum((0, 1)))).sum()
            P_gradient = weight * P_gradient
            total = total + (P_gradient[..., :1] * parts.S0).sum()
            total = total + (P_gradient[..., 1:] * step.covariance[..., :-1]).sum()
            gradients = torch.autograd.grad(total, local, create_graph=again, materialize_grads=True)
        return (None, None, *gradients)


def _seen(missing: bool, y: Tensor, parts: LinearGaussian) -> tuple[Tensor, LinearGaussian]:
    """Replace missing entries by ones that say nothing: 0 seen, 0 expected, noise of density one at 0 of their own."""
    if not missing:
        return y, parts
    gap = y.isnan()
    alone = torch.eye(len(y), dtype=y.dtype, device=y.device).reshape(len(y), -1, 1, 1) / (2 * math.pi)
    C, d = torch.where(gap, 0.0, parts.C), torch.where(gap, 0.0, parts.d)
    R = torch.where(gap | transposed(gap), alone, parts.R)
    return torch.where(gap, 0.0, y), parts._replace(C=C, d=d, R=R)


def _untimed(part: Tensor) -> Tensor:
    """Give a vector or matrix the axes of series and steps."""
    return part.reshape(*part.shape, *[1] * (4 - part.ndim))


def _noise(covariance: Tensor, shape: Sequence[int]) -> Tensor:
    """Draw from a normal distribution whose covariance may be singular."""
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp_min(0).sqrt()
    return torch.randn(*shape, len(covariance), dtype=root.dtype, device=root.device) @ root.mT
