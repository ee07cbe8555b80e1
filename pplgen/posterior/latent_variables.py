"""Encode, decode, importance-weight and impute rows of latent-variable stories, in blocks: memory is bounded."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pplgen.story.latent import PROPOSALS, LatentStory
from pplgen.story.pair import Pair

__all__ = [
    "complete_rows",
    "decode_latents",
    "decoder_input_size",
    "draw_latents",
    "encode_rows",
    "is_encoded",
    "log_weights",
    "moments",
    "row_blocks",
]

ENTRIES = 2**19
"""Number of values decoded at once: two megabytes, which fit into a processor's cache."""
MIN_DRAWS = 16
"""Minimum latent draws per row that are decoded at once, so that reading the row is cheap in comparison."""
BLOCK_NUMBERS = 2**22
"""Largest number of values computed for a block of rows."""
MOMENT_DRAWS = 1000
"""Draws from which moments without a closed form are estimated."""
PROPOSALS_PER_DRAW, MIN_PROPOSALS = PROPOSALS // 10, 5 * PROPOSALS
"""Proposals per imputed draw of a row (the draws share them), and minimum number of proposals."""


def is_encoded(pair: Pair) -> bool:
    """Whether all latents of a pair are those that a story's ``prior``, ``decode`` and ``encode`` describe."""
    structure = pair.structure
    alone = len(structure.latent) == len(structure.row_latent) == len(structure.observed) == 1
    return isinstance(pair.story, LatentStory) and alone and not (structure.enumerates or structure.factors)


def decoder_input_size(story: LatentStory) -> int:
    """Return the decoder's input size: the latent dimensions, and what a story appends to them, such as a class."""
    return int(story.prior().event_shape[0])


def row_blocks(num_rows: int, size: int) -> Iterator[slice]:
    """Split rows into slices of at most ``size`` rows, and at least one."""
    size = max(1, size)
    return (slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size))


def moments(distribution: Any) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of a distribution, in closed form or else from ``MOMENT_DRAWS`` draws."""
    results = []
    for closed, estimate in (
        (lambda: distribution.mean, torch.mean),
        (lambda: distribution.variance.sqrt(), torch.std),
    ):
        try:
            results.append(closed())
        except NotImplementedError:
            results.append(estimate(distribution.sample(torch.Size([MOMENT_DRAWS])), 0))
    return results[0], results[1]


def encode_rows(story: LatentStory, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return posterior means and standard deviations of latent variables, shape ``(num_rows, num_latents)`` each."""
    size = BLOCK_NUMBERS // max(story.num_features, MOMENT_DRAWS * story.num_latents)
    parts = [moments(story.encode(x[block])) for block in row_blocks(len(x), size)]
    mean, sd = (torch.cat([torch.atleast_2d(part) for part in each]) for each in zip(*parts, strict=True))
    return mean, sd


def draw_latents(story: LatentStory, x: Tensor) -> Tensor:
    """Draw the latent variables of each row once, ``(num_rows, num_latents)``: a sample of the aggregate posterior."""
    parts = [story.encode(x[block]).sample() for block in row_blocks(len(x), BLOCK_NUMBERS // story.num_features)]
    return torch.cat(parts)


def decode_latents(story: LatentStory, z: Tensor) -> Tensor:
    """Return the means of rows given latent variables ``(..., width)``, shape ``(..., num_features)``."""
    flat = z.flatten(0, -2) if z.ndim > 1 else z[None]
    parts = [story.decode(flat[block]).mean for block in row_blocks(len(flat), BLOCK_NUMBERS // story.num_features)]
    return torch.cat(parts).reshape(*z.shape[:-1], story.num_features)


def log_weights(story: LatentStory, x: Tensor, num_draws: int) -> Iterator[Tensor]:
    """Log importance weights of draws from the guide, ``log p(x_i, z_is) - log q(z_is | x_i)`` in nats.

    Yields
    ------
    Tensor
        One block of rows after the other, shape ``(num_draws, block)``. The mean over draws of their exponentials is
        unbiased for p(x_i); the mean of the log weights estimates the ELBO.
    """
    for block in row_blocks(len(x), min(BLOCK_NUMBERS // num_draws, ENTRIES // MIN_DRAWS // story.num_features)):
        yield torch.cat([weights for _, weights in _proposals(story, x[block], num_draws)])


def complete_rows(story: LatentStory, x: Tensor, num_draws: int) -> Tensor:
    """Draw the missing entries of rows given the others, shape ``(num_draws, num_rows, num_features)``.

    Latent variables are drawn by sampling-importance-resampling: the guide's proposals are shared by all draws of a
    row, which are resampled independently.

    References
    ----------
    Mattei and Frellsen (2019), MIWAE: deep generative modelling and imputation of incomplete data sets, section 3.4.
    """
    drawn = x.expand(num_draws, *x.shape).clone()
    incomplete = x.isnan().any(-1).nonzero().squeeze(-1)
    number = max(MIN_PROPOSALS, PROPOSALS_PER_DRAW * num_draws)
    per_row = max(number * story.num_latents, num_draws * story.num_features)
    for block in row_blocks(len(incomplete), min(BLOCK_NUMBERS // per_row, ENTRIES // MIN_DRAWS // story.num_features)):
        rows = incomplete[block]
        z, weights = (torch.cat(parts) for parts in zip(*_proposals(story, x[rows], number), strict=True))
        chosen = torch.distributions.Categorical(logits=weights.T).sample(torch.Size([num_draws]))
        decoded: Any = story.decode(z[chosen, torch.arange(len(rows), device=x.device)])
        drawn[:, rows] = decoded.complete(x[rows])
    return drawn


def _proposals(story: LatentStory, x: Tensor, num_draws: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Draw latent variables and their log importance weights, at most ``ENTRIES`` decoded values at once.

    Draws have shape ``(draws, num_rows, num_latents)``, log weights ``(draws, num_rows)``.
    """
    prior, q = story.prior(), story.encode(x)
    at_once = max(1, ENTRIES // x.numel())
    for _, number in itertools.groupby(range(num_draws), lambda draw: draw // at_once):
        z = q.sample(torch.Size([len(list(number))]))
        yield z, prior.log_prob(z) + story.decode(z).log_prob(x) - q.log_prob(z)
