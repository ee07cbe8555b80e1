r"""Variational autoencoder.

The story, for rows x_i of D features and latent variables z_i of k dimensions::

    z_i       ~ Normal(0, I), a learned mixture, or a mixture of the guide at pseudo-inputs (VampPrior)
    x_ij | z_i ~ Bernoulli, ContinuousBernoulli, Normal or Categorical, with the outputs decoder(z_i)_j

The guide is amortised: ``q(z_i | x_i) = family(encoder(x_i))``, normal by default (``_guides/latent_families.py``).
Decoder, noise and learned priors are point estimates that maximise the ELBO::

    log p(x_i) >= E_q[log p(x_i | z_i)] - KL(q(z_i | x_i), p(z_i))

``Trace_ELBO`` estimates both terms from draws of z (eq. 6 of the first reference), ``TraceMeanField_ELBO`` computes the
second in closed form (eq. 7 and 10). Missing entries are left out of the likelihood; the encoder receives
zeros in their place, on the columns' scale, and their mask (Mattei and Frellsen 2019).

References
----------
Kingma and Welling (2014), Auto-Encoding Variational Bayes.
Mattei and Frellsen (2019), MIWAE: deep generative modelling and imputation of incomplete data sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
from pplgen.models._guides.latent_families import BOUNDED, GUIDES, PRIORS, LatentFamily, LatentPrior
from pplgen.models._guides.networks import DecoderNetwork, EncoderNetwork
from pplgen.models._network_story import NetworkStory
from pyro.nn import pyro_method
from torch import Tensor, nn

from pplgen.story.base import InputError, check_choice, check_count


class VAE(NetworkStory):
    """Variational autoencoder: a decoder network maps latent variables to rows, an encoder amortises the guide.

    Parameters
    ----------
    num_features
        Number of data columns D.
    num_latents
        Number of latent dimensions k.
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
    guide
        Variational family: ``normal``, ``laplace``, ``student-t``, ``logistic``, ``full``, ``flow``; or, with bounded
        support, ``lognormal``, ``gamma``, ``beta``, ``kumaraswamy``, ``dirichlet``.
    prior
        ``normal``, ``mixture`` (of learned normals) or ``vamp``, for families on the real line.
    num_components
        Number of components of a mixture prior.
    encoder, decoder
        Custom networks: from a row's inputs to the guide's parameters, and from latent variables to the likelihood's.
        A story with custom networks cannot be rebuilt from its config.
    """

    def __init__(
        self,
        num_features: int = 64,
        num_latents: int = 2,
        *,
        hidden: Sequence[int] = (200,),
        activation: str = "relu",
        network: str = "dense",
        likelihood: str = "bernoulli",
        noise: str = "feature",
        num_values: int = 2,
        guide: str = "normal",
        prior: str = "normal",
        num_components: int = 10,
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
            guide=check_choice("guide", guide, GUIDES),
            prior=check_choice("prior", prior, PRIORS),
            num_components=check_count("num_components", num_components),
        )
        if guide in BOUNDED and prior != "normal":
            raise InputError(
                f"prior={prior!r}: guide={guide!r} has bounded support and a fixed prior; expected 'normal'"
            )
        self.codes = LatentFamily(guide, num_latents)
        sizes = network, hidden, activation
        self.encoder = EncoderNetwork(*sizes, self.seen.num_inputs, num_features, self.codes.num_outputs, encoder)
        self.decoder = DecoderNetwork(*sizes, num_latents, num_features, self.seen.per_feature, decoder)
        self.code_prior = LatentPrior(prior, self.codes, self.seen.num_inputs, num_components)

    @pyro_method
    def model(self, x: Tensor | None = None, num_rows: int = 1) -> Tensor:
        """Generate ``num_rows`` rows, or score ``x`` of shape ``(num_rows, num_features)``."""
        with pyro.plate("data", num_rows if x is None else len(x)):
            z = pyro.sample("z", self.prior())
            return pyro.sample("x", self.decode(z), obs=x)

    @pyro_method
    def guide(self, x: Tensor | None = None, num_rows: int = 1) -> None:
        """Draw the latent variables of rows."""
        if x is not None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", self.encode(x))

    @pyro_method
    def prior(self) -> Any:
        """Return the prior of one row's latent variables."""
        return self.code_prior.distribution(lambda inputs: self.codes.distribution(self.encoder(inputs)))

    @pyro_method
    def encode(self, x: Tensor) -> Any:
        """Return the guide of the rows' latent variables."""
        return self.codes.distribution(self.encoder(self.seen.read(x), self.missing_mask(x)))
