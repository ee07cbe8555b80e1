"""Base class of stories whose decoder is a network: inputs, likelihood and initialisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pplgen.models._decoder_likelihoods import KINDS, NOISES, make_likelihood
from pplgen.models._guides.networks import DecoderNetwork, check_network, reset_networks
from pyro.nn import pyro_method
from torch import Tensor

from pplgen.distributions.missing import MarginalIndependent
from pplgen.story.base import check_choice, check_count
from pplgen.story.latent import LatentStory


class NetworkStory(LatentStory):
    """Base class of stories whose decoder is a network; a subclass sets ``decoder`` and its encoders.

    Parameters
    ----------
    num_features, num_latents
        Number of data columns, and of latent dimensions.
    hidden, activation, network
        As for ``check_network``.
    likelihood, noise, num_values
        As for ``make_likelihood``.
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
        self.seen = make_likelihood(likelihood, num_features, noise, num_values)

    @pyro_method
    def decode(self, z: Tensor) -> MarginalIndependent:
        """Return the distribution of rows given latent variables, including a class if the story has one."""
        return self.seen.distribution(self.decoder(z))

    def missing_mask(self, x: Tensor) -> Tensor | None:
        """Return the mask of missing entries for encoders; ``None`` if no training data were missing."""
        return x.isnan() if self.has_missing else None

    def check_data(self, x: Tensor) -> None:
        """Raise ``InputError`` for rows of another width, or entries outside the likelihood's support."""
        super().check_data(x)
        self.seen.check(x)

    @torch.no_grad()
    def initialise(self, x: Tensor, labels: Tensor | None = None, weights: Tensor | None = None) -> None:
        """Reset the networks, set the columns' scales, and set the decoder's output bias to the columns' means."""
        reset_networks(self)
        self.decoder.initialise(self.seen.initialise(x, weights))
