"""Exact inference in switching linear Gaussian models on short series: a Kalman filter for each of K^T regime paths."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from pplgen.errors import InputError
from pplgen.exact.kalman import kalman_filter, rts_smoother
from pplgen.exact.switching import SwitchingSmoothed, collapse, per_regime
from pplgen.story.dynamics import LinearGaussian, SwitchingLinearGaussian

__all__ = ["MAX_PATHS", "enumerate_regimes"]

MAX_PATHS = 2**16
"""Maximum number of regime paths."""


def enumerate_regimes(
    y: Float[Tensor, "... time observed"], parameters: SwitchingLinearGaussian
) -> tuple[Float[Tensor, "..."], SwitchingSmoothed]:
    """Compute likelihood and smoothed moments by summing over all regime paths.

    Parameters
    ----------
    y
        Observations, NaN if missing.
    parameters
        Parameters of y's dtype.

    Returns
    -------
    log_likelihood : Tensor
        ``log p(y_1:T)`` in nats.
    smoothed : SwitchingSmoothed
        Probabilities of the regimes, means and covariances of the states given all observations.

    Raises
    ------
    InputError
        If shapes or dtypes do not match, or there are more than ``MAX_PATHS`` paths.
    torch.linalg.LinAlgError
        If a predictive covariance of an observation, or of a state after the first, is not positive definite.
    """
    pi, P, m0, S0, A, b, Q, C, d, R = per_regime(y, parameters)
    T, K = y.shape[-2], len(pi)
    if K**T > MAX_PATHS:
        raise InputError(f"{K} regimes over {T} steps have {K}^{T} paths; expected at most {MAX_PATHS}")
    paths = torch.cartesian_prod(*[torch.arange(K, device=y.device)] * T).reshape(-1, T)
    per_path = LinearGaussian(m0, S0, *(part[paths] for part in (A, b, Q, C, d, R)))
    filtered = kalman_filter(y.unsqueeze(-3), per_path)
    log_prior = pi.log()[paths[:, 0]] + P.log()[paths[:, :-1], paths[:, 1:]].sum(dim=-1)
    log_joint = log_prior + filtered.log_likelihood
    weights = log_joint.softmax(dim=-1)
    probabilities = torch.einsum("...p,ptk->...tk", weights, torch.nn.functional.one_hot(paths, K).to(y.dtype))
    smoothed = rts_smoother(filtered, per_path)
    moments = collapse(weights.unsqueeze(-1), smoothed.mean, smoothed.covariance, dim=-2)
    return log_joint.logsumexp(dim=-1), SwitchingSmoothed(probabilities, *moments)
