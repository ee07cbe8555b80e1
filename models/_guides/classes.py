r"""Joint distributions of a latent vector and a class, and an encoder network given the class.

Both are stored as one vector: the k entries of z, then C indicators of y, which are probabilities in a mean.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pplgen.models._guides.layers import ACTIVATIONS
from pplgen.models._guides.networks import EncoderNetwork
from torch import Tensor, nn

from pplgen.story.base import DataWarning, InputError, check_per_feature


def check_classes(labels: Tensor, num_classes: int, *, warn: bool = False) -> None:
    """Raise ``InputError`` for labels that are not a class or -1; ``warn`` of classes without labelled rows."""
    invalid = (labels >= num_classes).nonzero()
    if len(invalid):
        row, expected = int(invalid[0]), f"expected 0 to {num_classes - 1}, or -1 if unknown"
        raise InputError(f"labels, row {row + 1}: {labels[row].item()}: {expected}")
    unlabelled = sorted(set(range(num_classes)) - set(labels.tolist()))
    if warn and unlabelled and (labels >= 0).any():
        named = ", ".join(map(str, unlabelled))
        warnings.warn(
            f"labels: no row is labelled as class {named}; these classes are inferred", DataWarning, stacklevel=3
        )


def check_class_probabilities(probabilities: Sequence[float] | None, num_classes: int) -> list[float] | None:
    """Return the class probabilities as a list, or raise ``InputError``."""
    values = check_per_feature("probabilities", probabilities, num_classes, positive=True)
    if values is not None and abs(sum(values) - 1) > 1e-6:
        raise InputError(f"probabilities={probabilities!r}: expected numbers that sum to one")
    return values


class LatentAndClass(dist.TorchDistribution):
    """Joint distribution of a class y and a latent z given y, as one vector of k + C entries.

    Parameters
    ----------
    classes
        Categorical distribution of y.
    latents
        Distribution of z given each class, the last batch axis.
    """

    arg_constraints: dict = {}  # noqa: RUF012
    has_rsample = False

    def __init__(self, classes: Any, latents: Any) -> None:
        self.classes, self.latents = classes, latents
        self.num_latents, self.num_classes = latents.event_shape[0], latents.batch_shape[-1]
        size = torch.Size([self.num_latents + self.num_classes])
        super().__init__(classes.batch_shape, size, validate_args=False)

    def expand(self, batch_shape: torch.Size, _instance: None = None) -> LatentAndClass:
        """Expand to more batch axes."""
        return LatentAndClass(self.classes.expand(batch_shape), self.latents.expand((*batch_shape, self.num_classes)))

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw a class, and a latent vector given the class."""
        shape = torch.Size(sample_shape)
        y = nn.functional.one_hot(self.classes.sample(shape), self.num_classes)
        latents = self.latents.sample(shape)
        return torch.cat([(y[..., None] * latents).sum(-2), y.to(latents.dtype)], -1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats, shape ``batch_shape``, at the class with the largest indicator."""
        z, y = value[..., : self.num_latents], value[..., self.num_latents :].argmax(-1)
        log_prob = self.latents.log_prob(z.unsqueeze(-2))
        return self.classes.log_prob(y) + log_prob.gather(-1, y.unsqueeze(-1)).squeeze(-1)

    @property
    def mean(self) -> Tensor:
        """Mean of z averaged over classes, and the class probabilities."""
        return self._over_classes(self.latents.mean)

    @property
    def variance(self) -> Tensor:
        """Variance of z over classes, and of the class indicators."""
        return self._over_classes(self.latents.variance + self.latents.mean.square()) - self.mean.square()

    def _over_classes(self, values: Tensor) -> Tensor:
        p = self.classes.probs
        return torch.cat([(p[..., None] * values).sum(-2), p], -1)


class ClassEncoderNetwork(nn.Module):
    """Encoder network given a class: from a row's inputs and a class to the guide's parameters.

    The class enters at the last hidden layer, so that the layers before are computed once for all classes.

    Parameters
    ----------
    network, hidden, activation, num_inputs, num_features, num_outputs
        As for ``EncoderNetwork``.
    num_classes
        Number of classes.
    """

    def __init__(
        self,
        network: str,
        hidden: Sequence[int],
        activation: str,
        num_inputs: int,
        num_features: int,
        num_outputs: int,
        num_classes: int,
    ) -> None:
        super().__init__()
        *before, width = hidden or (num_outputs,)
        self.of_rows = EncoderNetwork(network, before, activation, num_inputs, num_features, width)
        self.of_classes = nn.Parameter(torch.empty(num_classes, width))
        self.reset_parameters()
        last = ACTIVATIONS[activation](), nn.Linear(width, num_outputs)
        self.head = nn.Sequential(*last if hidden else ())

    def reset_parameters(self) -> None:
        """Draw the class embeddings added to the last hidden layer."""
        nn.init.normal_(self.of_classes, std=self.of_classes.shape[-1] ** -0.5)

    def forward(self, inputs: Tensor, classes: Tensor, missing: Tensor | None = None) -> Tensor:
        """Encode inputs, shape ``(..., num_inputs)``, given classes that broadcast against them."""
        outputs: Tensor = self.head(self.of_rows(inputs, missing) + self.of_classes[classes])
        return outputs
