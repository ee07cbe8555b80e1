r"""Codes that have a class beside them: one distribution of both, and a network that reads both.

A code and its class are written as one vector, the k entries of z and then C indicators of y; these are probabilities
in a mean.
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

CERTAIN = 1e4
"""Logit of a class that is known; finite, so that the impossible ones count nothing rather than NaN."""


def check_classes(labels: Tensor, num_classes: int) -> None:
    """Refuse labels of no class; -1 is unknown."""
    wrong = (labels >= num_classes).nonzero()
    if len(wrong):
        row, expected = int(wrong[0]), f"expected 0 to {num_classes - 1}, or nothing"
        raise InputError(f"labels, row {row + 1}: {labels[row].item()}: {expected}")


def warn_of_unknown(labels: Tensor, num_classes: int) -> None:
    """Warn of classes of which no row is known, where others are."""
    without = sorted(set(range(num_classes)) - set(labels.tolist()))
    if without and (labels >= 0).any():
        named = ", ".join(map(str, without))
        warnings.warn(
            f"labels: no row is known to be of class {named}; which rows are is left open", DataWarning, stacklevel=2
        )


def check_shares(given: Sequence[float] | None, num_classes: int) -> list[float] | None:
    """Return probabilities of all classes, or raise ``InputError``."""
    shares = check_per_feature("probabilities", given, num_classes, positive=True)
    if shares is not None and abs(sum(shares) - 1) > 1e-6:
        raise InputError(f"probabilities={given!r}: expected numbers that sum to one")
    return shares


def pinned(classes: Any, labels: Tensor | None) -> Any:
    """Return distributions of classes, certain where there is a label; -1 is unknown."""
    if labels is None:
        return classes
    values = torch.arange(classes.logits.shape[-1], device=labels.device)
    certain = CERTAIN * (labels[:, None] == values).to(classes.logits.dtype)
    return dist.Categorical(logits=torch.where(labels[:, None] >= 0, certain, classes.logits))


class CodeAndClass(dist.TorchDistribution):
    """A class y, and a code z given the class, as one vector of k + C entries.

    Parameters
    ----------
    classes
        Categorical distribution of y.
    codes
        Distribution of z for each class, the last axis of its batch.
    """

    arg_constraints: dict = {}  # noqa: RUF012
    has_rsample = False

    def __init__(self, classes: Any, codes: Any) -> None:
        self.classes, self.codes = classes, codes
        self.num_latents, self.num_classes = codes.event_shape[0], codes.batch_shape[-1]
        size = torch.Size([self.num_latents + self.num_classes])
        super().__init__(classes.batch_shape, size, validate_args=False)

    def expand(self, batch_shape: torch.Size, _instance: None = None) -> CodeAndClass:
        """Repeat along new axes of rows."""
        return CodeAndClass(self.classes.expand(batch_shape), self.codes.expand((*batch_shape, self.num_classes)))

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw a class, and its code."""
        shape = torch.Size(sample_shape)
        y = nn.functional.one_hot(self.classes.sample(shape), self.num_classes)
        codes = self.codes.sample(shape)
        return torch.cat([(y[..., None] * codes).sum(-2), y.to(codes.dtype)], -1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats, shape ``batch_shape``, at the most probable of the classes of ``value``."""
        z, y = value[..., : self.num_latents], value[..., self.num_latents :].argmax(-1)
        each = self.codes.log_prob(z.unsqueeze(-2))
        return self.classes.log_prob(y) + each.gather(-1, y.unsqueeze(-1)).squeeze(-1)

    @property
    def mean(self) -> Tensor:
        """Mean of the code over classes, and the classes' probabilities."""
        return self._over_classes(self.codes.mean)

    @property
    def variance(self) -> Tensor:
        """Variance of the code over classes, and of the classes' indicators."""
        return self._over_classes(self.codes.variance + self.codes.mean.square()) - self.mean.square()

    def _over_classes(self, values: Tensor) -> Tensor:
        p = self.classes.probs
        return torch.cat([(p[..., None] * values).sum(-2), p], -1)


class ClassEncoderNetwork(nn.Module):
    """From what is read of rows, and a class, to the outputs of a guide.

    The class joins at the last hidden layer, so that what comes before is computed once for all classes.

    Parameters
    ----------
    network, hidden, activation, num_inputs, num_features, num_outputs
        As of ``EncoderNetwork``.
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
        """Draw what classes add to the last hidden layer."""
        nn.init.normal_(self.of_classes, std=self.of_classes.shape[-1] ** -0.5)

    def forward(self, inputs: Tensor, classes: Tensor, gaps: Tensor | None = None) -> Tensor:
        """Read rows, shape ``(..., num_inputs)``, with classes that broadcast against them."""
        outputs: Tensor = self.head(self.of_rows(inputs, gaps) + self.of_classes[classes])
        return outputs
