"""Kalman filter and Rauch-Tung-Striebel smoother for linear Gaussian state space models, step by step.

The state starts at ``x_1 ~ N(m0, S0)``, evolves by ``x_t = A_t x_{t-1} + b_t + N(0, Q_t)`` and is observed
as ``y_t = C_t x_t + d_t + N(0, R_t)``. Coordinates of ``y_t`` that are NaN are missing and marginalised exactly.
``kalman_scan`` computes the same in parallel over time. (Särkkä and Svensson 2023, Bayesian Filtering and
Smoothing, theorems 6.6 and 12.2.)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from pplgen.errors import renamed
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

__getattr__ = renamed(__name__, {"over_all_batches": "expand_covariances"})


class Filtered(NamedTuple):
    """Results of the Kalman filter."""

    log_densities: Float[Tensor, "... time"]
    """``log p(y_t | y_1:t-1)`` in nats, of the observed coordinates."""
    predicted_mean: Float[Tensor, "... time state"]
    """``E[x_t | y_1:t-1]``."""
    predicted_covariance: Float[Tensor, "... time state state"]
    """``Cov[x_t | y_1:t-1]``."""
    mean: Float[Tensor, "... time state"]
    """``E[x_t | y_1:t]``."""
    covariance: Float[Tensor, "... time state state"]
    """``Cov[x_t | y_1:t]``."""

    @property
    def log_likelihood(self) -> Float[Tensor, "..."]:
        """``log p(y_1:T)`` in nats."""
        return self.log_densities.sum(dim=-1)


class Smoothed(NamedTuple):
    """Results of the Rauch-Tung-Striebel smoother."""

    mean: Float[Tensor, "... time state"]
    """``E[x_t | y_1:T]``."""
    covariance: Float[Tensor, "... time state state"]
    """``Cov[x_t | y_1:T]``."""
    cross_covariance: Float[Tensor, "... time-1 state state"]
    """``Cov[x_{t+1}, x_t | y_1:T]``."""


def predict(
    mean: Float[Tensor, "... state"],
    covariance: Float[Tensor, "... state state"],
    A: Float[Tensor, "... state state"],
    b: Float[Tensor, "... state"],
    Q: Float[Tensor, "... state state"],
) -> tuple[Float[Tensor, "... state"], Float[Tensor, "... state state"]]:
    """Predict one step ahead.

    Parameters
    ----------
    mean, covariance
        Moments of ``x_{t-1}``.
    A, b, Q
        Parameters of this step; batch axes broadcast.

    Returns
    -------
    mean, covariance : Tensor
        Moments of ``x_t``: ``A m + b`` and ``A P A' + Q``.
    """
    return matvec(A, mean) + b, symmetrise(A @ covariance @ A.mT) + Q


def update(
    mean: Float[Tensor, "... state"],
    covariance: Float[Tensor, "... state state"],
    y: Float[Tensor, "... observed"],
    C: Float[Tensor, "... observed state"],
    d: Float[Tensor, "... observed"],
    R: Float[Tensor, "... observed observed"],
) -> tuple[Float[Tensor, "... state"], Float[Tensor, "... state state"], Float[Tensor, "..."]]:
    """Condition on one observation, in Joseph form: the covariance stays symmetric and positive semi-definite.

    Parameters
    ----------
    mean, covariance
        Predicted moments of ``x_t``.
    y
        ``y_t``, NaN if missing.
    C, d, R
        Parameters of this step; batch axes broadcast.

    Returns
    -------
    mean, covariance : Tensor
        Filtered moments of ``x_t``.
    log_density : Tensor
        ``log N(y_t; C m + d, C P C' + R)`` of the observed coordinates in nats.

    Raises
    ------
    torch.linalg.LinAlgError
        If ``C P C' + R`` is not positive definite.
    """
    num_observed = (~y.isnan()).to(y.dtype).sum(dim=-1)
    y, C, d, R = mask_missing(y, C, d, R)
    innovation = y - matvec(C, mean) - d
    cross = C @ covariance
    L = torch.linalg.cholesky(symmetrise(cross @ C.mT) + R)
    gain = torch.cholesky_solve(cross, L).mT
    log_density = log_normal(innovation, L, num_observed)
    return mean + matvec(gain, innovation), _joseph(covariance, gain, C, R), log_density


def backward_kernel(
    mean: Float[Tensor, "... state"],
    covariance: Float[Tensor, "... state state"],
    A: Float[Tensor, "... state state"],
    b: Float[Tensor, "... state"],
    Q: Float[Tensor, "... state state"],
) -> tuple[Float[Tensor, "... state state"], Float[Tensor, "... state"], Float[Tensor, "... state state"]]:
    """Compute the backward kernel of one step: ``p(x_t | x_{t+1}, y_1:t) = N(G x_{t+1} + g, L)``.

    Parameters
    ----------
    mean, covariance
        Filtered moments of ``x_t``.
    A, b, Q
        Parameters of step t+1; batch axes broadcast.

    Returns
    -------
    G, g, L : Tensor
        Smoother gain, offset and covariance.

    Raises
    ------
    torch.linalg.LinAlgError
        If the predicted covariance ``A P A' + Q`` is not positive definite.
    """
    predicted_mean, predicted_covariance = predict(mean, covariance, A, b, Q)
    G = torch.cholesky_solve(A @ covariance, torch.linalg.cholesky(predicted_covariance)).mT
    return G, mean - matvec(G, predicted_mean), _joseph(covariance, G, A, Q)


def kalman_filter(y: Float[Tensor, "... time observed"], parameters: LinearGaussian) -> Filtered:
    """Run the sequential Kalman filter.

    Parameters
    ----------
    y
        Observations, NaN if missing.
    parameters
        Parameters of y's dtype; batch axes broadcast with y's.

    Raises
    ------
    InputError
        If shapes or dtypes do not match.
    torch.linalg.LinAlgError
        If an observation's predictive covariance is not positive definite.
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
    """Run the sequential Rauch-Tung-Striebel smoother.

    Parameters
    ----------
    filtered
        Result of the filter.
    parameters
        Parameters of the filter.

    Raises
    ------
    InputError
        If shapes do not match.
    torch.linalg.LinAlgError
        If a predicted covariance after the first is not positive definite.
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


def backward_kernels(
    filtered: Filtered, parameters: LinearGaussian
) -> tuple[
    Float[Tensor, "... steps state state"], Float[Tensor, "... steps state"], Float[Tensor, "... steps state state"]
]:
    """Return the backward kernels of all steps but the last."""
    T, D = filtered.mean.shape[-2:]
    return backward_kernel(
        filtered.mean[..., :-1, :],
        filtered.covariance[..., :-1, :, :],
        along_time("A", parameters.A, T, D, D)[..., 1:, :, :],
        along_time("b", parameters.b, T, D)[..., 1:, :],
        along_time("Q", parameters.Q, T, D, D)[..., 1:, :, :],
    )


def expand_covariances(filtered: Filtered) -> Filtered:
    """Expand covariances to the batch axes of their means."""
    shape = (*filtered.mean.shape, filtered.mean.shape[-1])
    return filtered._replace(
        predicted_covariance=filtered.predicted_covariance.expand(shape), covariance=filtered.covariance.expand(shape)
    )


def _joseph(
    covariance: Float[Tensor, "... state state"],
    gain: Float[Tensor, "... state observed"],
    H: Float[Tensor, "... observed state"],
    noise: Float[Tensor, "... observed observed"],
) -> Float[Tensor, "... state state"]:
    """Return ``Cov[x | H x + noise]`` in Joseph form: a sum of two positive terms, robust to rounding."""
    residual = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device) - gain @ H
    return symmetrise(residual @ covariance @ residual.mT + gain @ noise @ gain.mT)
