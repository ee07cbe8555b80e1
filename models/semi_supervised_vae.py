r"""Semi-supervised variational autoencoder (M2).

The story, for rows x_i of D features with a class y_i of C and a code z_i of k entries::

    y_i             ~ Categorical(pi)
    z_i             ~ Normal(0, I)
    x_ij | y_i, z_i ~ Bernoulli, ContinuousBernoulli, Normal or Categorical, with the outputs decoder(z_i, y_i)_j

The guide classifies and then encodes: ``q(y_i | x_i) = Categorical(classifier(x_i))`` and
``q(z_i | x_i, y_i) = family(encoder(x_i, y_i))``. The bound of a row whose class is known is L(x_i, y_i); that of
another, U(x_i), sums the class out exactly::

    L(x, y) = E_q(z | x, y)[log p(x, y, z) - log q(z | x, y)]
    U(x)    = sum_y q(y | x) (L(x, y) - log q(y | x))

A known class teaches the classifier nothing so, and what is maximised, and ``Fit.elbo`` estimates, has a further term::

    J = sum_known L(x_i, y_i) + sum_unknown U(x_i) + a N / N_known sum_known log q(y_i | x_i)

with a = ``classification`` and N rows, N_known of them with labels (eq. 6 to 9 of the reference). It is not positive,
so J remains a bound. In minibatches, rows with labels and rows without are drawn each on their own and scaled to all of
their kind: J is unbiased, and a few labels among many rows are seen at every step. Labels, -1 or None where unknown,
are given to ``pplgen.fit``; without any, classes are clusters of no particular order. ``prior``, ``decode`` and
``encode`` take a code for z and y together: k entries, and then C indicators, or probabilities, of the class.

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
from pplgen.models._guides.classes import (
    ClassEncoderNetwork,
    CodeAndClass,
    check_classes,
    check_shares,
    pinned,
    warn_of_unknown,
)
from pplgen.models._guides.code_families import GUIDES, CodePrior, Codes
from pplgen.models._guides.networks import DecoderNetwork, EncoderNetwork
from pplgen.models._network_story import NetworkStory
from pyro import poutine
from pyro.nn import pyro_method
from torch import Tensor

from pplgen.story.base import check_choice, check_count, check_positive


class SemiSupervisedVAE(NetworkStory):
    """Rows that a network decodes from a class and a code, the class known of some rows and summed out of the others.

    Parameters
    ----------
    num_features
        Number of data columns D.
    num_latents
        Entries k of a code.
    num_classes
        Number of classes C.
    hidden
        Widths of the hidden layers of encoder and classifier; the decoder's are the same the other way round.
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
        Family of q(z | x, y), one of those of ``VAE``.
    classification
        What the known classes teach the classifier, the factor a of the equations.
    probabilities
        Those of the classes, pi; None: all alike.
    """

    takes_labels: ClassVar[bool] = True
    pi: Tensor
    indicators: Tensor
    weight: Tensor
    """Of log q(y | x) of a row whose class is known, a scalar."""

    def __init__(
        self,
        num_features: int = 64,
        num_latents: int = 2,
        *,
        num_classes: int = 10,
        hidden: Sequence[int] = (200,),
        activation: str = "relu",
        network: str = "dense",
        likelihood: str = "bernoulli",
        noise: str = "feature",
        num_values: int = 2,
        guide: str = "normal",
        classification: float = 0.1,
        probabilities: Sequence[float] | None = None,
    ) -> None:
        C = check_count("num_classes", num_classes, minimum=2)
        super().__init__(
            num_features,
            num_latents,
            num_classes=C,
            hidden=hidden,
            activation=activation,
            network=network,
            likelihood=likelihood,
            noise=noise,
            num_values=num_values,
            guide=check_choice("guide", guide, GUIDES),
            classification=check_positive("classification", classification),
            probabilities=check_shares(probabilities, C),
        )
        self.C = C
        self.codes = Codes(guide, num_latents)
        sizes, read = (network, hidden, activation), (self.seen.num_inputs, num_features)
        self.classifier = EncoderNetwork(*sizes, *read, C)
        self.encoder = ClassEncoderNetwork(*sizes, *read, self.codes.num_outputs, C)
        self.decoder = DecoderNetwork(*sizes, num_latents + C, num_features, self.seen.per_feature)
        self.code_prior = CodePrior("normal", self.codes, self.seen.num_inputs, 1)
        self.register_buffer("pi", torch.tensor(self.config["probabilities"] or [1 / C] * C))
        self.register_buffer("indicators", torch.eye(C))
        self.register_buffer("weight", torch.tensor(float(classification)))
        self.dims = {**NetworkStory.dims, "y": ("row", "class")}

    @pyro_method
    def model(self, x: Tensor | None = None, num_rows: int = 1, labels: Tensor | None = None) -> Tensor:
        """Generate ``num_rows`` rows, or score ``x`` of shape ``(num_rows, num_features)``; the guide heeds labels."""
        with pyro.plate("data", num_rows if x is None else len(x)):
            with poutine.scale(scale=self.kl_weight):
                y = pyro.sample("y", dist.Categorical(self.pi), infer={"enumerate": "parallel"})
                z = pyro.sample("z", self._codes_before())
            shape = torch.broadcast_shapes(y.shape, z.shape[:-1])
            code = torch.cat([part.expand(*shape, -1) for part in (z, self.indicators[y])], -1)
            return pyro.sample("x", self.decode(code), obs=x)

    @pyro_method
    def guide(self, x: Tensor | None = None, num_rows: int = 1, labels: Tensor | None = None) -> None:
        """Classify rows, of which some may have labels, and encode them; without any there is nothing to draw."""
        if x is None:
            return
        with pyro.plate("data", len(x)):
            classes = self._classify(x)
            if labels is not None:
                told = torch.where(labels >= 0, classes.log_prob(labels.clamp_min(0)), 0.0)
                # of the guide, factors are subtracted from the bound
                pyro.factor("classification", -self.weight * told, has_rsample=True)
            with poutine.scale(scale=self.kl_weight):
                y = pyro.sample("y", pinned(classes, labels), infer={"enumerate": "parallel"})
                pyro.sample("z", self._codes_of(x, y))

    @pyro_method
    def prior(self) -> CodeAndClass:
        """Return the distribution of a code and its class."""
        return CodeAndClass(dist.Categorical(self.pi), self._codes_before().expand((self.C,)))

    @pyro_method
    def encode(self, x: Tensor, labels: Tensor | None = None) -> CodeAndClass:
        """Return the guide's distribution of the codes and classes of rows."""
        every = torch.arange(self.C, device=x.device)
        return CodeAndClass(pinned(self._classify(x), labels), self._codes_of(x.unsqueeze(-2), every))

    @pyro_method
    def complete(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Draw the missing entries given the others, and given the class where it is known."""
        return self._complete(x, self.encode(x, labels))

    def _classify(self, x: Tensor) -> Any:
        return dist.Categorical(logits=self.classifier(self.seen.read(x), self.gaps_of(x)))

    def _codes_of(self, x: Tensor, classes: Tensor) -> Any:
        return self.codes.of(self.encoder(self.seen.read(x), classes, self.gaps_of(x)))

    def _codes_before(self) -> Any:
        return self.code_prior.of(self.codes.of)

    def check_labels(self, labels: Tensor) -> None:
        """Refuse labels of no class, and warn of classes of which no row is known."""
        check_classes(labels, self.C)
        warn_of_unknown(labels, self.C)

    @torch.no_grad()
    def initialise(self, x: Tensor, labels: Tensor | None = None, weights: Tensor | None = None) -> None:
        """Start the networks, and count the labels."""
        super().initialise(x, labels, weights)
        known = 0 if labels is None else int((labels >= 0).sum())
        self.weight.fill_(self.config["classification"] * len(x) / max(known, 1))
