"""The contract of latent-variable stories: continuous latents z, a decoder, and an encoder as guide."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from pyro.nn import pyro_method
from torch import Tensor

from pplgen.errors import InputError
from pplgen.story.base import Story, check_count

__all__ = ["LatentStory"]

PROPOSALS = 200
"""Importance samples of the latents per row, of which one is resampled to draw missing entries."""


class LatentStory(Story):
    """A story with continuous latent variables z_i per row x_i, and an amortised guide.

    A subclass defines, besides ``model`` with the sites ``z`` and ``x`` and ``guide`` with ``z``, three methods::

        z_i ~ prior()    x_i | z_i ~ decode(z_i)    q(z_i | x_i) = encode(x_i)

    Their parameters are learned by maximum likelihood. The toolkit provides encoding, decoding, reconstruction,
    imputation and anomaly scores.

    Parameters
    ----------
    num_features
        Number of data columns.
    num_latents
        Number of latent dimensions.
    **config
        As for ``Story``.
    """

    accepts_missing: ClassVar[bool] = True
    dims: Mapping[str, tuple[str, ...]] = MappingProxyType({"z": ("row", "latent"), "x": ("row", "feature")})
    has_missing: bool = False
    """Whether any row passed to ``observe_missing`` has missing entries."""

    def __init__(self, num_features: int, num_latents: int, **config: Any) -> None:
        sizes = {"num_features": num_features, "num_latents": num_latents}
        super().__init__(**{name: check_count(name, size) for name, size in sizes.items()}, **config)
        self.num_features, self.num_latents = (int(self.config[name]) for name in sizes)

    def prior(self) -> TorchDistribution:
        """Return the prior of a row's latents, event shape ``(num_latents,)``."""
        raise NotImplementedError(f"{type(self).__name__} does not define prior()")

    def decode(self, z: Tensor) -> TorchDistribution:
        """Return the distribution of rows given latents z of shape ``(..., num_rows, num_latents)``.

        Its event shape is ``(num_features,)``; its log density omits NaN, and its ``mean`` is on the data's scale.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define decode(z)")

    def encode(self, x: Tensor) -> TorchDistribution:
        """Return the guide's distribution of latents given rows x, NaN if missing; event shape ``(num_latents,)``."""
        raise NotImplementedError(f"{type(self).__name__} does not define encode(x)")

    @pyro_method
    def complete(self, x: Tensor) -> Tensor:
        """Draw missing entries given the observed ones, by sampling importance resampling of the latents."""
        return self._complete(x, self.encode(x))

    def _complete(self, x: Tensor, q: Any) -> Tensor:
        z = q.sample(torch.Size([PROPOSALS]))
        likelihood: Any = self.decode(z)
        log_weights = self.prior().log_prob(z) + likelihood.log_prob(x) - q.log_prob(z)
        resampled = torch.distributions.Categorical(logits=log_weights.movedim(0, -1)).sample()
        decoded: Any = self.decode(z[resampled, torch.arange(len(x), device=x.device)])
        completed: Tensor = decoded.complete(x)
        return completed

    def observe_missing(self, x: Tensor) -> None:
        """Record whether any entry is missing."""
        self.has_missing = self.has_missing or bool(x.isnan().any())

    def check_data(self, x: Tensor) -> None:
        """Raise ``InputError`` for rows with another number of features."""
        if x.ndim != 2 or x.shape[-1] != self.num_features:
            expected = f"(num_rows, {self.num_features})"
            raise InputError(f"data of shape {tuple(x.shape)}: this {type(self).__name__} expects {expected}")

    def check_training_data(self, x: Tensor) -> None:
        """Raise ``InputError`` for rows without an observed entry."""
        empty = (x.isnan().all(-1).nonzero()[:, 0] + 1).tolist()
        if empty:
            raise InputError(f"row {empty[0]} has no observed value ({len(empty)} such rows in all); remove them")
