"""What stories share whose rows are decoded by a network: how rows are read and seen, and where learning starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pplgen.models._distributions.likelihoods import KINDS, NOISES, likelihood_of
from pplgen.models._distributions.missing import WhereSeen
from pplgen.models._guides.networks import DecoderNetwork, check_network, redraw
from pyro.nn import pyro_method
from torch import Tensor

from pplgen.story.base import check_choice, check_count
from pplgen.story.latent import LatentStory


class NetworkStory(LatentStory):
    """A story whose decoder is a network; a subclass adds it as ``decoder``, and encoders beside it.

    Parameters
    ----------
    num_features, num_latents
        Entries of a row, and of a code.
    hidden, activation, network
        As ``check_network`` takes them.
    likelihood, noise, num_values
        As ``likelihood_of`` takes them.
    **config
        Options of the subclass.
    """

    decoder: DecoderNetwork

    def __init__(
        self,
        num_features: int,
        num_latents: int,
        *,
        hidden: Sequence[int],
        activation: str,
        network: str,
        likelihood: str,
        noise: str,
        num_values: int,
        **config: Any,
    ) -> None:
        super().__init__(
            num_features,
            num_latents,
            **check_network(network, hidden, activation, num_features),
            likelihood=check_choice("likelihood", likelihood, KINDS),
            noise=check_choice("noise", noise, NOISES),
            num_values=check_count("num_values", num_values, minimum=2),
            **config,
        )
        self.seen = likelihood_of(likelihood, num_features, noise, num_values)

    @pyro_method
    def decode(self, z: Tensor) -> WhereSeen:
        """Return the distribution of rows given codes, and what a story puts beside them, such as a class."""
        return self.seen.of(self.decoder(z))

    def gaps_of(self, x: Tensor) -> Tensor | None:
        """Tell which entries encoders are told to be missing; ``None`` as long as none ever was."""
        return x.isnan() if self.has_missing else None

    def check_data(self, x: Tensor) -> None:
        """Refuse rows of another width, and entries that the likelihood cannot see."""
        super().check_data(x)
        self.seen.check(x)

    @torch.no_grad()
    def initialise(self, x: Tensor, labels: Tensor | None = None, weights: Tensor | None = None) -> None:
        """Draw the networks, read rows on their columns' scale, and start the decoder at the columns as a whole."""
        redraw(self)
        self.decoder.begin(self.seen.begin(x, weights))
