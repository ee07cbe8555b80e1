r"""Likelihoods of rows given a decoder's outputs, independent entries; NaN means missing and is integrated out.

``bernoulli``             x_ij in [0, 1]        Bernoulli(sigmoid(a_ij)); grey values by their cross-entropy
``continuous-bernoulli``  x_ij in [0, 1]        its normalised twin (Loaiza-Ganem and Cunningham 2019)
``normal``                any number            Normal(m_j + s_j a_ij, sigma), sigma learned
``categorical``           0, 1, ..., C - 1      Categorical(softmax(a_ij))

Each also defines the encoder's inputs: standardised entries, with zeros where entries are missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pplgen.models._starts.kmeans_plus_plus import column_scales
from torch import Tensor, nn

from pplgen.distributions.continuous_bernoulli import ContinuousBernoulli
from pplgen.distributions.missing import MarginalIndependent
from pplgen.story.base import InputError

NOISES = ("feature", "shared", "entry")
"""Standard deviation of a normal likelihood: one per feature, one shared by all, or one per entry."""
KINDS = ("bernoulli", "continuous-bernoulli", "normal", "categorical")


def make_likelihood(kind: str, num_features: int, noise: str, num_values: int) -> Likelihood:
    """Return the likelihood of this kind."""
    if kind == "normal":
        return NormalEntries(num_features, noise)
    if kind == "categorical":
        return Categories(num_features, num_values)
    return Pixels(num_features, continuous=kind == "continuous-bernoulli")


class Likelihood(nn.Module):
    """Base class of likelihoods.

    Parameters
    ----------
    num_features
        Number of entries of a row.
    """

    m: Tensor
    s: Tensor
    per_feature = 1
    """Decoder outputs for each feature."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features
        self.register_buffer("m", torch.zeros(num_features))
        self.register_buffer("s", torch.ones(num_features))

    @property
    def num_inputs(self) -> int:
        """Number of encoder inputs for a row."""
        return self.num_features

    def read(self, x: Tensor) -> Tensor:
        """Return the encoder's inputs for rows."""
        return torch.where(x.isnan(), 0.0, (x - self.m) / self.s)

    def distribution(self, outputs: Tensor) -> MarginalIndependent:
        """Return the distribution of rows given a decoder's outputs, shape ``(..., per_feature * num_features)``."""
        raise NotImplementedError

    def check(self, x: Tensor) -> None:
        """Raise ``InputError`` for entries outside the support."""

    def initialise(self, x: Tensor, weights: Tensor | None) -> Tensor:
        """Set the columns' scales; return initial decoder outputs for one row that match the column means."""
        self.m, self.s = column_scales(x, weights)
        return torch.zeros_like(self.m)


class Pixels(Likelihood):
    """Bernoulli or continuous Bernoulli entries in [0, 1]."""

    def __init__(self, num_features: int, *, continuous: bool) -> None:
        super().__init__(num_features)
        self.kind: Any = ContinuousBernoulli if continuous else dist.Bernoulli

    def distribution(self, outputs: Tensor) -> MarginalIndependent:
        """Return the distribution with outputs as logits."""
        return MarginalIndependent(self.kind(logits=outputs, validate_args=False))

    def check(self, x: Tensor) -> None:
        """Raise ``InputError`` for entries outside [0, 1]."""
        outside = (x < 0) | (x > 1)
        if outside.any():
            i, j = outside.nonzero()[0].tolist()
            expected = "expected a number from 0 to 1 (use pplgen.rescale or the data set digits-unit)"
            raise InputError(
                f"row {i + 1}, column {j + 1}: {x[i, j]:g} is not a pixel value; {expected} or another likelihood"
            )

    def initialise(self, x: Tensor, weights: Tensor | None) -> Tensor:
        """Centre pixels without scaling them; return the logits of their means."""
        super().initialise(x, weights)
        self.s.fill_(1.0)
        return torch.logit(self.m.clamp(0.01, 0.99))


class NormalEntries(Likelihood):
    """Normal entries."""

    def __init__(self, num_features: int, noise: str) -> None:
        super().__init__(num_features)
        self.noise = noise
        if noise == "entry":
            self.per_feature = 2
        else:
            self.log_sigma = nn.Parameter(torch.zeros(num_features if noise == "feature" else 1))

    def distribution(self, outputs: Tensor) -> MarginalIndependent:
        """Return the distribution with outputs as standardised means and, for ``entry``, standard deviations."""
        mean = outputs[..., : self.num_features]
        sigma = self.sigma
        if self.noise == "entry":
            sigma = self.s * (nn.functional.softplus(outputs[..., self.num_features :]) + 1e-3)
        return MarginalIndependent(dist.Normal(self.m + self.s * mean, sigma, validate_args=False))

    @property
    def sigma(self) -> Tensor:
        """Standard deviation of each feature, shape ``(num_features,)``; empty if each entry has its own."""
        if self.noise == "entry":
            return self.s.new_empty(0)
        unit = self.s.square().mean().sqrt() if self.noise == "shared" else self.s
        return unit * self.log_sigma.exp().clamp_min(1e-3).expand(self.num_features)

    def initialise(self, x: Tensor, weights: Tensor | None) -> Tensor:
        """Set the columns' scales; return outputs for the column means."""
        start = super().initialise(x, weights)
        return start if self.noise != "entry" else torch.cat([start, torch.full_like(start, 0.5)])


class Categories(Likelihood):
    """Categorical entries, read as one-hot indicators."""

    def __init__(self, num_features: int, num_values: int) -> None:
        super().__init__(num_features)
        self.per_feature = num_values

    @property
    def num_inputs(self) -> int:
        """Number of indicators: one per value of each feature."""
        return self.num_features * self.per_feature

    def read(self, x: Tensor) -> Tensor:
        """Return indicators, grouped by value, all zero where an entry is missing."""
        values = torch.arange(self.per_feature, device=x.device)
        return (x.unsqueeze(-2) == values[:, None]).to(x.dtype).flatten(-2)

    def distribution(self, outputs: Tensor) -> MarginalIndependent:
        """Return the distribution with outputs as logits of the values."""
        return MarginalIndependent(Values(logits=outputs.unflatten(-1, (self.per_feature, -1)).mT, validate_args=False))

    def check(self, x: Tensor) -> None:
        """Raise ``InputError`` for entries that are not one of the values."""
        invalid = ~x.isnan() & ((x < 0) | (x >= self.per_feature) | (x != x.round()))
        if invalid.any():
            i, j = invalid.nonzero()[0].tolist()
            expected = f"expected a whole number from 0 to {self.per_feature - 1}"
            raise InputError(f"row {i + 1}, column {j + 1}: {x[i, j]:g} is not one of the values; {expected}")

    def initialise(self, x: Tensor, weights: Tensor | None) -> Tensor:
        """Return the logits of the values' frequencies."""
        weights = torch.ones_like(x[:, 0]) if weights is None else weights
        count = (weights @ self.read(x)).unflatten(-1, (self.per_feature, -1)) + 1
        return (count / count.sum(0)).log().flatten()


class Values(dist.Categorical):
    """Categorical distribution with float values, whose ``mean`` is the mode."""

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw values, with the dtype of the logits."""
        return super().sample(torch.Size(sample_shape)).to(self.logits.dtype)

    @property
    def mean(self) -> Tensor:
        """Mode of each entry."""
        return self.logits.argmax(-1).to(self.logits.dtype)
