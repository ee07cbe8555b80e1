"""Gaussian sum filter for switching linear Gaussian models: a Gaussian for each regime history of large weight.

Kim's filter keeps one Gaussian per regime. During missing observations, histories that end in the same regime may have
distant states, which one Gaussian approximates poorly. Here the histories of largest weight are separate terms; the
others are collapsed to one Gaussian per regime.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pplgen.errors import renamed
from pplgen.exact.shapes import pick
from pplgen.exact.switching import collapse, first_step, insert_batch_axes, next_step, per_regime
from pplgen.story.dynamics import SwitchingLinearGaussian

__all__ = ["MAX_TERMS", "GaussianSum", "GaussianSums", "gaussian_sum_filter"]

__getattr__ = renamed(__name__, {"MOST": "MAX_TERMS"})

MIN_WEIGHT = 1e-3
"""Minimum weight of a separate term."""
MAX_TERMS = 8
"""Default maximum number of separate terms."""


class GaussianSum(NamedTuple):
    """Filtered distribution of regime and state at one step: a mixture of M Gaussians."""

    log_weights: Float[Tensor, "... terms"]
    """Log weights of the terms, normalised."""
    regimes: Int[Tensor, "... terms"]
    """Regimes of the terms."""
    mean: Float[Tensor, "... terms state"]
    """Means of the terms."""
    covariance: Float[Tensor, "... terms state state"]
    """Covariances of the terms."""


class GaussianSums(NamedTuple):
    """Results of the Gaussian sum filter."""

    log_densities: Float[Tensor, "... time"]
    """``log p(y_t | y_1:t-1)`` in nats."""
    steps: list[GaussianSum]
    """Filtered distributions of regime and state by step; their numbers of terms may differ."""

    @property
    def log_likelihood(self) -> Float[Tensor, "..."]:
        """``log p(y_1:T)`` in nats."""
        return self.log_densities.sum(dim=-1)


def gaussian_sum_filter(
    y: Float[Tensor, "... time observed"],
    parameters: SwitchingLinearGaussian,
    *,
    max_terms: int = MAX_TERMS,
    lengths: Int[Tensor, "..."] | None = None,
    log_transition: Callable[[Tensor], Tensor] | None = None,
) -> GaussianSums:
    """Run the Gaussian sum filter.

    Parameters
    ----------
    y, parameters
        As for ``kim_filter``, with the same errors.
    max_terms
        Maximum number of separate regime histories, in addition to one Gaussian per regime; 0 gives Kim's filter.
    lengths
        Number of steps of each series; T by default. The state is constant past the end.
    log_transition
        As for ``kim_filter``; evaluated at the mean of each term.

    Returns
    -------
    GaussianSums
        Exact if all histories are separate terms.
    """
    parameters = per_regime(y, parameters)
    branching, log_P = insert_batch_axes(parameters, 1), parameters.P.log().unsqueeze(-3)
    mean, covariance, log_density = first_step(y[..., 0, :], parameters)
    log_joint = (parameters.pi.log() + log_density).clamp_min(torch.finfo(y.dtype).min)
    log_densities = [log_joint.logsumexp(dim=-1)]
    all_regimes = torch.arange(log_joint.shape[-1], device=y.device)
    steps = [GaussianSum(log_joint.log_softmax(dim=-1), all_regimes.expand(log_joint.shape), mean, covariance)]
    for t in range(1, y.shape[-2]):
        log_weights, regimes, mean, covariance = steps[-1]
        log_transitions = pick(log_P if log_transition is None else log_transition(mean), regimes, 1)
        branch_mean, branch_covariance, log_density = next_step(y[..., t, None, :], mean, covariance, branching)
        log_pairs = log_weights.unsqueeze(-1) + log_transitions + log_density
        if lengths is not None:
            ended = (t >= lengths)[..., None, None]
            stays = torch.where(regimes.unsqueeze(-1) == all_regimes, log_weights.unsqueeze(-1), -torch.inf)
            log_pairs = torch.where(ended, stays, log_pairs)
            branch_mean = torch.where(ended.unsqueeze(-1), mean.unsqueeze(-2), branch_mean)
            branch_covariance = torch.where(ended[..., None, None], covariance.unsqueeze(-3), branch_covariance)
        log_pairs = log_pairs.clamp_min(torch.finfo(y.dtype).min)
        log_densities.append(log_pairs.logsumexp(dim=(-2, -1)))
        log_weights = log_pairs - log_densities[-1][..., None, None]
        steps.append(_reduce(log_weights, branch_mean, branch_covariance, max_terms))
    return GaussianSums(torch.stack(log_densities, -1), steps)


def _reduce(
    log_weights: Float[Tensor, "... terms regimes"],
    mean: Float[Tensor, "... terms regimes state"],
    covariance: Float[Tensor, "... terms regimes state state"],
    max_terms: int,
) -> GaussianSum:
    """Keep the terms of largest weight among pairs of history and regime; collapse the others."""
    *batch, M, K = log_weights.shape
    regimes = torch.arange(K, device=mean.device).expand(*batch, M, K)
    means, covariances = mean.flatten(-3, -2), covariance.flatten(-4, -3)
    branches = GaussianSum(log_weights.flatten(-2), regimes.flatten(-2), means, covariances)
    num_kept = min(max_terms, int((branches.log_weights.exp() >= MIN_WEIGHT).sum(dim=-1).max()))
    if num_kept + K >= M * K:
        return branches
    top = branches.log_weights.topk(num_kept, dim=-1).indices
    rest = branches.log_weights.exp().scatter(-1, top, 0.0).unflatten(-1, (M, K))
    total = rest.sum(dim=-2)
    tiny = torch.finfo(mean.dtype).tiny
    # a regime without remaining terms has weight zero, so its Gaussian is arbitrary
    remaining = total.unsqueeze(-2)
    fractions = torch.where(remaining > 0, rest / remaining.clamp_min(tiny), 1 / M)
    collapsed_mean, collapsed_covariance = collapse(fractions, mean, covariance, dim=-2)
    return GaussianSum(
        torch.cat([branches.log_weights.gather(-1, top), total.clamp_min(tiny).log()], -1),
        torch.cat([branches.regimes.gather(-1, top), regimes[..., 0, :]], -1),
        torch.cat([torch.take_along_dim(branches.mean, top.unsqueeze(-1), -2), collapsed_mean], -2),
        torch.cat([torch.take_along_dim(branches.covariance, top[..., None, None], -3), collapsed_covariance], -3),
    )
