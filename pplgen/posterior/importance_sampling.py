"""Importance sampling of the shared latents, with the guide as the proposal and per-row latents integrated out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from pyro import poutine
from torch import Tensor

from pplgen.compiler.vectorisation import map_draws
from pplgen.errors import InputError
from pplgen.inference.empirical_guide import StoredDraws
from pplgen.posterior.draws import Draws, draw_posterior, row_densities, shared_densities
from pplgen.posterior.row_likelihood import latent_densities
from pplgen.story.latent import LatentStory
from pplgen.story.pair import Pair

__all__ = ["INNER_DRAWS", "WeightedDraws", "integrate_row_latents", "log_prior", "weighted_draws"]

INNER_DRAWS = 20
"""Draws of the per-row latents for each draw of the shared latents, over which they are integrated out."""
MAX_LOOPED = 200
"""Maximum number of draws of the shared latents if densities can only be evaluated draw by draw."""


@dataclass(frozen=True)
class WeightedDraws:
    """Draws of the shared latents, with per-row latents integrated out by importance sampling."""

    sites: dict[str, Tensor]
    """Shape ``(num_draws, ...)`` each."""
    log_ratio: Tensor
    """``log p(x, theta) - log q(theta)`` in nats, shape ``(num_draws,)``."""
    log_likelihood: Tensor
    """``log p(x_i | theta)`` in nats of the requested rows, shape ``(num_draws, num_rows)``."""


def weighted_draws(pair: Pair, num_draws: int, rows: slice | None = None, drawn: Draws | None = None) -> WeightedDraws:
    """Draw the shared latents from the guide, with log importance ratios; call it inside ``pair.isolated``.

    A sampler's draws are of the posterior and have equal weights; their row densities are conditional on per-row
    latents.

    Parameters
    ----------
    pair
        Pair with its training rows as data.
    num_draws
        Number of draws.
    rows
        Rows whose densities are returned; ``None`` for all.
    drawn
        At least ``num_draws`` existing draws with densities, for a pair without per-row latents; default: new draws.

    Raises
    ------
    InputError
        If the model has no row plate, or the guide draws latents of all rows jointly.
    """
    structure = pair.structure
    if reason := structure.why_no_row_densities():
        raise InputError(reason)
    if isinstance(pair.guide, StoredDraws):
        number = pair.guide.thinned_size(num_draws)
        sites = draw_posterior(pair, number, scored=False).sites
        latents = {name: sites[name] for name in structure.latent}
        densities = row_densities(pair, latents, number, pair.data).log_likelihood
        return WeightedDraws(sites, torch.zeros(number), densities[:, rows or slice(None)])
    if structure.row_latent:
        sites, log_ratio, densities = integrate_row_latents(pair, num_draws)
        return WeightedDraws(sites, log_ratio, densities[:, rows or slice(None)])
    drawn = drawn or draw_posterior(pair, num_draws, exclude=structure.per_row)
    sites = {name: value[:num_draws] for name, value in drawn.sites.items()}
    data = pair.structure.row_axes.select(pair.data, rows or slice(None))
    densities = row_densities(pair, {n: sites[n] for n in structure.shared_latent}, num_draws, data).log_likelihood
    return WeightedDraws(sites, (drawn.lp - drawn.log_q)[:num_draws], densities)


def integrate_row_latents(pair: Pair, num_draws: int) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Draw shared latents and integrate per-row latents out of each density; call it inside ``pair.isolated``.

    Returns
    -------
    tuple
        The draws; ``log p(x, theta) - log q(theta)``, zero without shared latents, shape ``(num_draws,)``; and
        ``log p(x_i | theta)`` of each row, shape ``(num_draws, num_rows)``. Densities are importance-weighted over
        ``INNER_DRAWS`` draws of the guide, so that the weights remain unbiased. Of a pair that cannot be vectorised
        there are at most ``MAX_LOOPED`` draws.
    """
    shared = bool(pair.structure.shared_latent)
    if not shared and isinstance(pair.story, LatentStory):  # all draws are equal: one stands for all
        blocks = [block.logsumexp(0) - math.log(num_draws) for block in latent_densities(pair, pair.data, num_draws)]
        return {}, torch.zeros(1), torch.cat(blocks)[None]
    sites, log_p, log_q = shared_densities(pair, num_draws) if shared else ({}, torch.zeros(()), torch.zeros(()))
    repeated = {name: value.repeat_interleave(INNER_DRAWS, 0) for name, value in sites.items()}
    number, limit = INNER_DRAWS * num_draws, INNER_DRAWS * MAX_LOOPED
    inner = row_densities(pair, repeated, number, pair.data, max_looped=limit).log_likelihood
    densities = inner.unflatten(0, (-1, INNER_DRAWS)).logsumexp(1) - math.log(INNER_DRAWS)
    counts, number = 1.0 if pair.weights is None else pair.weights, len(densities)
    sites = {name: value[:number] for name, value in sites.items()}
    log_ratio = (log_p - log_q)[:number] + (counts * densities).sum(1) if shared else torch.zeros(number)
    return sites, log_ratio, densities


def log_prior(pair: Pair, sites: Mapping[str, Tensor], num_draws: int) -> Tensor:
    """Log prior density of the shared latents in nats, shape ``(num_draws,)``; call it inside ``pair.isolated``."""
    names = pair.structure.shared_latent

    def score(latent: dict[str, Tensor]) -> Tensor:
        trace = poutine.trace(poutine.condition(pair.model, latent)).get_trace(*pair.data)
        return torch.as_tensor(trace.log_prob_sum(lambda name, _: name in names))

    scores: Tensor = map_draws(score, num_draws, {name: sites[name] for name in names})
    return scores
