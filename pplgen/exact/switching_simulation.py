"""Backward simulation of switching linear Gaussian models from the Gaussian sum filter."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
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
    """Draws of M paths per series."""

    regimes: Int[Tensor, "... paths time"]
    """Regime of each step."""
    states: Float[Tensor, "... paths time state"]
    """State of each step."""
    log_ratios: Float[Tensor, "... paths"]
    """Log importance ratios ``log p(y, s, x) - log q(s, x)`` in nats, q being the proposal. The mean of their
    exponentials is an unbiased estimate of the likelihood. If transitions depend on the state, the sampled terms of the
    filter are part of the path, in p and in q."""


def draw_switching_paths(
    y: Float[Tensor, "... time observed"],
    filtered: GaussianSums,
    parameters: SwitchingLinearGaussian,
    num_paths: int,
    *,
    lengths: Int[Tensor, "..."] | None = None,
    log_transition: Callable[[Tensor], Tensor] | None = None,
) -> SwitchingPaths:
    """Draw regimes and states given series, with torch's generator; the last ones are repeated past a series' end.

    Given regime and state of a step, those of the step before are drawn from the filter's mixture of Gaussians,
    conditioned on them. The draws are exact if the filter is. Its error from collapsing Gaussians is given by Bayes'
    rule: ``p(s_t, x_t | y_1:t-1) p(y_t | s_t, x_t) / p(s_t, x_t | y_1:t)`` is ``p(y_t | y_1:t-1)`` for every regime and
    state under an exact filter. The product of its actual values is the path's importance ratio.

    Parameters
    ----------
    y
        Observations, NaN if missing.
    filtered, parameters, lengths, log_transition
        Result of ``gaussian_sum_filter``, and its arguments.
    num_paths
        Number M of paths per series.

    Raises
    ------
    InputError
        If shapes, dtypes or numbers are invalid.
    torch.linalg.LinAlgError
        If a filtered or predicted covariance of the state is not positive definite.

    References
    ----------
    Fong, Godsill, Doucet and West (2002), Monte Carlo smoothing with application to audio signal enhancement.
    """
    parameters = per_regime(y, parameters)
    if num_paths < 1:
        raise InputError(f"num_paths={num_paths}; expected at least 1")
    branching, log_P = insert_batch_axes(parameters, 1), parameters.P.log()[..., None, None, :, :]
    *batch, T = filtered.log_densities.shape
    last = torch.as_tensor(T if lengths is None else lengths, device=y.device).unsqueeze(-1) - 1
    # insert an axis of paths before the terms
    mixtures = [GaussianSum(*(part.unsqueeze(len(batch)) for part in step)) for step in filtered.steps]

    term = draw_categorical(mixtures[-1].log_weights.expand(*batch, num_paths, -1))
    s, mean, covariance = _pick_terms(mixtures[-1], term)
    x = draw_normal(mean, covariance)
    regimes, states, log_ratios = [s], [x], filtered.log_densities[..., :1]
    for t in reversed(range(T - 1)):
        current, following = mixtures[t], mixtures[t + 1]
        rows = pick(log_P if log_transition is None else log_transition(current.mean), current.regimes, 1)
        into_next = pick(rows.mT, s, 1)
        A, b, Q = pick(branching.A, s, 2), pick(branching.b, s, 1), pick(branching.Q, s, 2)
        predicted, covariances = predict(
            current.mean, current.covariance, A.unsqueeze(-3), b.unsqueeze(-2), Q.unsqueeze(-3)
        )
        log_normals_next = log_normal(x.unsqueeze(-2) - predicted, torch.linalg.cholesky(covariances))
        log_next = current.log_weights + into_next + log_normals_next
        log_ratio = log_next.logsumexp(dim=-1) - _log_density(following, s, x)
        is_inside = t < last
        term = draw_categorical(torch.where(is_inside.unsqueeze(-1), log_next, current.log_weights))
        previous, mean, covariance = _pick_terms(current, term)
        G, g, L = backward_kernel(mean, covariance, A, b, Q)
        mask = is_inside.unsqueeze(-1)
        x = draw_normal(torch.where(mask, matvec(G, x) + g, mean), torch.where(mask.unsqueeze(-1), L, covariance))
        if log_transition is not None:
            log_ratio = log_ratio + pick(pick(log_transition(x), previous, 1), s, 0) - pick(into_next, term, 0)
        log_ratios = log_ratios + torch.where(is_inside, log_ratio, 0.0)
        s = previous
        regimes.append(s)
        states.append(x)
    s, x = torch.stack(regimes[::-1], -1), torch.stack(states[::-1], -2)
    steps = torch.arange(T, device=y.device)
    # the first step is exact
    log_emission = pick(_log_emission(y[..., 1:, :], x[..., 1:, :], branching), s[..., 1:], 0)
    log_ratios = log_ratios + torch.where(steps[1:] <= last.unsqueeze(-1), log_emission, 0.0).sum(dim=-1)
    step_index = torch.minimum(steps, last.unsqueeze(-1)).expand(s.shape)
    return SwitchingPaths(s.gather(-1, step_index), torch.take_along_dim(x, step_index.unsqueeze(-1), -2), log_ratios)


def _pick_terms(
    mixture: GaussianSum, term: Int[Tensor, "..."]
) -> tuple[Int[Tensor, "..."], Float[Tensor, "... state"], Float[Tensor, "... state state"]]:
    """Return regime, mean and covariance of chosen terms."""
    return pick(mixture.regimes, term, 0), pick(mixture.mean, term, 1), pick(mixture.covariance, term, 2)


def _log_density(
    mixture: GaussianSum, regimes: Int[Tensor, "... paths"], x: Float[Tensor, "... paths state"]
) -> Float[Tensor, "... paths"]:
    """Return the log density of regimes and states in nats."""
    terms = mixture.log_weights + log_normal(x.unsqueeze(-2) - mixture.mean, torch.linalg.cholesky(mixture.covariance))
    return torch.where(mixture.regimes == regimes.unsqueeze(-1), terms, -torch.inf).logsumexp(dim=-1)


def _log_emission(
    y: Float[Tensor, "... time observed"], x: Float[Tensor, "... paths time state"], parameters: SwitchingLinearGaussian
) -> Float[Tensor, "... paths time regimes"]:
    """Return the log density of each observation in each regime, nats."""
    num_observed = (~y.isnan()).to(y.dtype).sum(dim=-1)
    paths, log_densities = x.movedim(-3, -1), []  # paths on the last axis share the noise covariances
    for k in range(parameters.pi.shape[-1]):
        observed, C, d, R = mask_missing(
            y, parameters.C[..., k, :, :], parameters.d[..., k, :], parameters.R[..., k, :, :]
        )
        log_densities.append(
            log_normals((observed - d).unsqueeze(-1) - C @ paths, torch.linalg.cholesky(R), num_observed).mT
        )
    return torch.stack(log_densities, -1)
