"""Paths of switching linear Gaussian models drawn from their posterior, from a filter's sums of Gaussians."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pplgen.errors import InputError
from pplgen.exact.gaussian_sums import GaussianSum, GaussianSums
from pplgen.exact.kalman import backward_kernel, predict
from pplgen.exact.linear_gaussian import log_normal, log_normals, mask_missing, matvec
from pplgen.exact.shapes import pick
from pplgen.exact.simulation import draw_categorical, draw_normal
from pplgen.exact.switching import insert_batch_axes, per_regime
from pplgen.story.dynamics import SwitchingLinearGaussian

__all__ = ["SwitchingPaths", "draw_switching_paths"]


class SwitchingPaths(NamedTuple):
    """Draws of whole paths, M for each series."""

    regimes: Tensor
    """Integers, shape ``(..., M, T)``."""
    states: Tensor
    """Shape ``(..., M, T, D)``."""
    log_ratios: Tensor
    """``log p(y, s, x) - log q(s, x)`` in nats, q being what the paths were drawn from, shape ``(..., M)``. By these a
    path counts, and the mean of their exponentials is an unbiased estimate of the likelihood. Where transitions depend
    on the state, the filter's terms that were drawn count as part of the path, in p and in q."""


def draw_switching_paths(
    y: Tensor,
    filtered: GaussianSums,
    parameters: SwitchingLinearGaussian,
    num_paths: int,
    *,
    lengths: Tensor | None = None,
    log_transition: Callable[[Tensor], Tensor] | None = None,
) -> SwitchingPaths:
    """Draw regimes and states given series, with torch's generator; past the end of a series its last ones stay.

    Once regime and state of a step are drawn, those of the step before follow the filter's mixture of Gaussians,
    reweighted and moved by what came next. The draws would be exact if the filter were. What it lost by collapsing its
    Gaussians shows in Bayes' rule: ``p(s_t, x_t | y_1:t-1) p(y_t | s_t, x_t) / p(s_t, x_t | y_1:t)`` should be
    ``p(y_t | y_1:t-1)`` whatever the regime and the state. The product of what it is instead is the path's ratio.

    Parameters
    ----------
    y
        Observations, NaN where missing, shape ``(..., T, E)``.
    filtered, parameters, lengths, log_transition
        What ``gaussian_sum_filter`` returned, and what it ran with.
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
    moves, log_P = insert_batch_axes(parameters, 1), parameters.P.log()[..., None, None, :, :]
    *batch, T = filtered.log_densities.shape
    last = torch.as_tensor(T if lengths is None else lengths, device=y.device).unsqueeze(-1) - 1
    # an axis of paths in front of that of the terms
    known = [GaussianSum(*(part.unsqueeze(len(batch)) for part in step)) for step in filtered.steps]

    term = draw_categorical(known[-1].log_weights.expand(*batch, num_paths, -1))
    s, mean, covariance = _picked(known[-1], term)
    x = draw_normal(mean, covariance)
    regimes, states, log_ratios = [s], [x], filtered.log_densities[..., :1]
    for t in reversed(range(T - 1)):
        now, after = known[t], known[t + 1]
        rows = pick(log_P if log_transition is None else log_transition(now.mean), now.regimes, 1)
        into_next = pick(rows.mT, s, 1)
        A, b, Q = pick(moves.A, s, 2), pick(moves.b, s, 1), pick(moves.Q, s, 2)
        expected, spread = predict(now.mean, now.covariance, A.unsqueeze(-3), b.unsqueeze(-2), Q.unsqueeze(-3))
        log_next = now.log_weights + into_next + log_normal(x.unsqueeze(-2) - expected, torch.linalg.cholesky(spread))
        log_ratio = log_next.logsumexp(dim=-1) - _log_density(after, s, x)
        going_on = t < last
        term = draw_categorical(torch.where(going_on.unsqueeze(-1), log_next, now.log_weights))
        before, mean, covariance = _picked(now, term)
        G, g, L = backward_kernel(mean, covariance, A, b, Q)
        moved = going_on.unsqueeze(-1)
        x = draw_normal(torch.where(moved, matvec(G, x) + g, mean), torch.where(moved.unsqueeze(-1), L, covariance))
        if log_transition is not None:
            log_ratio = log_ratio + pick(pick(log_transition(x), before, 1), s, 0) - pick(into_next, term, 0)
        log_ratios = log_ratios + torch.where(going_on, log_ratio, 0.0)
        s = before
        regimes.append(s)
        states.append(x)
    s, x = torch.stack(regimes[::-1], -1), torch.stack(states[::-1], -2)
    steps = torch.arange(T, device=y.device)
    # the first step is exact
    log_seen = pick(_log_emission(y[..., 1:, :], x[..., 1:, :], moves), s[..., 1:], 0)
    log_ratios = log_ratios + torch.where(steps[1:] <= last.unsqueeze(-1), log_seen, 0.0).sum(dim=-1)
    reached = torch.minimum(steps, last.unsqueeze(-1)).expand(s.shape)
    return SwitchingPaths(s.gather(-1, reached), torch.take_along_dim(x, reached.unsqueeze(-1), -2), log_ratios)


def _picked(known: GaussianSum, term: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return regime, mean and covariance of chosen terms."""
    return pick(known.regimes, term, 0), pick(known.mean, term, 1), pick(known.covariance, term, 2)


def _log_density(known: GaussianSum, regimes: Tensor, x: Tensor) -> Tensor:
    """Return the log density of regimes and states in nats, shape ``(..., M)``."""
    terms = known.log_weights + log_normal(x.unsqueeze(-2) - known.mean, torch.linalg.cholesky(known.covariance))
    return torch.where(known.regimes == regimes.unsqueeze(-1), terms, -torch.inf).logsumexp(dim=-1)


def _log_emission(y: Tensor, x: Tensor, parameters: SwitchingLinearGaussian) -> Tensor:
    """Return the log density of each observation in each regime, nats, shape ``(..., M, T, K)``."""
    num_seen = (~y.isnan()).to(y.dtype).sum(dim=-1)
    paths, each = x.movedim(-3, -1), []  # side by side, or each would have the noise's covariances to itself
    for k in range(parameters.pi.shape[-1]):
        seen, C, d, R = mask_missing(y, parameters.C[..., k, :, :], parameters.d[..., k, :], parameters.R[..., k, :, :])
        each.append(log_normals((seen - d).unsqueeze(-1) - C @ paths, torch.linalg.cholesky(R), num_seen).mT)
    return torch.stack(each, -1)
