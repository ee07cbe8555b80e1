"""Kalman filter and Rauch-Tung-Striebel smoother for linear Gaussian state space models, step by step.

The state starts at ``x_1 ~ N(m0, S0)``, moves by ``x_t = A_t x_{t-1} + b_t + N(0, Q_t)`` and is seen through
``y_t = C_t x_t + d_t + N(0, R_t)``. Coordinates of ``y_t`` that are NaN are missing and marginalised exactly.
``kalman_scan`` gives the same answers in parallel over time. (Särkkä and Svensson 2023, Bayesian Filtering and
Smoothing, theorems 6.6 and 12.2.)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pplgen.exact.linear_gaussian import log_normal, mask_missing, matvec, symmetrise, unroll
from pplgen.exact.shapes import along_time, stack_steps
from pplgen.story.dynamics import LinearGaussian

__all__ = [
    "Filtered",
    "Smoothed",
    "backward_kernel",
    "backward_kernels",
    "expand_covariances",
    "kalman_filter",
    "predict",
    "rts_smoother",
    "update",
]


class Filtered(NamedTuple):
    """What each observation and those before it say."""

    log_densities: Tensor
    """``log p(y_t | y_1:t-1)`` in nats, of the seen coordinates, shape ``(..., T)``."""
    predicted_mean: Tensor
    """``E[x_t | y_1:t-1]``, shape ``(..., T, D)``."""
    predicted_covariance: Tensor
    """``Cov[x_t | y_1:t-1]``, shape ``(..., T, D, D)``."""
    mean: Tensor
    """``E[x_t | y_1:t]``, shape ``(..., T, D)``."""
    covariance: Tensor
    """``Cov[x_t | y_1:t]``, shape ``(..., T, D, D)``."""

    @property
    def log_likelihood(self) -> Tensor:
        """``log p(y_1:T)`` in nats, shape ``(...)``."""
        return self.log_densities.sum(dim=-1)


class Smoothed(NamedTuple):
    """What all observations say."""

    mean: Tensor
    """``E[x_t | y_1:T]``, shape ``(..., T, D)``."""
    covariance: Tensor
    """``Cov[x_t | y_1:T]``, shape ``(..., T, D, D)``."""
    cross_covariance: Tensor
    """``Cov[x_{t+1}, x_t | y_1:T]``, shape ``(..., T - 1, D, D)``."""


def predict(mean: Tensor, covariance: Tensor, A: Tensor, b: Tensor, Q: Tensor) -> tuple[Tensor, Tensor]:
    """Move one step ahead.

    Parameters
    ----------
    mean, covariance
        Of ``x_{t-1}``, shapes ``(..., D)`` and ``(..., D, D)``.
    A, b, Q
        Of this step; batch axes broadcast.

    Returns
    -------
    mean, covariance : Tensor
        Of ``x_t``: ``A m + b`` and ``A P A' + Q``.
    """
    return matvec(A, mean) + b, symmetrise(A @ covariance @ A.mT) + Q


def update(
    mean: Tensor, covariance: Tensor, y: Tensor, C: Tensor, d: Tensor, R: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Condition on one observation, in Joseph's form: the covariance stays symmetric and positive.

    Parameters
    ----------
    mean, covariance
        Of ``x_t`` before it is seen, shapes ``(..., D)`` and ``(..., D, D)``.
    y
        ``y_t``, NaN where missing, shape ``(..., E)``.
    C, d, R
        Of this step; batch axes broadcast.

    Returns
    -------
    mean, covariance : Tensor
        Of ``x_t`` once ``y_t`` is seen.
    log_density : Tensor
        ``log N(y_t; C m + d, C P C' + R)`` of the seen coordinates in nats, shape ``(...)``.

    Raises
    ------
    torch.linalg.LinAlgError
        Where ``C P C' + R`` is not positive definite.
    """
    num_seen = (~y.isnan()).to(y.dtype).sum(dim=-1)
    y, C, d, R = mask_missing(y, C, d, R)
    innovation = y - matvec(C, mean) - d
    across = C @ covariance
    L = torch.linalg.cholesky(symmetrise(across @ C.mT) + R)
    gain = torch.cholesky_solve(across, L).mT
    log_density = log_normal(innovation, L, num_seen)
    return mean + matvec(gain, innovation), _joseph(covariance, gain, C, R), log_density


def backward_kernel(mean: Tensor, covariance: Tensor, A: Tensor, b: Tensor, Q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Turn one step of the dynamics around: ``p(x_t | x_{t+1}, y_1:t) = N(G x_{t+1} + g, L)``.

    Parameters
    ----------
    mean, covariance
        Filtered, of ``x_t``, shapes ``(..., D)`` and ``(..., D, D)``.
    A, b, Q
        Of step t+1; batch axes broadcast.

    Returns
    -------
    G, g, L : Tensor
        Shapes ``(..., D, D)``, ``(..., D)`` and ``(..., D, D)``.

    Raises
    ------
    torch.linalg.LinAlgError
        Where the predicted covariance ``A P A' + Q`` is not positive definite.
    """
    predicted_mean, predicted_covariance = predict(mean, covariance, A, b, Q)
    G = torch.cholesky_solve(A @ covariance, torch.linalg.cholesky(predicted_covariance)).mT
    return G, mean - matvec(G, predicted_mean), _joseph(covariance, G, A, Q)


def kalman_filter(y: Tensor, parameters: LinearGaussian) -> Filtered:
    """Filter a series, one step after the other.

    Parameters
    ----------
    y
        Observations, NaN where missing, shape ``(..., T, E)``.
    parameters
        Of y's dtype; batch axes broadcast with y's.

    Raises
    ------
    InputError
        Where shapes or dtypes do not fit.
    torch.linalg.LinAlgError
        Where an observation's predictive covariance is not positive definite.
    """
    _, _, A, b, Q, C, d, R = unroll(y, parameters)
    mean, covariance = torch.zeros_like(b[..., 0, :]), torch.zeros_like(Q[..., 0, :, :])
    steps = []
    for t in range(y.shape[-2]):
        predicted = predict(mean, covariance, A[..., t, :, :], b[..., t, :], Q[..., t, :, :])
        mean, covariance, log_density = update(*predicted, y[..., t, :], C[..., t, :, :], d[..., t, :], R[..., t, :, :])
        steps.append((log_density, *predicted, mean, covariance))
    return expand_covariances(Filtered(*stack_steps(steps, -1, -2, -3, -2, -3)))


def rts_smoother(filtered: Filtered, parameters: LinearGaussian) -> Smoothed:
    """Smooth a filtered series, one step back after the other.

    Parameters
    ----------
    filtered
        What the filter returned.
    parameters
        Those the filter ran with.

    Raises
    ------
    InputError
        Where shapes do not fit.
    torch.linalg.LinAlgError
        Where a predicted covariance after the first is not positive definite.
    """
    G, g, L = backward_kernels(filtered, parameters)
    mean, covariance = filtered.mean[..., -1, :], filtered.covariance[..., -1, :, :]
    steps = [(mean, covariance)]
    for t in reversed(range(g.shape[-2])):
        mean = matvec(G[..., t, :, :], mean) + g[..., t, :]
        covariance = symmetrise(G[..., t, :, :] @ covariance @ G[..., t, :, :].mT) + L[..., t, :, :]
        steps.append((mean, covariance))
    means, covariances = stack_steps(steps[::-1], -2, -3)
    return Smoothed(means, covariances, covariances[..., 1:, :, :] @ G.mT)


def backward_kernels(filtered: Filtered, parameters: LinearGaussian) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``backward_kernel`` from each step's successor, shapes ``(..., T - 1, D, D)`` or ``(..., T - 1, D)``."""
    T, D = filtered.mean.shape[-2:]
    return backward_kernel(
        filtered.mean[..., :-1, :],
        filtered.covariance[..., :-1, :, :],
        along_time("A", parameters.A, T, D, D)[..., 1:, :, :],
        along_time("b", parameters.b, T, D)[..., 1:, :],
        along_time("Q", parameters.Q, T, D, D)[..., 1:, :, :],
    )


def expand_covariances(filtered: Filtered) -> Filtered:
    """Give covariances that several series share the batch axes of their means."""
    shape = (*filtered.mean.shape, filtered.mean.shape[-1])
    return filtered._replace(
        predicted_covariance=filtered.predicted_covariance.expand(shape), covariance=filtered.covariance.expand(shape)
    )


def _joseph(covariance: Tensor, gain: Tensor, H: Tensor, noise: Tensor) -> Tensor:
    """Return the covariance left once ``H x + noise`` is known: a sum of two positive terms, safe against rounding."""
    left = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device) - gain @ H
    return symmetrise(left @ covariance @ left.mT + gain @ noise @ gain.mT)
