r"""Semi-supervised variational autoencoder (M2).

The story, for rows x_i of D features with a class y_i of C and latent variables z_i of k dimensions::

    y_i             ~ Categorical(pi)           pi = ``probabilities``, fixed
    z_i             ~ Normal(0, I)              for guides with bounded support ``standard_prior``
    a_i             = decoder(z_i, y_i)
    x_ij | y_i, z_i ~ Bernoulli(sigmoid(a_ij)); or by ``likelihood`` ContinuousBernoulli(sigmoid(a_ij)), Normal(m_j +
                      s_j a_ij, sigma_ij), Categorical(softmax(a_ij1, ..., a_ijV)), as for ``VAE``

The guide is a classifier and an encoder: ``q(y_i | x_i) = Categorical(softmax(classifier(x_i)))`` and
``q(z_i | x_i, y_i) = family(encoder(x_i, y_i))``. The ELBO of a labelled row is L(x_i, y_i); that of an
unlabelled row, U(x_i), sums the class out exactly::

    L(x, y) = E[log p(x, y, z) - log q(z | x, y)],  z from q(z | x, y)
    U(x)    = sum_y q(y | x) (L(x, y) - log q(y | x))

L does not train the classifier, so the objective, which ``Fit.elbo`` estimates, has a further term, at most zero::

    J = sum_labelled L(x_i, y_i) + sum_unlabelled U(x_i) + lambda N / N_labelled sum_labelled log q(y_i | x_i)

with lambda = ``classification`` and N rows, N_labelled of them labelled (eq. 6 to 9 of the reference). Minibatches are
stratified, so that J is unbiased. Pass ``labels`` to ``pplgen.fit``, -1 or None if unknown; without labels, classes are
clusters in arbitrary order. ``prior``, ``decode`` and ``encode`` use one vector for z and y: k entries, then C
indicators, or probabilities, of the class. Missing entries are left out of the likelihood.

References
----------
Kingma, Rezende, Mohamed and Welling (2014), Semi-supervised learning with deep generative models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from pplgen.models._guides.classes import ClassEncoderNetwork, LatentAndClass, check_class_probabilities, check_classes
from pplgen.models._guides.latent_families import LatentFamily, LatentPrior
from pplgen.models._guides.networks import DecoderNetwork, EncoderNetwork
from pplgen.models._network_story import NetworkStory
from torch import Tensor

from pplgen.distributions import MarginalIndependent, decoder_likelihood, standard_prior
from pplgen.story import check_count, check_positive, pyro_method

CERTAIN_LOGIT = 1e4
"""Logit of a known class."""


class SemiSupervisedVAE(NetworkStory):
    """Variational autoencoder with a class per row, observed for labelled rows and summed out for the others.

    Parameters
    ----------
    num_features, num_latents
        Number of data columns D, and of latent dimensions k.
    num_classes
        Number of classes C.
    guide
        Variational family of q(z | x, y), one of those of ``VAE``.
    classification
        Weight lambda of the classification loss of labelled rows.
    probabilities
        Prior class probabilities pi. Default: uniform.
    **networks
        Options of networks and likelihood, as for ``NetworkStory``.
    """

    takes_labels: ClassVar[bool] = True
    pi: Tensor
    indicators: Tensor
    weight: Tensor  # lambda N / N_labelled, of log q(y | x) of a labelled row

    def __init__(
        self,
        num_features: int = 64,
        num_latents: int = 2,
        *,
        num_classes: int = 10,
        guide: str = "normal",
        classification: float = 0.1,
        probabilities: Sequence[float] | None = None,
        **networks: Any,
    ) -> None:
        C = check_count("num_classes", num_classes, minimum=2)
        a, pi = check_positive("classification", classification), check_class_probabilities(probabilities, C)
        options = {"num_classes": C, "guide": guide, "classification": a, "probabilities": pi}
        super().__init__(num_features, num_latents, options, **networks)
        self.C = C
        self.codes, inputs = LatentFamily(guide, num_latents), (self.seen.num_inputs, num_features)
        self.classifier = EncoderNetwork(*self.layers, *inputs, C)
        self.encoder = ClassEncoderNetwork(*self.layers, *inputs, self.codes.num_outputs, C)
        self.decoder = DecoderNetwork(*self.layers, num_latents + C, self.seen)
        self.code_prior = LatentPrior("normal", self.codes, self.seen.num_inputs, 1)
        self.register_buffer("pi", torch.tensor(pi or [1 / C] * C))
        self.register_buffer("indicators", torch.eye(C))
        self.register_buffer("weight", torch.tensor(float(classification)))
        self.dims = {**NetworkStory.dims, "y": ("row", "class")}

    @pyro_method
    def model(self, x: Tensor | None = None, num_rows: int = 1, labels: Tensor | None = None) -> Tensor:
        """Generate ``num_rows`` rows, or score ``x`` ``(num_rows, num_features)``; labels affect only the guide."""
        with pyro.plate("data", num_rows if x is None else len(x)):
            y = pyro.sample("y", dist.Categorical(self.pi), infer={"enumerate": "parallel"})
            z = pyro.sample("z", standard_prior(self.config["guide"], self.code_prior.origin))
            shape = torch.broadcast_shapes(y.shape, z.shape[:-1])
            z_and_y = torch.cat([part.expand(*shape, -1) for part in (z, self.indicators[y])], -1)
            return pyro.sample("x", self.decode(z_and_y), obs=x)

    @pyro_method
    def guide(self, x: Tensor | None = None, num_rows: int = 1, labels: Tensor | None = None) -> None:
        """Classify rows, some of them labelled, and encode them; without rows there are no sites."""
        if x is None:
            return
        with pyro.plate("data", len(x)):
            classes = self._classify(x)
            if labels is not None:
                log_q = torch.where(labels >= 0, classes.log_prob(labels.clamp_min(0)), 0.0)
                # factors in the guide are subtracted from the ELBO
                pyro.factor("classification", -self.weight * log_q, has_rsample=True)
            y = pyro.sample("y", self._given_labels(classes, labels), infer={"enumerate": "parallel"})
            pyro.sample("z", self._encode_latents(x, y))

    @pyro_method
    def prior(self) -> LatentAndClass:
        """Return the prior of one row's latent variables and class."""
        z = standard_prior(self.config["guide"], self.code_prior.origin)
        return LatentAndClass(dist.Categorical(self.pi), z.expand((self.C,)))

    @pyro_method
    def decode(self, z: Tensor) -> MarginalIndependent:
        """Return the distribution of rows given latent variables and class, shape ``(..., k + C)``."""
        return decoder_likelihood(self.likelihood, self.decoder(z), self.num_features, *self.normal_parameters)

    @pyro_method
    def encode(self, x: Tensor, labels: Tensor | None = None) -> LatentAndClass:
        """Return the guide of the rows' latent variables and classes."""
        q_z = self._encode_latents(x.unsqueeze(-2), torch.arange(self.C, device=x.device))
        return LatentAndClass(self._given_labels(self._classify(x), labels), q_z)

    @pyro_method
    def complete(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Draw the missing entries given the observed ones, and the class of labelled rows."""
        return self._complete(x, self.encode(x, labels))

    def _classify(self, x: Tensor) -> Any:
        return dist.Categorical(logits=self.classifier(self.seen.read(x), self.missing_mask(x)))

    def _given_labels(self, classes: Any, labels: Tensor | None) -> Any:
        """Return classes with all mass on the label of labelled rows; finite, so that no term is 0 log 0."""
        if labels is None:
            return classes
        certain = CERTAIN_LOGIT * self.indicators[labels.clamp_min(0)]
        return dist.Categorical(logits=torch.where(labels[:, None] >= 0, certain, classes.logits))

    def _encode_latents(self, x: Tensor, classes: Tensor) -> Any:
        return self.codes.distribution(self.encoder(self.seen.read(x), classes, self.missing_mask(x)))

    def check_labels(self, labels: Tensor) -> None:
        """Raise ``InputError`` for labels that are not a class; warn of classes without labelled rows."""
        check_classes(labels, self.C, warn=True)

    @torch.no_grad()
    def initialise(self, x: Tensor, labels: Tensor | None = None, weights: Tensor | None = None) -> None:
        """Initialise the networks, and the weight of the classification loss."""
        super().initialise(x, labels, weights)
        num_labelled = 0 if labels is None else int((labels >= 0).sum())
        self.weight.fill_(self.config["classification"] * len(x) / max(num_labelled, 1))
