"""Switching linear Gaussian models filtered by sums of Gaussians: one for each past of the regimes that counts.

Kim's filter keeps one Gaussian for each regime. Where nothing is seen for a while, pasts that lead to the same regime
lead to far apart states, and one Gaussian is a poor account of them. Here the pasts that weigh most stay apart; the
others are collapsed, regime by regime, so that nothing is ruled out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pplgen.exact.shapes import pick
from pplgen.exact.switching import collapse, first_step, insert_batch_axes, next_step, per_regime
from pplgen.story.dynamics import SwitchingLinearGaussian

__all__ = ["MAX_TERMS", "GaussianSum", "GaussianSums", "gaussian_sum_filter"]

MIN_WEIGHT = 1e-3
"""Weight from which on a past stays apart."""
MAX_TERMS = 8
"""Pasts that stay apart, unless told otherwise."""


class GaussianSum(NamedTuple):
    """What is known of regime and state at one step: a sum of M Gaussians."""

    log_weights: Tensor
    """Of the terms, whose weights sum to one, shape ``(..., M)``."""
    regimes: Tensor
    """Of the terms, integers, shape ``(..., M)``."""
    mean: Tensor
    """Shape ``(..., M, D)``."""
    covariance: Tensor
    """Shape ``(..., M, D, D)``."""


class GaussianSums(NamedTuple):
    """What each observation and those before it say."""

    log_densities: Tensor
    """``log p(y_t | y_1:t-1)`` in nats, shape ``(..., T)``."""
    steps: list[GaussianSum]
    """Of regime and state given the observations up to each step; their numbers of terms may differ."""

    @property
    def log_likelihood(self) -> Tensor:
        """``log p(y_1:T)`` in nats, shape ``(...)``."""
        return self.log_densities.sum(dim=-1)


def gaussian_sum_filter(
    y: Tensor,
    parameters: SwitchingLinearGaussian,
    *,
    max_terms: int = MAX_TERMS,
    lengths: Tensor | None = None,
    log_transition: Callable[[Tensor], Tensor] | None = None,
) -> GaussianSums:
    """Filter series.

    Parameters
    ----------
    y, parameters
        As of ``kim_filter``, which also has the errors.
    max_terms
        Pasts of the regimes that are kept apart, at most, beside one Gaussian for each regime. Without any it is Kim's
        filter.
    lengths
        Number of steps of each series, integers of shape ``(...)``; T where not given. Past its end nothing moves.
    log_transition
        As of ``kim_filter``; used at the mean of each term.

    Returns
    -------
    GaussianSums
        Exact as long as all pasts are kept apart.
    """
    parameters = per_regime(y, parameters)
    branching, log_P = insert_batch_axes(parameters, 1), parameters.P.log().unsqueeze(-3)
    mean, covariance, log_density = first_step(y[..., 0, :], parameters)
    log_joint = (parameters.pi.log() + log_density).clamp_min(torch.finfo(y.dtype).min)
    log_densities = [log_joint.logsumexp(dim=-1)]
    every_regime = torch.arange(log_joint.shape[-1], device=y.device)
    steps = [GaussianSum(log_joint.log_softmax(dim=-1), every_regime.expand(log_joint.shape), mean, covariance)]
    for t in range(1, y.shape[-2]):
        log_weights, regimes, mean, covariance = steps[-1]
        moves = pick(log_P if log_transition is None else log_transition(mean), regimes, 1)
        branch_mean, branch_covariance, log_density = next_step(y[..., t, None, :], mean, covariance, branching)
        log_pairs = log_weights.unsqueeze(-1) + moves + log_density
        if lengths is not None:
            ended = (t >= lengths)[..., None, None]
            stays = torch.where(regimes.unsqueeze(-1) == every_regime, log_weights.unsqueeze(-1), -torch.inf)
            log_pairs = torch.where(ended, stays, log_pairs)
            branch_mean = torch.where(ended.unsqueeze(-1), mean.unsqueeze(-2), branch_mean)
            branch_covariance = torch.where(ended[..., None, None], covariance.unsqueeze(-3), branch_covariance)
        log_pairs = log_pairs.clamp_min(torch.finfo(y.dtype).min)
        log_densities.append(log_pairs.logsumexp(dim=(-2, -1)))
        log_weights = log_pairs - log_densities[-1][..., None, None]
        steps.append(_reduced(log_weights, branch_mean, branch_covariance, max_terms))
    return GaussianSums(torch.stack(log_densities, -1), steps)


def _reduced(log_weights: Tensor, mean: Tensor, covariance: Tensor, max_terms: int) -> GaussianSum:
    """Keep the terms that weigh most, of all pairs of a past and a regime, ``(..., M, K)``; collapse the others."""
    *batch, M, K = log_weights.shape
    regimes = torch.arange(K, device=mean.device).expand(*batch, M, K)
    every = GaussianSum(log_weights.flatten(-2), regimes.flatten(-2), mean.flatten(-3, -2), covariance.flatten(-4, -3))
    kept = min(max_terms, int((every.log_weights.exp() >= MIN_WEIGHT).sum(dim=-1).max()))
    if kept + K >= M * K:
        return every
    top = every.log_weights.topk(kept, dim=-1).indices
    rest = every.log_weights.exp().scatter(-1, top, 0.0).unflatten(-1, (M, K))
    total = rest.sum(dim=-2)
    tiny = torch.finfo(mean.dtype).tiny
    # where nothing is left of a regime its Gaussian weighs nothing, and may be any
    left = total.unsqueeze(-2)
    shares = torch.where(left > 0, rest / left.clamp_min(tiny), 1 / M)
    centre, spread = collapse(shares, mean, covariance, dim=-2)
    return GaussianSum(
        torch.cat([every.log_weights.gather(-1, top), total.clamp_min(tiny).log()], -1),
        torch.cat([every.regimes.gather(-1, top), regimes[..., 0, :]], -1),
        torch.cat([torch.take_along_dim(every.mean, top.unsqueeze(-1), -2), centre], -2),
        torch.cat([torch.take_along_dim(every.covariance, top[..., None, None], -3), spread], -3),
    )
