"""Base class of stories whose decoder is a network: their options, checks and initialisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pplgen.models._guides.networks import DecoderNetwork, check_network, reset_networks
from pplgen.models._network_entries import NOISES, make_entries
from torch import Tensor

from pplgen.distributions.decoder_likelihoods import LIKELIHOODS
from pplgen.story.base import check_choice, check_count
from pplgen.story.latent import LatentStory


class NetworkStory(LatentStory):
    """Base class of stories whose decoder is a network; a subclass sets ``decoder`` and its encoders.

    Parameters
    ----------
    num_features, num_latents
        Number of data columns, and of latent dimensions.
    config
        Options of the subclass, checked.
    hidden
        Widths of the encoder's hidden layers, reversed for the decoder. Empty: both are linear.
    activation
        ``relu``, ``tanh``, ``gelu``, ``softplus`` or ``elu``.
    network
        ``dense``, or ``convolutional`` for square images.
    likelihood
        ``bernoulli``, ``continuous-bernoulli``, ``normal`` or ``categorical``.
    noise
        Standard deviation of a normal likelihood: one per ``feature``, ``shared`` by all, or one per ``entry``.
    num_values
        Number of values of a categorical feature.
    """

    decoder: DecoderNetwork

    def __init__(
        self,
        num_features: int,
        num_latents: int,
        config: Mapping[str, Any],
        *,
        hidden: Sequence[int] = (200,),
        activation: str = "relu",
        network: str = "dense",
        likelihood: str = "bernoulli",
        noise: str = "feature",
        num_values: int = 2,
    ) -> None:
        super().__init__(
            num_features,
            num_latents,
            **check_network(network, hidden, activation, num_features),
            likelihood=check_choice("likelihood", likelihood, LIKELIHOODS),
            noise=check_choice("noise", noise, NOISES),
            num_values=check_count("num_values", num_values, minimum=2),
            **config,
        )
        self.layers = network, hidden, activation
        self.likelihood = likelihood
        self.seen = make_entries(likelihood, num_features, noise, num_values)

    @property
    def normal_parameters(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Means m and standard deviations s of the columns, and sigma of a normal likelihood, in data units."""
        return self.seen.m, self.seen.s, self.seen.sigma

    @property
    def warm_up_weight(self) -> Tensor | None:  # type: ignore[override]
        """Weight of entries' own noise: fits start at shared noise, or the entries learned first hide the others."""
        return self.seen.own_noise if self.decoder.own_noise is None else self.decoder.own_noise

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
