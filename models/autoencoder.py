r"""Autoencoder.

The story, for rows x_i of D features with codes z_i of k dimensions::

    z_i        ~ Flat                                   improper, density one
    x_ij | z_i ~ Normal(decoder(z_i)_j, sigma), or one of the likelihoods of ``pplgen.models.vae``

The guide is a point mass at the encoder's output, ``q(z_i | x_i) = Delta(encoder(x_i))``. With a flat prior and a
point mass the ELBO is the log-likelihood of the reconstruction, the objective of autoencoders, with sigma fitted too::

    log p(x_i | z_i = encoder(x_i))

It is neither a likelihood of rows nor a bound on one. With a normal likelihood and a shared sigma it is squared error:
if encoder and decoder are linear, the decoder spans the first k principal axes (Baldi and Hornik 1989).

A flat prior cannot be sampled. Draws are from a normal distribution fitted to the codes of the rows by maximum
likelihood during training, without a gradient into the codes (compare the density that Ghosh et al. 2020 fit to codes
after training); before a fit it is the standard normal.

References
----------
Baldi and Hornik (1989), Neural networks and principal component analysis. doi:10.1016/0893-6080(89)90014-2
Ghosh, Sajjadi, Vergari, Black and Schoelkopf (2020), From variational to deterministic autoencoders.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pplgen.models._guides.networks import DecoderNetwork, EncoderNetwork
from pplgen.models._network_story import NetworkStory
from pyro.nn import PyroParam, pyro_method
from torch import Tensor, nn
from torch.distributions import constraints


class Autoencoder(NetworkStory):
    """Deterministic autoencoder: one network compresses rows to codes, another reconstructs them.

    Parameters
    ----------
    num_features
        Number of data columns D.
    num_latents
        Number of code dimensions k.
    hidden
        Widths of the encoder's hidden layers, reversed for the decoder. Empty: both are linear.
    activation
        ``relu``, ``tanh``, ``gelu``, ``softplus`` or ``elu``.
    network
        ``dense``, or ``convolutional`` for square images.
    likelihood
        ``normal`` (squared error), ``bernoulli`` (cross-entropy), ``continuous-bernoulli`` or ``categorical``.
    noise
        Standard deviation of a normal likelihood: ``shared`` by all, one per ``feature``, or one per ``entry``.
    num_values
        Number of values of a categorical feature.
    encoder, decoder
        Custom networks: from a row's inputs to a code, and from a code to the likelihood's parameters. A story with
        custom networks cannot be rebuilt from its config.
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
    def model(self, x: Tensor | None = None, num_rows: int = 1) -> Tensor:
        """Generate ``num_rows`` rows, or score ``x`` of shape ``(num_rows, num_features)``."""
        with pyro.plate("data", num_rows if x is None else len(x)):
            z = pyro.sample("z", self.prior())
            return pyro.sample("x", self.decode(z), obs=x)

    @pyro_method
    def guide(self, x: Tensor | None = None, num_rows: int = 1) -> None:
        """Place the codes of rows."""
        if x is not None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", self.encode(x))

    @pyro_method
    def prior(self) -> Any:
        """Return a flat density of codes that draws from a normal fitted to the rows' codes."""
        return FlatPrior(self.code_mean, scale_tril=self.code_tril)

    @pyro_method
    def encode(self, x: Tensor) -> Any:
        """Return a point mass at the rows' codes."""
        return dist.Delta(self.encoder(self.seen.read(x), self.missing_mask(x))).to_event(1)


class FlatPrior(dist.MultivariateNormal):
    """Flat density that draws from a normal fitted to the scored values.

    The log density is zero; its gradient is the normal's in location and scale, and zero in the value.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Zero, shape ``batch_shape``."""
        density = super().log_prob(value.detach())
        return density - density.detach()
