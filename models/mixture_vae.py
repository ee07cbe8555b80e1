r"""Variational autoencoder with a Gaussian mixture prior: discrete and continuous latents.

The story, for rows x_i of D features with a component y_i of K and latent variables z_i of k dimensions::

    y_i             ~ Categorical(pi)
    z_i | y_i = c   ~ Normal(mu_c, sigma_c)
    x_ij | z_i      ~ Bernoulli, ContinuousBernoulli, Normal or Categorical, with the outputs decoder(z_i)_j

so that a normal component in latent space is a cluster of any shape in data space. The guide is amortised,
``q(z_i | x_i) = family(encoder(x_i))``, and the component is summed out exactly given z_i, by ``TraceEnum_ELBO``::

    log p(x_i) >= E_q[log p(x_i | z_i) + log sum_c pi_c Normal(z_i | mu_c, sigma_c) - log q(z_i | x_i)]

The probabilities of components, ``Fit.latents(x)["y"]``, are ``E_q[p(y_i | z_i)]``, the optimal q(y | x) given
q(z | x) (eq. 16 of the first reference). Weights pi, means and standard deviations are learned by maximum likelihood.
Known components are given as ``labels``, -1 or None if unknown.

From an arbitrary start one component takes all rows, a local optimum of the ELBO (second reference, section 4.2).
``initialise`` therefore pretrains encoder and decoder with a down-weighted standard normal prior, and then sets the
components to clusters of the latent variables.

References
----------
Jiang, Zheng, Tan, Tang and Zhou (2017), Variational deep embedding.
Dilokthanakul et al. (2016), Deep unsupervised clustering with Gaussian mixture variational autoencoders.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from pplgen.models import VAE
from pplgen.models._guides.classes import check_classes
from pplgen.models._guides.latent_families import MIN_SCALE, REAL
from pplgen.models._network_story import NetworkStory
from pplgen.models._starts.mixture_vae_start import cluster_latents, pretrain_networks
from pyro.nn import pyro_method
from torch import Tensor

from pplgen.story.base import InputError, check_choice


class MixtureVAE(VAE, NetworkStory):
    """Variational autoencoder with a Gaussian mixture prior, the component of each row summed out.

    Parameters
    ----------
    num_features
        Number of data columns D.
    num_latents
        Number of latent dimensions k.
    num_components
        Number of clusters K.
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
        Variational family, one of those of ``VAE`` on the real line.
    """

    def __init__(
        self,
        num_features: int = 64,
        num_latents: int = 2,
        *,
        num_components: int = 10,
        hidden: Sequence[int] = (200,),
        activation: str = "relu",
        network: str = "dense",
        likelihood: str = "bernoulli",
        noise: str = "feature",
        num_values: int = 2,
        guide: str = "normal",
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
            guide=check_choice("guide", guide, REAL),
            prior="mixture",
            num_components=num_components,
        )
        del self.config["prior"]  # always "mixture"
        self.K = num_components
        self.dims = {**NetworkStory.dims, "y": ("row", "component")}

    @pyro_method
    def model(self, x: Tensor | None = None, num_rows: int = 1) -> Tensor:
        """Generate ``num_rows`` rows, or score ``x`` of shape ``(num_rows, num_features)``."""
        prior = self.code_prior
        with pyro.plate("data", num_rows if x is None else len(x)):
            y = pyro.sample("y", dist.Categorical(logits=prior.logits), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(prior.mu[y], prior.log_sigma[y].exp() + MIN_SCALE).to_event(1))
            return pyro.sample("x", self.decode(z), obs=x)

    @pyro_method
    def guide(self, x: Tensor | None = None, num_rows: int = 1) -> None:
        """Draw the latent variables of rows; the component is summed out."""
        if x is not None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", self.encode(x))

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
            n, mu, sigma = cluster_latents(self, x, self.K, labels, weights)
        self.code_prior.logits.copy_(n.log())
        self.code_prior.mu.copy_(mu)
        self.code_prior.log_sigma.copy_(sigma.log())
