"""Mixture of diagonal normals, with its log density as one matrix product."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints


class NormalMixture(TorchDistribution):
    """Mixture of diagonal normals, the component summed out.

    The squares in the exponents are expanded, so that all components' log densities are one product of ``(z, z^2)``
    with a matrix; ``MixtureSameFamily`` broadcasts every vector over components and entries instead.

    Parameters
    ----------
    logits
        Log weights of components, up to a constant.
    mu, sigma
        Means and standard deviations.
    batch_shape
        Batch shape, of identical mixtures.
    """

    arg_constraints: dict = {}  # noqa: RUF012
    support = constraints.real_vector
    has_rsample = False

    def __init__(
        self,
        logits: Float[Tensor, "components"],
        mu: Float[Tensor, "components entries"],
        sigma: Float[Tensor, "components entries"],
        batch_shape: Sequence[int] = (),
    ) -> None:
        self.logits, self.mu, self.sigma = logits, mu, sigma
        super().__init__(torch.Size(batch_shape), mu.shape[-1:], validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> NormalMixture:
        """Expand to another batch shape."""
        return type(self)(self.logits, self.mu, self.sigma, batch_shape)

    @property
    def mean(self) -> Float[Tensor, "... entries"]:
        """Mean."""
        return self._expanded(self.logits.softmax(0) @ self.mu)

    @property
    def variance(self) -> Float[Tensor, "... entries"]:
        """Variance of each entry."""
        weights = self.logits.softmax(0)
        within = weights @ self.sigma.square()
        return self._expanded(within + weights @ (self.mu - weights @ self.mu).square())

    def _expanded(self, moment: Float[Tensor, "entries"]) -> Float[Tensor, "... entries"]:
        return moment.expand(*self.batch_shape, *self.event_shape)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Float[Tensor, "... entries"]:
        """Draw vectors."""
        z = torch.distributions.Categorical(logits=self.logits).sample(torch.Size(sample_shape) + self.batch_shape)
        return torch.normal(self.mu[z], self.sigma[z])

    def log_prob(self, value: Float[Tensor, "... entries"]) -> Float[Tensor, "..."]:
        """Log density in nats; centred at the mean of the locations, to lose least precision in expanding squares."""
        centre = self.mu.mean(0).detach()
        centred, mu = value - centre, self.mu - centre
        precision = self.sigma.square().reciprocal()
        D = mu.shape[-1]
        constant = self.logits.log_softmax(0) - self.sigma.log().sum(-1) - 0.5 * D * math.log(2 * math.pi)
        constant = constant - 0.5 * (precision * mu.square()).sum(-1)
        terms = torch.cat((centred, centred.square()), -1) @ torch.cat((precision * mu, -0.5 * precision), -1).T
        density = (terms + constant).logsumexp(-1)
        return density.expand(torch.broadcast_shapes(density.shape, self.batch_shape))
