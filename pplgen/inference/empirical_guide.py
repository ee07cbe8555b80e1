"""A guide of stored draws, such as those of a sampler."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pplgen.inference.log_joint import LatentSite

__all__ = ["StoredDraws"]


class StoredDraws(nn.Module):
    """Empirical guide: samples uniformly from stored draws, with log density zero.

    Parameters
    ----------
    sites
        Latent sites of the model.
    draws
        Draws of shape ``(num_chains, num_draws, ...)`` each.
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
        """Number of draws in all chains."""
        return int(self.num_chains * self.num_draws)

    @property
    def draws(self) -> dict[str, Tensor]:
        """Draws by name, shape ``(total, ...)``, chains concatenated."""
        return {name: getattr(self, f"draws_{index}") for index, name in enumerate(self.sites)}

    def thinned_size(self, number: int) -> int:
        """Return the largest multiple of ``num_chains`` up to ``number`` and ``total``, at least ``num_chains``."""
        return int(self.num_chains * max(1, min(number, self.total) // self.num_chains))

    def thinned_indices(self, number: int) -> Tensor:
        """Return the indices of ``number`` evenly spaced draws, the same from each chain; shape ``(number,)``.

        ``number`` is a multiple of the number of chains.
        """
        each = number // self.num_chains
        within = (torch.arange(each) * self.num_draws) // each
        return (torch.arange(self.num_chains)[:, None] * self.num_draws + within).flatten()

    @contextlib.contextmanager
    def replaying(self, index: Tensor) -> Iterator[None]:
        """Return the draw of a scalar index instead of a random one."""
        self._chosen = index
        try:
            yield
        finally:
            self._chosen = None

    def forward(self, *data: Any) -> None:
        """Sample every latent from one of the stored draws."""
        like = next(self.buffers())
        chosen = (
            torch.randint(self.total, (1,), device=like.device) if self._chosen is None else self._chosen.reshape(1)
        )
        plates: dict[str, Any] = {}
        for name, draws in self.draws.items():
            self.sites[name].sample(name, draws.index_select(0, chosen).squeeze(0), plates)
