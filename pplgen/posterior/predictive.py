"""Draw new rows from the posterior predictive distribution."""

from __future__ import annotations

import torch
from pyro import poutine
from torch import Tensor

from pplgen.compiler.vectorisation import map_draws
from pplgen.posterior.draws import draw_shared
from pplgen.story.base import Story
from pplgen.story.pair import Pair

__all__ = ["sample_rows"]


def sample_rows(story: Story, pair: Pair, num_rows: int, max_draws: int = 1000) -> Tensor:
    """Draw new rows from a story's posterior predictive distribution; call it inside ``pair.isolated``.

    Rows are divided evenly among at most ``max_draws`` draws of the latents, shuffled; shape ``(num_rows, ...)``.
    """
    num_draws = min(num_rows, max_draws)
    each = -(-num_rows // num_draws)
    shared = draw_shared(pair, num_draws)
    rows = map_draws(lambda latent: poutine.condition(story.model, latent)(None, num_rows=each), num_draws, shared)
    return rows.transpose(0, 1).flatten(0, 1)[:num_rows][torch.randperm(num_rows)]
