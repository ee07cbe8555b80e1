r"""Variational autoencoder with clusters: discrete and continuous latents together.

The story, for rows x_i of D features with a component y_i of K and a code z_i of k entries::

    y_i             ~ Categorical(pi)
    z_i | y_i = c   ~ Normal(mu_c, sigma_c)
    x_ij | z_i      ~ Bernoulli, ContinuousBernoulli, Normal or Categorical, with the outputs decoder(z_i)_j

so that a component that is normal among the codes is a cluster of any shape among the rows. The guide encodes,
``q(z_i | x_i) = family(encoder(x_i))``, and the component is summed out exactly given the code, by ``TraceEnum_ELBO``::

    log p(x_i) >= E_q[log p(x_i | z_i) + log sum_c pi_c Normal(z_i | mu_c, sigma_c) - log q(z_i | x_i)]

The probabilities of components, ``Fit.latents(x)["y"]``, are ``E_q[p(y_i | z_i)]``, the best q(y | x) beside q(z | x)
(eq. 16 of the first reference). Weights pi, locations and deviations are learned by maximum likelihood. Known
components are given as ``labels``, -1 or None where unknown.

From an arbitrary start one component takes all rows and the bound keeps it so (second reference, section 4.2).
``initialise`` therefore first trains encoder and decoder alone, with a weak standard normal prior, and then starts the
components at clusters of the codes.

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
from pplgen.models._guides.code_families import LEAST, REAL
from pplgen.models._network_story import NetworkStory
from pplgen.models._starts.first_latents import cluster_codes, train_codes
from pyro import poutine
from pyro.nn import pyro_method
from torch import Tensor

from pplgen.story.base import InputError, check_choice


class MixtureVAE(VAE, NetworkStory):
    """Rows that a network decodes from codes that come in clusters, the cluster of each row summed out.

    Parameters
    ----------
    num_features
        Number of data columns D.
    num_latents
        Entries k of a code.
    num_components
        Number of clusters K.
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
        Family of q, one of those of ``VAE`` on the whole line.
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
        del self.config["prior"]  # there is no other
        self.K = num_components
        self.dims = {**NetworkStory.dims, "y": ("row", "component")}

    @pyro_method
    def model(self, x: Tensor | None = None, num_rows: int = 1) -> Tensor:
        """Generate ``num_rows`` rows, or score ``x`` of shape ``(num_rows, num_features)``."""
        before = self.code_prior
        with pyro.plate("data", num_rows if x is None else len(x)):
            with poutine.scale(scale=self.kl_weight):
                y = pyro.sample("y", dist.Categorical(logits=before.logits), infer={"enumerate": "parallel"})
                z = pyro.sample("z", dist.Normal(before.mu[y], before.log_sigma[y].exp() + LEAST).to_event(1))
            return pyro.sample("x", self.decode(z), obs=x)

    def check_training_data(self, x: Tensor) -> None:
        """Refuse fewer rows than components, and rows of which nothing is seen."""
        super().check_training_data(x)
        if len(x) < self.K:
            raise InputError(f"{len(x)} rows are too few for {self.K} components; give at least {self.K}")

    def check_labels(self, labels: Tensor) -> None:
        """Refuse labels of no component."""
        check_classes(labels, self.K)

    @torch.no_grad()
    def initialise(self, x: Tensor, labels: Tensor | None = None, weights: Tensor | None = None) -> None:
        """Train encoder and decoder alone for a while, and start the components at clusters of the codes."""
        super().initialise(x, labels, weights)
        with pyro.get_param_store().scope():
            train_codes(self, x, weights)
            n, mu, sigma = cluster_codes(self, x, self.K, labels, weights)
        self.code_prior.logits.copy_(n.log())
        self.code_prior.mu.copy_(mu)
        self.code_prior.log_sigma.copy_(sigma.log())
