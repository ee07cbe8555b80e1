"""Linear Gaussian state space model of series, with states and missing entries integrated out exactly.

The gradient is reverse accumulation in closed form (``pplgen/distributions/kalman.py``): given the derivatives of
``log p(y)`` in each step's predicted mean and covariance, it remains to differentiate one filter step, at all times at
once. Pyro's ``GaussianHMM`` has the same density for noise of full rank and complete series, but works with precisions,
which in float32 lose nats if the state noise is small.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor

from pplgen.distributions.kalman import adjoints, one_step, predict, transposed
from pplgen.story.dynamics import LinearGaussian


class LinearGaussianSeries(dist.TorchDistribution):
    """Distribution of series, with states and missing entries integrated out.

    Parameters
    ----------
    parameters
        Matrices of the model, without batch or time axes.
    num_steps
        Length T of the series.
    missing
        Whether entries may be NaN; complete series are faster.
    """

    arg_constraints: dict = {}  # noqa: RUF012
    has_rsample = False

    def __init__(self, parameters: LinearGaussian, num_steps: int, *, missing: bool = True) -> None:
        self.parameters, self.num_steps, self.missing = parameters, num_steps, missing
        super().__init__(torch.Size(), torch.Size([num_steps, len(parameters.d)]), validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> LinearGaussianSeries:
        """Repeat along new axes of series."""
        new = LinearGaussianSeries(self.parameters, self.num_steps, missing=self.missing)
        new._batch_shape = torch.Size(batch_shape)
        return new

    def log_prob(self, value: Float[Tensor, "... time observed"]) -> Float[Tensor, "..."]:
        """Log density of the observed entries in nats, shape ``batch_shape``."""
        shape = torch.broadcast_shapes(value.shape[:-2], self.batch_shape)
        y = value.expand(*shape, *self.event_shape).reshape(-1, *self.event_shape).permute(2, 0, 1).unsqueeze(1)
        density: Any = _LogDensity.apply(self.missing, y, *(_with_batch_axes(part) for part in self.parameters))
        return density.reshape(shape)

    def sample(self, sample_shape: Sequence[int] = ()) -> Float[Tensor, "... time observed"]:
        """Draw series, by a parallel scan of the noise with powers of A in log2 T rounds."""
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
    """``log p(y)`` of each series, with a closed-form gradient that is itself differentiable."""

    @staticmethod
    def forward(
        ctx: Any, missing: bool, y: Float[Tensor, "observed 1 series time"], *parameters: Float[Tensor, "..."]
    ) -> Float[Tensor, "series"]:
        ctx.missing = missing
        ctx.save_for_backward(y, *parameters)
        ctx.predicted = predict(*_mask_missing(missing, y, LinearGaussian(*parameters)))
        return ctx.predicted[2].log_density.sum(-1)

    @staticmethod
    def backward(ctx: Any, gradient: Float[Tensor, "series"]) -> Any:
        create_graph = torch.is_grad_enabled()
        y, *parameters = ctx.saved_tensors
        filled, parts = _mask_missing(ctx.missing, y, LinearGaussian(*parameters))
        m, P, *steps = predict(filled, parts) if create_graph else ctx.predicted
        m_gradient, P_gradient = adjoints(*steps)
        weight = gradient.unsqueeze(-1)
        with torch.enable_grad():
            # differentiate one filter step only: m, P and their gradients do not depend on `local`
            local = [part.view_as(part).requires_grad_() for part in parameters]
            parts = _mask_missing(ctx.missing, y, LinearGaussian(*local))[1]
            step = one_step(filled, m, P, parts)
            means = torch.cat([parts.m0.expand_as(m[..., :1]), step.mean[..., :-1]], -1)
            total = (weight * (step.log_density + (m_gradient * means).sum((0, 1)))).sum()
            P_gradient = weight * P_gradient
            total = total + (P_gradient[..., :1] * parts.S0).sum()
            total = total + (P_gradient[..., 1:] * step.covariance[..., :-1]).sum()
            gradients = torch.autograd.grad(total, local, create_graph=create_graph, materialize_grads=True)
        return (None, None, *gradients)


def _mask_missing(
    missing: bool, y: Float[Tensor, "observed 1 series time"], parts: LinearGaussian
) -> tuple[Float[Tensor, "observed 1 series time"], LinearGaussian]:
    """Replace missing entries by uninformative ones: value 0, mean 0, independent noise with density one at 0."""
    if not missing:
        return y, parts
    gap = y.isnan()
    independent = torch.eye(len(y), dtype=y.dtype, device=y.device).reshape(len(y), -1, 1, 1) / (2 * math.pi)
    C, d = torch.where(gap, 0.0, parts.C), torch.where(gap, 0.0, parts.d)
    R = torch.where(gap | transposed(gap), independent, parts.R)
    return torch.where(gap, 0.0, y), parts._replace(C=C, d=d, R=R)


def _with_batch_axes(part: Float[Tensor, "..."]) -> Float[Tensor, "_ _ _ _"]:
    """Append axes of series and steps to a vector or matrix."""
    return part.reshape(*part.shape, *[1] * (4 - part.ndim))


def _noise(covariance: Float[Tensor, "size size"], shape: Sequence[int]) -> Float[Tensor, "... size"]:
    """Draw from a zero-mean normal distribution whose covariance may be singular."""
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp_min(0).sqrt()
    return torch.randn(*shape, len(covariance), dtype=root.dtype, device=root.device) @ root.mT
