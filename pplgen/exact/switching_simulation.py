"""Paths of switching linear Gaussian models drawn from their posterior, last step first, from Kim's filter."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pplgen.dynamics import SwitchingLinearGaussian
from pplgen.errors import InputError
from pplgen.exact.kalman import backward_kernel, predict
from pplgen.exact.linear_gaussian import log_normal, times, without_gaps
from pplgen.exact.simulation import draw_categorical, draw_normal
from pplgen.exact.switching import SwitchingFiltered, per_regime, transitions_at, with_axes

__all__ = ["SwitchingPaths", "draw_switching_paths"]


class SwitchingPaths(NamedTuple):
    """Draws of whole paths, M for each series."""

    regimes: Tensor
    """Integers, shape ``(..., M, T)``."""
    states: Tensor
    """Shape ``(..., M, T, D)``."""
    log_ratios: Tensor
    """``log p(y, s, x) - log q(s, x)`` in nats, q being what the paths were drawn from, shape ``(..., M)``. By these a
    path counts, and the mean of their exponentials is an unbiased estimate of the likelihood."""


def draw_switching_paths(
    y: Tensor,
    filtered: SwitchingFiltered,
    parameters: SwitchingLinearGaussian,
    num_paths: int,
    *,
    log_transition: Callable[[Tensor], Tensor] | None = None,
) -> SwitchingPaths:
    """Draw regimes and states given series, with torch's generator.

    Once regime and state of a step are drawn, those of the step before follow the filter's mixture of Gaussians,
    reweighted and moved by what came next. The draws would be exact if the filter were. What it lost by collapsing its
    Gaussians shows in Bayes' rule: ``p(s_t, x_t | y_1:t-1) p(y_t | s_t, x_t) / p(s_t, x_t | y_1:t)`` should be
    ``p(y_t | y_1:t-1)`` whatever the regime and the state. The product of what it is instead is the path's ratio.

    Parameters
    ----------
    y
        Observations, NaN where missing, shape ``(..., T, E)``.
    filtered, parameters, log_transition
        What ``kim_filter`` returned, and what it ran with.
    num_paths
        M.

    Raises
    ------
    InputError
        Where shapes, dtypes or numbers do not fit.
    torch.linalg.LinAlgError
        Where a filtered or predicted covariance of the state is not positive definite.

    References
    ----------
    Fong, Godsill, Doucet and West (2002), Monte Carlo smoothing with application to audio signal enhancement.
    """
    parameters = per_regime(y, parameters)
    if num_paths < 1:
        raise InputError(f"num_paths={num_paths}; expected at least 1")
    moves = with_axes(parameters, 1)
    log_shares = filtered.probabilities.clamp_min(torch.finfo(y.dtype).tiny).log()
    # each with an axis of paths in front of that of the steps
    known = log_shares.unsqueeze(-3), filtered.mean.unsqueeze(-4), filtered.covariance.unsqueeze(-5)

    s = draw_categorical(known[0][..., -1, :].expand(*filtered.mean.shape[:-3], num_paths, -1))
    x = draw_normal(_in_regimes(known[1][..., -1, :, :], s, 1), _in_regimes(known[2][..., -1, :, :, :], s, 2))
    steps, log_predicted, log_taken = [(s, x)], [], []
    for t in reversed(range(y.shape[-2] - 1)):
        log_share, mean, covariance = known[0][..., t, :], known[1][..., t, :, :], known[2][..., t, :, :, :]
        log_P = moves.P.log().unsqueeze(-3) if log_transition is None else transitions_at(mean, log_transition)
        into_next = _in_regimes(log_P.mT, s, 1)
        A, b, Q = _in_regimes(moves.A, s, 2), _in_regimes(moves.b, s, 1), _in_regimes(moves.Q, s, 2)
        expected, spread = predict(mean, covariance, A.unsqueeze(-3), b.unsqueeze(-2), Q.unsqueeze(-3))
        log_next = log_share + into_next + log_normal(x.unsqueeze(-2) - expected, torch.linalg.cholesky(spread))
        log_predicted.append(log_next.logsumexp(dim=-1))
        s = draw_categorical(log_next)
        log_taken.append(_in_regimes(into_next, s, 0))
        G, g, L = backward_kernel(_in_regimes(mean, s, 1), _in_regimes(covariance, s, 2), A, b, Q)
        x = draw_normal(times(G, x) + g, L)
        steps.append((s, x))
    s, x = torch.stack([s for s, _ in steps[::-1]], -1), torch.stack([x for _, x in steps[::-1]], -2)

    # the first step is exact
    log_share, mean, covariance = known[0][..., 1:, :], known[1][..., 1:, :, :], known[2][..., 1:, :, :, :]
    later, roots = s[..., 1:], torch.linalg.cholesky(covariance)
    log_kept = _in_regimes(log_share, later, 0)
    log_kept = log_kept + log_normal(x[..., 1:, :] - _in_regimes(mean, later, 1), _in_regimes(roots, later, 2))
    log_seen = _log_emission(y[..., None, 1:, :], x[..., 1:, :], with_axes(parameters, 2))
    log_ratios = filtered.log_densities[..., :1] + (_in_regimes(log_seen, later, 0) - log_kept).sum(dim=-1)
    if log_predicted:
        log_ratios = log_ratios + torch.stack(log_predicted, -1).sum(dim=-1)
    if log_transition is not None and log_taken:
        moved = _in_regimes(_in_regimes(log_transition(x[..., :-1, :]), s[..., :-1], 1), later, 0)
        log_ratios = log_ratios + (moved - torch.stack(log_taken[::-1], -1)).sum(dim=-1)
    return SwitchingPaths(s, x, log_ratios)


def _in_regimes(part: Tensor, regimes: Tensor, core: int) -> Tensor:
    """Take each regime's value of a part, ``(..., K, *core)`` with so many axes behind the regimes', which broadcast.

    The axes in front of K broadcast with those of ``regimes``, whose shape the result has but for the core.
    """
    own = part.expand(*regimes.shape, *part.shape[-core - 1 :])
    index = regimes[(..., *(None,) * (core + 1))].expand(*regimes.shape, 1, *part.shape[part.ndim - core :])
    return own.gather(regimes.ndim, index).squeeze(regimes.ndim)


def _log_emission(y: Tensor, x: Tensor, parameters: SwitchingLinearGaussian) -> Tensor:
    """Return the log density of each observation in each regime, nats, shape ``(..., M, T, K)``."""
    num_seen = (~y.isnan()).to(y.dtype).sum(dim=-1)
    each = []
    for k in range(parameters.pi.shape[-1]):  # one by one, or paths would multiply the noise's covariances
        seen, C, d, R = without_gaps(y, parameters.C[..., k, :, :], parameters.d[..., k, :], parameters.R[..., k, :, :])
        each.append(log_normal(seen - times(C, x) - d, torch.linalg.cholesky(R), num_seen))
    return torch.stack(each, -1)
