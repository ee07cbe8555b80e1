r"""Variational autoencoder with a Gaussian mixture prior: discrete and continuous latents.

The story, for rows x_i of D features with a component y_i of K and latent variables z_i of k dimensions::

    y_i           ~ Categorical(pi)
    z_i | y_i = c ~ Normal(mu_c, tau_c)                          standard deviations
    a_i           = decoder(z_i)
    x_ij | z_i    ~ Bernoulli(sigmoid(a_ij)); or by ``likelihood`` ContinuousBernoulli(sigmoid(a_ij)), Normal(m_j +
                    s_j a_ij, sigma_ij), Categorical(softmax(a_ij1, ..., a_ijV)), as for ``VAE``

so that a normal component in latent space is a cluster of any shape in data space. The guide is that of ``VAE``,
``q(z_i | x_i) = family(encoder(x_i))``, and the component is summed out exactly given z_i, by ``TraceEnum_ELBO``::

    log p(x_i) >= E_q[log p(x_i | z_i) + log sum_c pi_c Normal(z_i | mu_c, tau_c) - log q(z_i | x_i)]

The probabilities of components, ``Fit.latents(x)["y"]``, are ``E_q[p(y_i | z_i)]``, the optimal q(y | x) given
q(z | x) (eq. 16 of the first reference). Weights pi (the softmax of logits), mu and tau are learned by maximum
likelihood. ``labels`` of rows, -1 or None if unknown, are used by ``initialise`` alone.

From an arbitrary start one component takes all rows, a local optimum of the ELBO (second reference, section 4.2).
``initialise`` therefore pretrains encoder and decoder with a down-weighted standard normal prior, and then sets the
components to clusters of the latent variables.

References
----------
Jiang, Zheng, Tan, Tang and Zhou (2017), Variational deep embedding.
Dilokthanakul et al. (2016), Deep unsupervised clustering with Gaussian mixture variational autoencoders.
"""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pplgen.models._guides.classes import check_classes
from pplgen.models._guides.latent_families import REAL
from pplgen.models._network_story import NetworkStory
from pplgen.models._starts.mixture_vae_start import cluster_latents, pretrain_networks
from pplgen.models.vae import VAE
from torch import Tensor

from pplgen.distributions import MarginalIndependent, decoder_likelihood
from pplgen.story import InputError, check_choice, pyro_method


class MixtureVAE(VAE, NetworkStory):
    """Variational autoencoder with a Gaussian mixture prior, the component of each row summed out.

    Parameters
    ----------
    num_features, num_latents
        Number of data columns D, and of latent dimensions k.
    num_components
        Number of clusters K.
    guide
        Variational family, one of those of ``VAE`` on the real line.
    **networks
        Options of networks and likelihood, as for ``NetworkStory``.
    """

    def __init__(
        self,
        num_features: int = 64,
        num_latents: int = 2,
        *,
        num_components: int = 10,
        guide: str = "normal",
        **networks: Any,
    ) -> None:
        options: Any = {"guide": check_choice("guide", guide, REAL), "num_components": num_components}
        super().__init__(num_features, num_latents, prior="mixture", **options, **networks)
        del self.config["prior"]  # always "mixture"
        self.K = num_components
        self.dims = {**NetworkStory.dims, "y": ("row", "component")}

    @pyro_method
    def model(self, x: Tensor | None = None, num_rows: int = 1) -> Tensor:
        """Generate ``num_rows`` rows, or score ``x`` of shape ``(num_rows, num_features)``."""
        logits, mu, tau = self.code_prior.logits, self.code_prior.mu, self.code_prior.tau
        with pyro.plate("data", num_rows if x is None else len(x)):
            y = pyro.sample("y", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(mu[y], tau[y]).to_event(1))
            return pyro.sample("x", self.decode(z), obs=x)

    @pyro_method
    def guide(self, x: Tensor | None = None, num_rows: int = 1) -> None:
        """Draw the latent variables of rows; the component is summed out."""
        if x is not None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", self.encode(x))

    @pyro_method
    def decode(self, z: Tensor) -> MarginalIndependent:
        """Return the distribution of rows given latent variables."""
        return decoder_likelihood(self.likelihood, self.decoder(z), self.num_features, *self.normal_parameters)

    def check_training_data(self, x: Tensor) -> None:
        """Raise ``InputError`` for fewer rows than components, or rows without observed entries."""
        super().check_training_data(x)
        if len(x) < self.K:
            raise InputError(f"{len(x)} rows are too few for {self.K} components; give at least {self.K}")

    def check_labels(self, labels: Tensor) -> None:
        """Raise ``InputError`` for labels that are not a component."""
        check_classes(labels, self.K)

    @torch.no_grad()
    def initialise(self, x: Tensor, labels: Tensor | None = None, weights: Tensor | None = None) -> None:
        """Pretrain encoder and decoder, and set the components to clusters of the latent variables."""
        super().initialise(x, labels, weights)
        with pyro.get_param_store().scope():
            pretrain_networks(self, x, weights)
            n, mu, tau = cluster_latents(self, x, self.K, labels, weights)
        self.code_prior.logits.copy_(n.log())
        self.code_prior.mu.copy_(mu)
        self.code_prior.log_sigma.copy_(tau.log())
