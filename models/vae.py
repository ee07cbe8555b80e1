r"""Variational autoencoder.

The story, for rows x_i of D features and codes z_i of k entries::

    z_i       ~ Normal(0, I), or a learned mixture, or the guide's own mixture over pseudo-rows
    x_ij | z_i ~ Bernoulli, ContinuousBernoulli, Normal or Categorical, with the outputs decoder(z_i)_j

The guide encodes: ``q(z_i | x_i) = family(encoder(x_i))``, normal by default (``_guides/code_families.py``).
Decoder, noise and learned priors are fitted by maximum likelihood, the bound standing for the likelihood::

    log p(x_i) >= E_q[log p(x_i | z_i)] - KL(q(z_i | x_i), p(z_i))

``Trace_ELBO`` estimates both terms from draws of z (eq. 6 of the first reference), ``TraceMeanField_ELBO`` computes the
second in closed form (eq. 7 and 10). Missing entries are left out of the likelihood; the encoder reads zeros in their
place, on the columns' scale, and is told where (Mattei and Frellsen 2019).

References
----------
Kingma and Welling (2014), Auto-Encoding Variational Bayes.
Mattei and Frellsen (2019), MIWAE: deep generative modelling and imputation of incomplete data sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pplgen.models._guides.code_families import BOUNDED, GUIDES, PRIORS, CodePrior, Codes
from pplgen.models._guides.networks import DecoderNetwork, EncoderNetwork
from pplgen.models._network_story import NetworkStory
from pyro.nn import pyro_method
from torch import Tensor, nn

from pplgen.story.base import InputError, check_choice, check_count


class VAE(NetworkStory):
    """Rows that a network decodes from a few continuous codes, and another encodes.

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
        ``bernoulli``, ``continuous-bernoulli``, ``normal`` or ``categorical``.
    noise
        Whose the deviation of a normal likelihood is: each ``feature``'s, ``shared`` by all, or each ``entry``'s.
    num_values
        Values of a categorical feature.
    guide
        Family of q: ``normal``, ``laplace``, ``student-t``, ``logistic``, ``full``, ``flow``; or with codes of another
        support ``lognormal``, ``gamma``, ``beta``, ``kumaraswamy``, ``dirichlet``.
    prior
        ``normal``, ``mixture`` (of learned normals) or ``vamp``, of codes on the whole line.
    num_components
        Of a mixture prior.
    encoder, decoder
        Networks of your own in place of the above: from what is read of a row to the guide's parameters, and from a
        code to the likelihood's. A story with such is not rebuilt from its config.
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
            raise InputError(f"prior={prior!r}: codes of guide={guide!r} have the prior of their support")
        self.codes = Codes(guide, num_latents)
        sizes = network, hidden, activation
        self.encoder = EncoderNetwork(*sizes, self.seen.num_inputs, num_features, self.codes.num_outputs, encoder)
        self.decoder = DecoderNetwork(*sizes, num_latents, num_features, self.seen.per_feature, decoder)
        self.code_prior = CodePrior(prior, self.codes, self.seen.num_inputs, num_components)

    @pyro_method
    def prior(self) -> Any:
        """Return the distribution of a code."""
        return self.code_prior.of(lambda inputs: self.codes.of(self.encoder(inputs)))

    @pyro_method
    def encode(self, x: Tensor) -> Any:
        """Return the guide's distribution of the codes of rows."""
        return self.codes.of(self.encoder(self.seen.read(x), self.gaps_of(x)))
