r"""Variational autoencoder.

The story, for rows x_i of D features, latent variables z_i of k dimensions, and normals by standard deviations::

    z_i        ~ Normal(0, I)                               prior: normal
                 or sum_c pi_c Normal(mu_c, tau_c)          mixture, with K learned components
                 or sum_c pi_c q(z_i | u_c)                 vamp, with K learned pseudo-inputs u_c of the encoder
    a_i        = decoder(z_i)
    x_ij | z_i ~ Bernoulli(sigmoid(a_ij))                   likelihood: bernoulli, the default, also of grey values
                 or ContinuousBernoulli(sigmoid(a_ij))      continuous-bernoulli
                 or Normal(m_j + s_j a_ij, sigma_ij)        normal, m and s the columns' means and standard deviations
                 or Categorical(softmax(a_ij1, ..., a_ijV)) categorical, V values
    sigma_ij   = sigma_j, sigma or s_j (softplus(b_ij) + .001)    noise: feature, the default, shared or entry

in data units; b is a second output of the decoder, and V is ``num_values``. The guide is amortised, by default ``q(z_i
| x_i) = Normal(l_i, softplus(v_i))``, ``(l_i, v_i) = encoder(x_i)``; ``_guides/latent_families.py`` has the others.
Those with bounded support have the prior Gamma(2, 2), LogNormal(0, 1), Uniform(0, 1) (beta, kumaraswamy) or
Dirichlet(1, ..., 1). Decoder, learned priors and sigma are point estimates that maximise the ELBO::

    log p(x_i) >= E_q[log p(x_i | z_i)] - KL(q(z_i | x_i), p(z_i))

``Trace_ELBO`` estimates both terms from draws of z (eq. 6 of the first reference), ``TraceMeanField_ELBO`` computes the
second in closed form where there is one (eq. 7 and 10). Missing entries are left out of the likelihood; the encoder
receives zeros in their place, on the columns' scale, and their mask (Mattei and Frellsen 2019).

References
----------
Kingma and Welling (2014), Auto-Encoding Variational Bayes.
Mattei and Frellsen (2019), MIWAE: deep generative modelling and imputation of incomplete data sets.
"""

from __future__ import annotations

from typing import Any

import pyro
from pplgen.models._guides.latent_families import LatentFamily, LatentPrior
from pplgen.models._guides.networks import DecoderNetwork, EncoderNetwork
from pplgen.models._network_story import NetworkStory
from torch import Tensor, nn

from pplgen.distributions import MarginalIndependent, NormalMixture, decoder_likelihood, standard_prior, vamp_prior
from pplgen.story import check_count, pyro_method


class VAE(NetworkStory):
    """Variational autoencoder: a decoder network maps latent variables to rows, an encoder amortises the guide.

    Parameters
    ----------
    num_features, num_latents
        Number of data columns D, and of latent dimensions k.
    guide
        Variational family: ``normal``, ``laplace``, ``student-t``, ``logistic``, ``full``, ``flow``; or, with bounded
        support, ``lognormal``, ``gamma``, ``beta``, ``kumaraswamy``, ``dirichlet``.
    prior
        ``normal``, ``mixture`` (of learned normals) or ``vamp``, for families on the real line.
    num_components
        Number of components K of a mixture prior.
    encoder, decoder
        Custom networks: from a row's inputs to the guide's parameters, and from latent variables to the likelihood's.
        A story with custom networks cannot be rebuilt from its config.
    **networks
        Options of networks and likelihood, as for ``NetworkStory``.
    """

    def __init__(
        self,
        num_features: int = 64,
        num_latents: int = 2,
        *,
        guide: str = "normal",
        prior: str = "normal",
        num_components: int = 10,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        **networks: Any,
    ) -> None:
        options = {"guide": guide, "prior": prior, "num_components": check_count("num_components", num_components)}
        super().__init__(num_features, num_latents, options, **networks)
        self.codes = LatentFamily(guide, num_latents)
        self.encoder = EncoderNetwork(*self.layers, self.seen.num_inputs, num_features, self.codes.num_outputs, encoder)
        self.decoder = DecoderNetwork(*self.layers, num_latents, self.seen, decoder)
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
        theta = self.code_prior
        if theta.kind == "mixture":
            return NormalMixture(theta.logits, theta.mu, theta.tau)
        if theta.kind == "vamp":
            return vamp_prior(theta.logits, self.codes.distribution(self.encoder(theta.pseudo_rows)))
        return standard_prior(self.config["guide"], theta.origin)

    @pyro_method
    def decode(self, z: Tensor) -> MarginalIndependent:
        """Return the distribution of rows given latent variables."""
        return decoder_likelihood(self.likelihood, self.decoder(z), self.num_features, *self.normal_parameters)

    @pyro_method
    def encode(self, x: Tensor) -> Any:
        """Return the guide of the rows' latent variables."""
        return self.codes.distribution(self.encoder(self.seen.read(x), self.missing_mask(x)))
