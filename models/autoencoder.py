r"""Autoencoder.

The story, for rows x_i of D features and codes z_i of k entries::

    z_i        ~ flat: a density of one everywhere
    x_ij | z_i ~ Normal(decoder(z_i)_j, sigma), or one of the likelihoods of ``pplgen.models.vae``

The guide is a point mass at the encoder's output, ``q(z_i | x_i) = Delta(encoder(x_i))``. A flat prior and a point mass
add nothing to the bound, which is what autoencoders maximise, with sigma fitted too::

    log p(x_i | z_i = encoder(x_i))

It is how well rows are reconstructed, and no likelihood of rows, nor a bound on one. With a normal likelihood and
one sigma for all it is squared error: if encoder and decoder are linear, the decoder spans the first k principal axes
(Baldi and Hornik 1989).

Nothing can be drawn from a flat prior. Draws are from a normal distribution that follows the codes of the rows, fitted
to them by maximum likelihood beside everything else and without a say in where they are (in the spirit of the density
that Ghosh et al. 2020 fit to codes afterwards); before a fit it is the standard normal.

References
----------
Baldi and Hornik (1989), Neural networks and principal component analysis. doi:10.1016/0893-6080(89)90014-2
Ghosh, Sajjadi, Vergari, Black and Schoelkopf (2020), From variational to deterministic autoencoders.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pplgen.models._guides.networks import DecoderNetwork, EncoderNetwork
from pplgen.models._network_story import NetworkStory
from pyro.nn import PyroParam, pyro_method
from torch import Tensor, nn
from torch.distributions import constraints


class Autoencoder(NetworkStory):
    """Rows that a network squeezes through a code of a few numbers, and another reconstructs.

    Parameters
    ----------
    num_features
        Number of data columns D.
    num_latents
        Entries k of a code.
    hidden
        Widths of the encoder's hidden layers; the decoder's are the same the other way round. Empty: both are linear.
    activation
        ``relu``, ``tanh``, ``gelu``, ``softplus`` or ``elu``.
    network
        ``dense``, or ``convolutional`` for square pictures.
    likelihood
        ``normal`` (squared error), ``bernoulli`` (cross-entropy), ``continuous-bernoulli`` or ``categorical``.
    noise
        Whose the deviation of a normal likelihood is: ``shared`` by all, each ``feature``'s, or each ``entry``'s.
    num_values
        Values of a categorical feature.
    encoder, decoder
        Networks of your own in place of the above: from what is read of a row to a code, and from a code to the
        likelihood's parameters. A story with such is not rebuilt from its config.
    """

    def __init__(
        self,
        num_features: int = 64,
        num_latents: int = 2,
        *,
        hidden: Sequence[int] = (200,),
        activation: str = "relu",
        network: str = "dense",
        likelihood: str = "normal",
        noise: str = "shared",
        num_values: int = 2,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
    ) -> None:
        super().__init__(
            num_features,
            num_latents,
            hidden=hidden,
            activation=activation,
            network=network,
            likelihood=likelihood,
            noise=noise,
            num_values=num_values,
        )
        sizes = network, hidden, activation
        self.encoder = EncoderNetwork(*sizes, self.seen.num_inputs, num_features, num_latents, encoder)
        self.decoder = DecoderNetwork(*sizes, num_latents, num_features, self.seen.per_feature, decoder)
        self.code_mean = nn.Parameter(torch.zeros(num_latents))
        self.code_tril = PyroParam(torch.eye(num_latents), constraints.lower_cholesky)

    @pyro_method
    def prior(self) -> Any:
        """Return a distribution of codes that is flat, and draws codes like those of the rows."""
        return FlatFollower(self.code_mean, scale_tril=self.code_tril)

    @pyro_method
    def encode(self, x: Tensor) -> Any:
        """Return a point mass at the codes of rows."""
        return dist.Delta(self.encoder(self.seen.read(x), self.gaps_of(x))).to_event(1)


class FlatFollower(dist.MultivariateNormal):
    """A density of one everywhere, that draws from a normal whose parameters follow what is scored.

    The log density is zero; its gradient is that of the normal's by location and scale, and zero by the value.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Zero, shape ``batch_shape``."""
        density = super().log_prob(value.detach())
        return density - density.detach()
