"""Draw new rows from the posterior predictive distribution, and quantities that a story generates."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pyro import poutine
from torch import Tensor

from pplgen.compiler.vectorisation import map_draws
from pplgen.posterior.draws import Draws, draw_shared
from pplgen.story.base import Story
from pplgen.story.pair import Pair

__all__ = ["draw_generated", "sample_rows"]


def sample_rows(story: Story, pair: Pair, num_rows: int, max_draws: int = 1000) -> Tensor:
    """Draw new rows from a story's posterior predictive distribution; call it inside ``pair.isolated``.

    Rows are divided evenly among at most ``max_draws`` draws of the latents, shuffled; shape ``(num_rows, ...)``.
    """
    num_draws = min(num_rows, max_draws)
    each = -(-num_rows // num_draws)
    shared = draw_shared(pair, num_draws)
    rows = map_draws(lambda latent: poutine.condition(story.model, latent)(None, num_rows=each), num_draws, shared)
    return rows.transpose(0, 1).flatten(0, 1)[:num_rows][torch.randperm(num_rows)]


def draw_generated(story: Story, pair: Pair, draws: Draws) -> dict[str, Tensor]:
    """Evaluate a story's generated quantities at each draw; call it inside ``pair.isolated``."""
    if type(story).generated is Story.generated:
        return {}
    latents, generated = draws.named(pair.structure.shared_latent), pair.conditioned(story.generated)

    def generate(latent: Mapping[str, Tensor]) -> dict[str, Tensor]:
        quantities: dict[str, Tensor] = poutine.condition(generated, latent)(*pair.data)
        return quantities

    quantities: dict[str, Tensor] = map_draws(generate, len(draws.lp), latents)
    return quantities
