"""The contract of latent-variable stories: a row is decoded from a continuous latent z, and a guide encodes it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import pyro
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from pyro.nn import pyro_method
from torch import Tensor

from pplgen.errors import InputError
from pplgen.story.base import Story, check_count

__all__ = ["LatentStory"]

PROPOSALS = 200
"""Codes of a row of which one is kept in proportion to its importance weight, where missing entries are drawn."""


class LatentStory(Story):
    """A story of rows x_i that are decoded from continuous codes z_i; a guide encodes.

    The three parts of it are methods::

        z_i ~ prior()    x_i | z_i ~ decode(z_i)    q(z_i | x_i) = encode(x_i)

    A subclass says what these three are; what they leave open is learned by maximum likelihood. Encoding, decoding,
    reconstructing, imputing and anomaly scores are the toolkit's.

    Parameters
    ----------
    num_features
        Number of data columns.
    num_latents
        Entries of a code.
    **config
        As for ``Story``.
    """

    accepts_missing: ClassVar[bool] = True
    dims: Mapping[str, tuple[str, ...]] = MappingProxyType({"z": ("row", "latent"), "x": ("row", "feature")})
    kl_weight: Tensor
    """How much the code's terms count, a scalar, below one only while the bound is warmed up."""
    has_missing: bool = False
    """Whether rows with missing entries were announced."""

    def __init__(self, num_features: int, num_latents: int, **config: Any) -> None:
        sizes = {"num_features": num_features, "num_latents": num_latents}
        super().__init__(**{name: check_count(name, size) for name, size in sizes.items()}, **config)
        self.num_features, self.num_latents = (int(self.config[name]) for name in sizes)
        self.register_buffer("kl_weight", torch.ones(()))

    def prior(self) -> TorchDistribution:
        """Return the distribution of a code, event shape ``(num_latents,)``."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its codes are like")

    def decode(self, z: Tensor) -> TorchDistribution:
        """Return the distribution of rows given codes z of shape ``(..., num_rows, num_latents)``.

        Its event shape is ``(num_features,)``; its log density leaves NaN out, and its ``mean`` is on the data's scale.
        """
        raise NotImplementedError(f"{type(self).__name__} does not decode")

    def encode(self, x: Tensor) -> TorchDistribution:
        """Return the guide's distribution of the codes of rows x, NaN where missing; event shape ``(num_latents,)``."""
        raise NotImplementedError(f"{type(self).__name__} does not encode")

    @pyro_method
    def model(self, x: Tensor | None = None, num_rows: int = 1) -> Tensor:
        """Generate ``num_rows`` rows, or score ``x`` of shape ``(num_rows, num_features)``."""
        with pyro.plate("data", num_rows if x is None else len(x)):
            with poutine.scale(scale=self.kl_weight):
                z = pyro.sample("z", self.prior())
            return pyro.sample("x", self.decode(z), obs=x)

    @pyro_method
    def guide(self, x: Tensor | None = None, num_rows: int = 1) -> None:
        """Encode rows; without any there is nothing to draw."""
        if x is not None:
            with pyro.plate("data", len(x)), poutine.scale(scale=self.kl_weight):
                pyro.sample("z", self.encode(x))

    @pyro_method
    def complete(self, x: Tensor) -> Tensor:
        """Draw the missing entries given the others, by self-normalised importance sampling of the codes."""
        return self._complete(x, self.encode(x))

    def _complete(self, x: Tensor, q: Any) -> Tensor:
        z = q.sample(torch.Size([PROPOSALS]))
        seen: Any = self.decode(z)
        weights = self.prior().log_prob(z) + seen.log_prob(x) - q.log_prob(z)
        kept = torch.distributions.Categorical(logits=weights.movedim(0, -1)).sample()
        decoded: Any = self.decode(z[kept, torch.arange(len(x), device=x.device)])
        completed: Tensor = decoded.complete(x)
        return completed

    def observe_missing(self, x: Tensor) -> None:
        """Note whether any entry is missing."""
        self.has_missing = self.has_missing or bool(x.isnan().any())

    def check_data(self, x: Tensor) -> None:
        """Refuse rows of another width."""
        if x.ndim != 2 or x.shape[-1] != self.num_features:
            expected = f"(num_rows, {self.num_features})"
            raise InputError(f"data of shape {tuple(x.shape)}: this {type(self).__name__} expects {expected}")

    def check_training_data(self, x: Tensor) -> None:
        """Refuse rows of which nothing is seen."""
        empty = (x.isnan().all(-1).nonzero()[:, 0] + 1).tolist()
        if empty:
            raise InputError(f"row {empty[0]} has no observed value ({len(empty)} such in all); leave such rows out")
