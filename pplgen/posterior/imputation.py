"""Draw missing entries of rows given the observed ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pplgen.compiler.vectorisation import map_draws
from pplgen.posterior.draws import draw_shared
from pplgen.posterior.latent_variables import complete_rows, row_blocks
from pplgen.story.base import Story
from pplgen.story.latent import PROPOSALS, LatentStory
from pplgen.story.pair import Pair

__all__ = ["impute_rows"]

BLOCK_ENTRIES = 2**22
"""Largest number of entries in a block of rows, counting proposals."""


def impute_rows(story: Story, pair: Pair, data: tuple[Any, ...], num_draws: int) -> Tensor:
    """Draw missing entries of rows given the others, at draws of the latents; call it inside ``pair.isolated``.

    Returns shape ``(num_draws, num_rows, ...)``; observed entries are repeated. Rows are processed in blocks, so that
    memory beyond the result does not grow with their number.
    """
    x = data[0]
    if not x.isnan().any():  # a story that saw complete rows alone need not be able to complete any
        return x.expand(num_draws, *x.shape).clone()
    # the inherited method can share proposals between the draws of a row
    inherited = type(story).complete is LatentStory.complete
    if isinstance(story, LatentStory) and inherited and not pair.structure.shared_latent:
        with torch.no_grad(), pyro.validation_enabled(False):
            return complete_rows(story, x, num_draws)
    shared = draw_shared(pair, num_draws)
    complete = pair.conditioned(story.complete)
    each = PROPOSALS if isinstance(story, LatentStory) else 1
    drawn = []
    for block in row_blocks(len(x), BLOCK_ENTRIES // (each * x[0].numel())):
        rows = pair.structure.row_axes.select(data, block)

        def completed(latent: Mapping[str, Tensor], rows: tuple[Any, ...] = rows) -> Tensor:
            whole: Tensor = poutine.condition(complete, latent)(*rows)
            return whole

        drawn.append(map_draws(completed, num_draws, shared))
    return torch.cat(drawn, dim=1)
