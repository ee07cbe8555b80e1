"""Entries of rows as networks use them: the encoder's inputs, columns' scales, checks, the decoder's initial outputs.

The encoder's inputs are standardised entries, with zeros where entries are missing. The likelihood of the entries given
the decoder's outputs is ``pplgen.distributions.decoder_likelihood``.
"""

from __future__ import annotations

import torch
from pplgen.models._starts.kmeans_plus_plus import column_scales
from torch import Tensor, nn

from pplgen.story.base import InputError

NOISES = ("feature", "shared", "entry")
"""Standard deviation of a normal likelihood: one per feature, one shared by all, or one per entry."""


def make_entries(likelihood: str, num_features: int, noise: str, num_values: int) -> Entries:
    """Return the entries of this likelihood."""
    if likelihood == "normal":
        return NormalEntries(num_features, noise, warm_up=True)
    return Categories(num_features, num_values) if likelihood == "categorical" else Pixels(num_features)


class Entries(nn.Module):
    """Base class of the kinds of entries.

    Parameters
    ----------
    num_features
        Number of entries of a row.
    """

    m: Tensor
    s: Tensor
    per_feature = 1
    """Decoder outputs for each feature."""
    num_noise = 0
    """Number of the last of these outputs that are the noise of entries."""
    own_noise: Tensor | None
    """Weight of each feature's own noise, where it has one: at 0 all have the geometric mean, from .5 on their own."""
    sigma: Tensor | None = None
    """Standard deviation of each entry, shape ``(num_features,)``, of a normal likelihood that has one."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features
        self.register_buffer("m", torch.zeros(num_features))
        self.register_buffer("s", torch.ones(num_features))
        self.register_buffer("own_noise", None)

    @property
    def num_inputs(self) -> int:
        """Number of encoder inputs for a row."""
        return self.num_features

    def read(self, x: Tensor) -> Tensor:
        """Return the encoder's inputs for rows."""
        return torch.where(x.isnan(), 0.0, (x - self.m) / self.s)

    def check(self, x: Tensor) -> None:
        """Raise ``InputError`` for entries outside the support."""

    def initialise(self, x: Tensor, weights: Tensor | None) -> Tensor:
        """Set the columns' scales; return initial decoder outputs for one row that match the column means."""
        self.m, self.s = column_scales(x, weights)
        return torch.zeros_like(self.m)


class Pixels(Entries):
    """Bernoulli or continuous Bernoulli entries in [0, 1]."""

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


class NormalEntries(Entries):
    """Normal entries, with learned standard deviations.

    Parameters
    ----------
    num_features
        As for ``Entries``.
    noise
        One of ``NOISES``.
    warm_up
        Whether training may start with the same noise for all features.
    """

    def __init__(self, num_features: int, noise: str, *, warm_up: bool = False) -> None:
        super().__init__(num_features)
        self.noise = noise
        if noise == "entry":
            self.per_feature, self.num_noise = 2, num_features
        else:
            self.log_sigma = nn.Parameter(torch.zeros(num_features if noise == "feature" else 1))
        if noise == "feature" and warm_up:
            self.register_buffer("own_noise", torch.ones(()), persistent=False)

    @property
    def sigma(self) -> Tensor | None:  # type: ignore[override]
        """Standard deviation of each feature, shape ``(num_features,)``; ``None`` if the decoder outputs it."""
        if self.noise == "entry":
            return None
        unit = self.s.square().mean().sqrt() if self.noise == "shared" else self.s
        log_sigma: Tensor = self.log_sigma
        if self.own_noise is not None:
            log_sigma = torch.lerp(log_sigma.mean(), log_sigma, (2 * self.own_noise).clamp(max=1))
        return unit * log_sigma.exp().clamp_min(1e-3).expand(self.num_features)

    def initialise(self, x: Tensor, weights: Tensor | None) -> Tensor:
        """Set the columns' scales; return outputs for the column means."""
        start = super().initialise(x, weights)
        return start if self.noise != "entry" else torch.cat([start, torch.full_like(start, 0.5)])


class Categories(Entries):
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
