"""Kalman filter and smoother in parallel over time, and the diffuse log-likelihood.

Both are prefix products of an associative operation on conditional densities: the filter's element is
``p(x_t | x_{t-1}, y_t)`` with the likelihood ``p(y_t | x_{t-1})``, the smoother's is ``p(x_t | x_{t+1}, y_1:t)``
(Särkkä and García-Fernández 2021, Temporal parallelization of Bayesian smoothers, IEEE Transactions on Automatic
Control 66, 299-306).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from pplgen.exact.kalman import Filtered, Smoothed, backward_kernels, expand_covariances, predict, update
from pplgen.exact.linear_gaussian import mask_missing, matvec, symmetrise, unroll
from pplgen.exact.scan import Elements, associative_scan
from pplgen.story.dynamics import LinearGaussian

__all__ = ["diffuse_log_likelihood", "kalman_filter_scan", "rts_smoother_scan"]


def kalman_filter_scan(y: Float[Tensor, "... time observed"], parameters: LinearGaussian) -> Filtered:
    """Run the Kalman filter in parallel over time; arguments, result and errors as for ``kalman_filter``."""
    unrolled = unroll(y, parameters)
    _, _, A, b, Q, C, d, R = unrolled
    _, mean, covariance, _, _ = associative_scan(_combine_filter, _filter_elements(y, unrolled), dim=-3)
    # one sequential step from each filtered state gives the densities, and covariances in Joseph form
    predicted = predict(_shift(mean).squeeze(-1), _shift(covariance), A, b, Q)
    mean, covariance, log_densities = update(*predicted, y, C, d, R)
    return expand_covariances(Filtered(log_densities, *predicted, mean, covariance))


def rts_smoother_scan(filtered: Filtered, parameters: LinearGaussian) -> Smoothed:
    """Run the smoother in parallel over time; arguments, result and errors as for ``rts_smoother``."""
    G, g, L = backward_kernels(filtered, parameters)
    last = filtered.covariance[..., -1:, :, :]
    elements = (
        torch.cat([G, torch.zeros_like(last)], -3),
        torch.cat([g, filtered.mean[..., -1:, :]], -2).unsqueeze(-1),
        torch.cat([L, last], -3),
    )
    _, mean, covariance = associative_scan(_combine_smoother, elements, dim=-3, reverse=True)
    return Smoothed(mean.squeeze(-1), covariance, covariance[..., 1:, :, :] @ G.mT)


def diffuse_log_likelihood(y: Float[Tensor, "... time observed"], parameters: LinearGaussian) -> Float[Tensor, "..."]:
    """Return the log-likelihood under a diffuse initial state, ``lim log p(y) + D/2 log kappa`` for ``S0 = kappa I``.

    The log-likelihood given ``x_1 = m0 + z`` is ``log p(y | x_1 = m0) + eta' z - z' J z / 2``, where the scan's last
    element holds ``eta`` and ``J`` once the first step is ``x_1 = x_0 + m0``; integrated over a flat ``z`` it is ``log
    p(y | x_1 = m0) + eta' J^-1 eta / 2 - log|J| / 2``. The first D observations, which only determine the initial
    state, contribute ``-log(2 pi) / 2`` each, as in statsmodels' exact diffuse filter (Durbin and Koopman 2012, Time
    Series Analysis by State Space Methods, section 7.2.2); a filter started from the first observation omits them.

    Parameters
    ----------
    y
        Observations, NaN if missing.
    parameters
        ``S0`` is not used, and ``m0`` affects only rounding.

    Returns
    -------
    Tensor
        In nats.

    Raises
    ------
    InputError
        If shapes or dtypes do not match.
    torch.linalg.LinAlgError
        If the observations do not determine the initial state.
    """
    fixed_start = parameters._replace(S0=torch.zeros_like(parameters.S0))
    unrolled = unroll(y, fixed_start)
    identity = torch.eye(unrolled.A.shape[-1], dtype=y.dtype, device=y.device).expand_as(unrolled.A[..., :1, :, :])
    free_start = unrolled._replace(A=torch.cat([identity, unrolled.A[..., 1:, :, :]], -3))
    *_, etas, Js = associative_scan(_combine_filter, _filter_elements(y, free_start), dim=-3)
    L = torch.linalg.cholesky(Js[..., -1, :, :])
    gain = torch.linalg.solve_triangular(L, etas[..., -1, :, :], upper=False).square().sum(dim=(-2, -1)) / 2
    at_m0 = kalman_filter_scan(y, fixed_start).log_likelihood
    return at_m0 + gain - L.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1)


def _filter_elements(y: Float[Tensor, "... time observed"], unrolled: LinearGaussian) -> Elements:
    """Return ``p(x_t | x_{t-1}, y_t) = N(A x_{t-1} + b, C)`` and ``p(y_t | x_{t-1})`` in information form (eta, J).

    The paper's equations 10 to 12, with vectors as columns; H, K and e are whitened by the innovation covariance.
    """
    _, _, A, b, Q, C, d, R = unrolled
    y, C, d, R = mask_missing(y, C, d, R)
    cross = C @ Q
    L = torch.linalg.cholesky(symmetrise(cross @ C.mT) + R)
    innovation = (y - matvec(C, b) - d).unsqueeze(-1)
    H, K, e = (torch.linalg.solve_triangular(L, part, upper=False) for part in (C @ A, cross, innovation))
    A, C, J = torch.broadcast_tensors(A - K.mT @ H, Q - K.mT @ K, H.mT @ H)
    b, eta = torch.broadcast_tensors(b.unsqueeze(-1) + K.mT @ e, H.mT @ e)
    return A, b, C, eta, J


def _combine_filter(earlier: Elements, later: Elements) -> Elements:
    """Combine adjacent elements of ``_filter_elements`` (the paper's lemma 8)."""
    A1, b1, C1, eta1, J1 = earlier
    A2, b2, C2, eta2, J2 = later
    shrink = torch.linalg.inv(torch.eye(A1.shape[-1], dtype=A1.dtype, device=A1.device) + C1 @ J2)
    ahead, back = A2 @ shrink, (shrink @ A1).mT
    return (
        ahead @ A1,
        ahead @ (b1 + C1 @ eta2) + b2,
        symmetrise(ahead @ C1 @ A2.mT) + C2,
        back @ (eta2 - J2 @ b1) + eta1,
        symmetrise(back @ J2 @ A1) + J1,
    )


def _combine_smoother(earlier: Elements, later: Elements) -> Elements:
    """Combine adjacent elements of ``x_t = G x_{t+1} + g + N(0, L)`` (the paper's lemma 10)."""
    G1, g1, L1 = earlier
    G2, g2, L2 = later
    return G1 @ G2, G1 @ g2 + g1, symmetrise(G1 @ L2 @ G1.mT) + L1


def _shift(series: Float[Tensor, "... time rows columns"]) -> Float[Tensor, "... time rows columns"]:
    """Shift a series by one step of axis -3, zeros first."""
    return torch.cat([torch.zeros_like(series[..., :1, :, :]), series[..., :-1, :, :]], -3)
