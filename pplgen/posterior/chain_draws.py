"""Draws at which densities of rows are averaged: independent ones of a guide, or the chains of a sampler."""

from __future__ import annotations

from typing import NamedTuple

import torch
from arviz_stats.base import array_stats
from torch import Tensor

from pplgen.inference.empirical_guide import StoredDraws
from pplgen.posterior.draws import draw_shared
from pplgen.story.pair import Pair

__all__ = ["ChainDraws", "draw_by_chain", "effective_sample_size"]


class ChainDraws(NamedTuple):
    """Draws of latents, chains concatenated."""

    latents: dict[str, Tensor]
    """Of a guide those that all rows share, of a sampler all; shape ``(num_draws, ...)`` each."""
    num_draws: int
    num_chains: int | None
    """Number of Markov chains of equal length; ``None`` for independent draws."""


def draw_by_chain(pair: Pair, num_draws: int) -> ChainDraws:
    """Draw ``num_draws`` times from a guide, or thin a sampler's draws evenly to at most as many.

    Call it inside ``pair.isolated``.
    """
    if not isinstance(pair.guide, StoredDraws):
        return ChainDraws(draw_shared(pair, num_draws), num_draws, None)
    stored, number = pair.guide, pair.guide.thinned_size(num_draws)
    index = stored.thinned_indices(number)
    latents = {name: stored.draws[name][index] for name in pair.structure.latent}
    return ChainDraws(latents, number, stored.num_chains)


def effective_sample_size(values: Tensor, num_chains: int | None) -> Tensor:
    """Return the number of independent draws whose mean is as accurate as that of the values, for each column.

    Parameters
    ----------
    values
        Shape ``(num_draws, num_columns)``.
    num_chains
        As of ``ChainDraws``.

    Returns
    -------
    Tensor
        Shape ``(num_columns,)``; NaN for chains of fewer than four draws.

    References
    ----------
    Vehtari et al. (2021), Rank-normalization, folding, and localization: an improved R-hat for assessing convergence of
    MCMC, https://doi.org/10.1214/20-BA1221.
    """
    if num_chains is None:
        return values.new_full(values.shape[1:], len(values))
    by_chain = values.unflatten(0, (num_chains, -1)).double().cpu().numpy()
    return torch.as_tensor(array_stats.ess(by_chain, chain_axis=0, draw_axis=1, method="mean")).to(values)
