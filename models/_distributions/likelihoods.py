r"""How rows are seen given what a decoder puts out, entry by entry; NaN is missing and counts for nothing.

``bernoulli``             x_ij in [0, 1]        Bernoulli(sigmoid(a_ij)); grey values by their cross-entropy
``continuous-bernoulli``  x_ij in [0, 1]        its normalised twin (Loaiza-Ganem and Cunningham 2019)
``normal``                any number            Normal(m_j + s_j a_ij, sigma), sigma learned
``categorical``           0, 1, ..., C - 1      Categorical(softmax(a_ij))

Each also says what a network reads of a row: a scale of its own, with zeros where entries are missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pplgen.models._distributions.missing import WhereSeen
from pplgen.models._starts.seeding import column_scales
from torch import Tensor, nn

from pplgen.story.base import InputError

NOISES = ("feature", "shared", "entry")
"""Whose the deviation of a normal likelihood is: each feature's, all features', or each entry's own."""
KINDS = ("bernoulli", "continuous-bernoulli", "normal", "categorical")


def likelihood_of(kind: str, num_features: int, noise: str, num_values: int) -> Likelihood:
    """Return the likelihood of a kind."""
    if kind == "normal":
        return NormalEntries(num_features, noise)
    if kind == "categorical":
        return Categories(num_features, num_values)
    return Pixels(num_features, continuous=kind == "continuous-bernoulli")


class Likelihood(nn.Module):
    """What the kinds share.

    Parameters
    ----------
    num_features
        Entries of a row.
    """

    m: Tensor
    s: Tensor
    per_feature = 1
    """Numbers that the decoder puts out for each feature."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features
        self.register_buffer("m", torch.zeros(num_features))
        self.register_buffer("s", torch.ones(num_features))

    @property
    def num_inputs(self) -> int:
        """Numbers that a network reads of a row."""
        return self.num_features

    def read(self, x: Tensor) -> Tensor:
        """Return what a network reads of rows."""
        return torch.where(x.isnan(), 0.0, (x - self.m) / self.s)

    def of(self, outputs: Tensor) -> WhereSeen:
        """Return the distribution of rows given a decoder's outputs, shape ``(..., per_feature * num_features)``."""
        raise NotImplementedError

    def check(self, x: Tensor) -> None:
        """Refuse rows that cannot be seen so."""

    def begin(self, x: Tensor, weights: Tensor | None) -> Tensor:
        """Learn the columns' scales; return outputs that fit the columns as a whole, shape of one row's."""
        self.m, self.s = column_scales(x, weights)
        return torch.zeros_like(self.m)


class Pixels(Likelihood):
    """Entries from 0 to 1."""

    def __init__(self, num_features: int, *, continuous: bool) -> None:
        super().__init__(num_features)
        self.kind: Any = dist.ContinuousBernoulli if continuous else dist.Bernoulli

    def of(self, outputs: Tensor) -> WhereSeen:
        """Take outputs for logits."""
        return WhereSeen(self.kind(logits=outputs, validate_args=False))

    def check(self, x: Tensor) -> None:
        """Refuse entries outside of [0, 1]."""
        outside = (x < 0) | (x > 1)
        if outside.any():
            i, j = outside.nonzero()[0].tolist()
            expected = "expected numbers from 0 to 1, as pplgen.rescale or the data set digits-unit gives"
            raise InputError(f"row {i + 1}, column {j + 1}: {x[i, j]:g} is no pixel; {expected}, or another likelihood")

    def begin(self, x: Tensor, weights: Tensor | None) -> Tensor:
        """Centre pixels without stretching them, and start at their means."""
        super().begin(x, weights)
        self.s.fill_(1.0)
        return torch.logit(self.m.clamp(0.01, 0.99))


class NormalEntries(Likelihood):
    """Entries of any size."""

    def __init__(self, num_features: int, noise: str) -> None:
        super().__init__(num_features)
        self.noise = noise
        if noise == "entry":
            self.per_feature = 2
        else:
            self.log_sigma = nn.Parameter(torch.zeros(num_features if noise == "feature" else 1))

    def of(self, outputs: Tensor) -> WhereSeen:
        """Take outputs for means, and deviations where these are the entries' own, on the columns' scale."""
        mean = outputs[..., : self.num_features]
        sigma = self.sigma
        if self.noise == "entry":
            sigma = self.s * (nn.functional.softplus(outputs[..., self.num_features :]) + 1e-3)
        return WhereSeen(dist.Normal(self.m + self.s * mean, sigma, validate_args=False))

    @property
    def sigma(self) -> Tensor:
        """Deviation of each feature, shape ``(num_features,)``; nothing where each entry has its own."""
        if self.noise == "entry":
            return self.s.new_empty(0)
        unit = self.s.square().mean().sqrt() if self.noise == "shared" else self.s
        return unit * self.log_sigma.exp().clamp_min(1e-3).expand(self.num_features)

    def begin(self, x: Tensor, weights: Tensor | None) -> Tensor:
        """Start at the columns' means."""
        start = super().begin(x, weights)
        return start if self.noise != "entry" else torch.cat([start, torch.full_like(start, 0.5)])


class Categories(Likelihood):
    """Entries that are one of C values, read as indicators."""

    def __init__(self, num_features: int, num_values: int) -> None:
        super().__init__(num_features)
        self.per_feature = num_values

    @property
    def num_inputs(self) -> int:
        """One indicator for each value of each feature."""
        return self.num_features * self.per_feature

    def read(self, x: Tensor) -> Tensor:
        """Return indicators, those of a value side by side, all zero where an entry is missing."""
        values = torch.arange(self.per_feature, device=x.device)
        return (x.unsqueeze(-2) == values[:, None]).to(x.dtype).flatten(-2)

    def of(self, outputs: Tensor) -> WhereSeen:
        """Take outputs for logits of the values."""
        return WhereSeen(Values(logits=outputs.unflatten(-1, (self.per_feature, -1)).mT, validate_args=False))

    def check(self, x: Tensor) -> None:
        """Refuse what is none of the values."""
        wrong = ~x.isnan() & ((x < 0) | (x >= self.per_feature) | (x != x.round()))
        if wrong.any():
            i, j = wrong.nonzero()[0].tolist()
            expected = f"expected a whole number from 0 to {self.per_feature - 1}"
            raise InputError(f"row {i + 1}, column {j + 1}: {x[i, j]:g} is none of the values; {expected}")

    def begin(self, x: Tensor, weights: Tensor | None) -> Tensor:
        """Start at the values' frequencies."""
        every = torch.ones_like(x[:, 0]) if weights is None else weights
        count = (every @ self.read(x)).unflatten(-1, (self.per_feature, -1)) + 1
        return (count / count.sum(0)).log().flatten()


class Values(dist.Categorical):
    """A categorical distribution of numbers, whose ``mean`` is the most probable."""

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw values as numbers of the type of the logits."""
        return super().sample(torch.Size(sample_shape)).to(self.logits.dtype)

    @property
    def mean(self) -> Tensor:
        """The most probable value."""
        return self.logits.argmax(-1).to(self.logits.dtype)
