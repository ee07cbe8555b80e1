r"""Autoencoder.

The story, for rows x_i of D features with codes z_i of k dimensions::

    z_i        ~ Flat                                       improper, density one
    a_i        = decoder(z_i)
    x_ij | z_i ~ Normal(m_j + s_j a_ij, sigma_ij)           likelihood: normal, m, s: column means, standard deviations
                 or Bernoulli(sigmoid(a_ij))                bernoulli
                 or ContinuousBernoulli(sigmoid(a_ij))      continuous-bernoulli
                 or Categorical(softmax(a_ij1, ..., a_ijV)) categorical, V values
    sigma_ij   = sigma, sigma_j or s_j (softplus(b_ij) + .001)    noise: shared, feature, or entry

with sigma in data units, b a second output of the decoder and V = ``num_values``. Missing entries are left out.

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

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pplgen.models._guides.networks import DecoderNetwork, EncoderNetwork
from pplgen.models._network_story import NetworkStory
from pyro.nn import PyroParam
from torch import Tensor, nn
from torch.distributions import constraints

from pplgen.distributions import FlatPrior, MarginalIndependent, decoder_likelihood
from pplgen.story import pyro_method


class Autoencoder(NetworkStory):
    """Deterministic autoencoder: one network compresses rows to codes, another reconstructs them.

    Parameters
    ----------
    num_features, num_latents
        Number of data columns D, and of code dimensions k.
    likelihood
        ``normal`` (squared error), ``bernoulli`` (cross-entropy), ``continuous-bernoulli`` or ``categorical``.
    noise
        Standard deviation of a normal likelihood: ``shared`` by all, one per ``feature``, or one per ``entry``.
    encoder, decoder
        Custom networks: from a row's inputs to a code, and from a code to the likelihood's parameters. A story with
        custom networks cannot be rebuilt from its config.
    **networks
        Options of networks and likelihood, as for ``NetworkStory``.
    """

    def __init__(
        self,
        num_features: int = 64,
        num_latents: int = 2,
        *,
        likelihood: str = "normal",
        noise: str = "shared",
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        **networks: Any,
    ) -> None:
        super().__init__(num_features, num_latents, {}, likelihood=likelihood, noise=noise, **networks)
        self.encoder = EncoderNetwork(*self.layers, self.seen.num_inputs, num_features, num_latents, encoder)
        self.decoder = DecoderNetwork(*self.layers, num_latents, self.seen, decoder)
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
    def decode(self, z: Tensor) -> MarginalIndependent:
        """Return the distribution of rows given codes."""
        return decoder_likelihood(self.likelihood, self.decoder(z), self.num_features, *self.normal_parameters)

    @pyro_method
    def encode(self, x: Tensor) -> Any:
        """Return a point mass at the rows' codes."""
        return dist.Delta(self.encoder(self.seen.read(x), self.missing_mask(x))).to_event(1)
