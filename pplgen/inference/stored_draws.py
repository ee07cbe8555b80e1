"""A guide of draws that are at hand, such as those of a sampler."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pplgen.inference.log_joint import LatentSite

__all__ = ["StoredDraws"]


class StoredDraws(nn.Module):
    """Draws one of many stored draws, each as likely as another.

    It has no density to speak of; what it replays has the log density zero.

    Parameters
    ----------
    sites
        The latents in the model.
    draws
        Of shape ``(num_chains, num_draws, ...)`` each.
    """

    def __init__(self, sites: Mapping[str, LatentSite], draws: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.sites = dict(sites)
        self.num_chains, self.num_draws = next(iter(draws.values())).shape[:2]
        for index, name in enumerate(self.sites):
            self.register_buffer(f"draws_{index}", draws[name].flatten(0, 1))
        self._chosen: Tensor | None = None

    @property
    def total(self) -> int:
        """How many draws there are in all chains."""
        return int(self.num_chains * self.num_draws)

    @property
    def draws(self) -> dict[str, Tensor]:
        """The draws by name, shape ``(total, ...)``, one chain after the other."""
        return {name: getattr(self, f"draws_{index}") for index, name in enumerate(self.sites)}

    def at_most(self, number: int) -> int:
        """Return how many draws to take for about so many: a multiple of the number of chains, and no more than all."""
        return int(self.num_chains * max(1, min(number, self.total) // self.num_chains))

    def evenly(self, number: int) -> Tensor:
        """Return which draws to take for so many, the same from each chain; shape ``(number,)``.

        ``number`` is a multiple of the number of chains.
        """
        each = number // self.num_chains
        within = (torch.arange(each) * self.num_draws) // each
        return (torch.arange(self.num_chains)[:, None] * self.num_draws + within).flatten()

    @contextlib.contextmanager
    def at(self, index: Tensor) -> Iterator[None]:
        """Replay the draw of an index, a scalar."""
        self._chosen = index
        try:
            yield
        finally:
            self._chosen = None

    def forward(self, *data: Any) -> None:
        """Have every latent at its value in one of the draws."""
        like = next(self.buffers())
        chosen = (
            torch.randint(self.total, (1,), device=like.device) if self._chosen is None else self._chosen.reshape(1)
        )
        plates: dict[str, Any] = {}
        for name, draws in self.draws.items():
            self.sites[name].sample(name, draws.index_select(0, chosen).squeeze(0), plates)
