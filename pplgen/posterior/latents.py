"""Codes of rows, and what is computed through them, in blocks of rows and draws: memory grows with neither."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pplgen.story.latent import PROPOSALS, LatentStory

__all__ = [
    "complete_rows",
    "decode_latents",
    "draw_latents",
    "encode_rows",
    "is_plain",
    "latent_width",
    "log_weights",
    "moments",
    "row_blocks",
]

ENTRIES = 2**19
"""Entries of rows that are decoded at once: two megabytes, which stay in a processor's cache."""
TOGETHER = 16
"""Codes of a row, at least, that are decoded at once, so that reading the row costs little beside them."""
KEPT = 2**22
"""Numbers that are kept of a block of rows."""
MOMENT_DRAWS = 1000
"""Draws from which moments are taken where a distribution does not tell them."""
EACH, LEAST = PROPOSALS // 10, 5 * PROPOSALS
"""Proposals for each completed draw of a row, which share them, and proposals at least."""


def is_plain(story: Any) -> bool:
    """Tell whether a story is nothing but prior, decoder and encoder: whether model and guide are the contract's."""
    kind = type(story)
    return isinstance(story, LatentStory) and kind.model is LatentStory.model and kind.guide is LatentStory.guide


def latent_width(story: LatentStory) -> int:
    """Return how many numbers are decoded: a code's entries, and what a story puts beside them, such as a class."""
    return int(story.prior().event_shape[0])


def row_blocks(num_rows: int, size: int) -> Iterator[slice]:
    """Cut rows into blocks of at most ``size``, and at least one."""
    size = max(1, size)
    return (slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size))


def moments(distribution: Any) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of a distribution, in closed form where it has one, else from ``MOMENT_DRAWS``."""
    found = []
    for closed, drawn in ((lambda: distribution.mean, torch.mean), (lambda: distribution.variance.sqrt(), torch.std)):
        try:
            found.append(closed())
        except NotImplementedError:
            found.append(drawn(distribution.sample(torch.Size([MOMENT_DRAWS])), 0))
    return found[0], found[1]


def encode_rows(story: LatentStory, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return means and standard deviations of the codes of rows, shape ``(num_rows, num_latents)`` each."""
    size = KEPT // max(story.num_features, MOMENT_DRAWS * story.num_latents)
    parts = [moments(story.encode(x[block])) for block in row_blocks(len(x), size)]
    mean, sd = (torch.cat([torch.atleast_2d(part) for part in each]) for each in zip(*parts, strict=True))
    return mean, sd


def draw_latents(story: LatentStory, x: Tensor) -> Tensor:
    """Draw one code of each row from the guide, shape ``(num_rows, num_latents)``; together the aggregate posterior."""
    parts = [story.encode(x[block]).sample() for block in row_blocks(len(x), KEPT // story.num_features)]
    return torch.cat(parts)


def decode_latents(story: LatentStory, z: Tensor) -> Tensor:
    """Return the means of rows given codes, shape ``(..., num_features)`` for codes ``(..., width)``."""
    flat = z.flatten(0, -2) if z.ndim > 1 else z[None]
    parts = [story.decode(flat[block]).mean for block in row_blocks(len(flat), KEPT // story.num_features)]
    return torch.cat(parts).reshape(*z.shape[:-1], story.num_features)


def log_weights(story: LatentStory, x: Tensor, num_draws: int) -> Iterator[Tensor]:
    """Weigh codes that are drawn from the guide, ``log p(x_i, z_is) - log q(z_is | x_i)`` in nats.

    Yields
    ------
    Tensor
        Of one block of rows after the other, shape ``(num_draws, block)``. The mean over draws of their exponentials
        is unbiased for p(x_i); their own mean is the bound that was fitted.
    """
    for block in row_blocks(len(x), min(KEPT // num_draws, ENTRIES // TOGETHER // story.num_features)):
        yield torch.cat([weights for _, weights in _proposals(story, x[block], num_draws)])


def complete_rows(story: LatentStory, x: Tensor, num_draws: int) -> Tensor:
    """Draw the missing entries of rows given the others, shape ``(num_draws, num_rows, num_features)``.

    Codes are drawn by self-normalised importance sampling from the guide: the draws of a row choose, each for itself,
    among proposals that they share.

    References
    ----------
    Mattei and Frellsen (2019), MIWAE: deep generative modelling and imputation of incomplete data sets, section 3.4.
    """
    drawn = x.expand(num_draws, *x.shape).clone()
    gappy = x.isnan().any(-1).nonzero().squeeze(-1)
    number = max(LEAST, EACH * num_draws)
    per_row = max(number * story.num_latents, num_draws * story.num_features)
    for block in row_blocks(len(gappy), min(KEPT // per_row, ENTRIES // TOGETHER // story.num_features)):
        rows = gappy[block]
        z, weights = (torch.cat(parts) for parts in zip(*_proposals(story, x[rows], number), strict=True))
        kept = torch.distributions.Categorical(logits=weights.T).sample(torch.Size([num_draws]))
        decoded: Any = story.decode(z[kept, torch.arange(len(rows), device=x.device)])
        drawn[:, rows] = decoded.complete(x[rows])
    return drawn


def _proposals(story: LatentStory, x: Tensor, num_draws: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Draw codes of rows and weigh them, as many draws at once as decode to ``ENTRIES``.

    Codes have shape ``(draws, num_rows, num_latents)``, their weights ``(draws, num_rows)``.
    """
    prior, q = story.prior(), story.encode(x)
    at_once = max(1, ENTRIES // x.numel())
    for _, number in itertools.groupby(range(num_draws), lambda draw: draw // at_once):
        z = q.sample(torch.Size([len(list(number))]))
        yield z, prior.log_prob(z) + story.decode(z).log_prob(x) - q.log_prob(z)
