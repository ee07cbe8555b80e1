"""One labelling of exchangeable components: the region of the latents in which their order is that of reference draws.

log p(x, theta) is the same under all K! orders of K exchangeable components, and each theta is in the region in exactly
one of them. So p(x) is K! times the integral over the region, which a guide of one mode covers where the modes are
apart (Fruehwirth-Schnatter 2004, Estimating marginal likelihoods for mixture and Markov switching models using bridge
sampling techniques, section 3).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from pplgen.posterior.exchangeability import exchangeable
from pplgen.posterior.relabelling import Axes, match_components
from pplgen.story.pair import Pair

__all__ = ["Labelling"]


class Labelling:
    """The order of components of reference draws; all of the latents where none are exchangeable.

    Parameters
    ----------
    pair
        The pair; inside ``pair.isolated``.
    reference
        Draws of latents without label switching, shape ``(num_draws, ...)`` each.
    axes
        Component axes, if known, as of ``exchangeable``.
    """

    def __init__(self, pair: Pair, reference: Mapping[str, Tensor], axes: Axes | None = None) -> None:
        shared = {name: reference[name] for name in pair.structure.shared_latent}
        self.axes = {} if pair.structure.row_latent else exchangeable(pair, shared) if axes is None else axes
        self._reference = {name: shared[name] for name in self.axes}

    @property
    def log_number(self) -> float:
        """Log of the number of labellings, log K!."""
        sizes = {self._reference[name].shape[axes[0]] for name, axes in self.axes.items()}
        return sum(math.lgamma(size + 1) for size in sizes)

    def relabelled(self, draws: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return draws with their components in this order; sites without components are unchanged."""
        own = {name: draws[name] for name in self.axes}
        return {**draws, **match_components(own, self._reference, self.axes)}

    def contains(self, draws: Mapping[str, Tensor]) -> Tensor:
        """Whether the components of each draw are in this order, shape ``(num_draws,)``."""
        inside = torch.ones(len(next(iter(draws.values()))), dtype=torch.bool)
        ordered = self.relabelled(draws)
        for name in self.axes:
            inside &= (ordered[name] == draws[name]).flatten(1).all(1).cpu()
        return inside
