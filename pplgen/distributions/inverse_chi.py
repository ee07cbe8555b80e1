"""Distributions of standard deviations that keep them away from zero."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import constraints


class InverseRootGamma(dist.TorchDistribution):
    """Standard deviations sigma whose relative precision ``(scale / sigma)^2`` is ``Gamma(concentration, rate)``.

    The scaled inverse chi distribution is the case ``Gamma(df / 2, 1 / 2)``, see ``inverse_chi``; the posterior of a
    normal distribution's sigma is in the same family, with other parameters.

    Parameters
    ----------
    concentration, rate
        Parameters of the relative precision, positive, without unit.
    scale
        Unit of sigma, positive. All broadcast to the batch shape.
    """

    arg_constraints: dict = {}  # noqa: RUF012
    support = constraints.positive
    has_rsample = True

    def __init__(
        self, concentration: Float[Tensor, "..."], rate: Float[Tensor, "..."], scale: Float[Tensor, "..."]
    ) -> None:
        self.concentration, self.rate, self.scale = torch.broadcast_tensors(concentration, rate, scale)
        super().__init__(self.scale.shape, torch.Size(), validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> InverseRootGamma:
        """Expand to another batch shape."""
        return type(self)(*(value.expand(batch_shape) for value in (self.concentration, self.rate, self.scale)))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Float[Tensor, "..."]:
        """Draw standard deviations."""
        precision = dist.Gamma(self.concentration, self.rate, validate_args=False).rsample(torch.Size(sample_shape))
        return self.scale * precision.rsqrt()

    def log_prob(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Log density in nats per unit of sigma."""
        log_precision = 2 * (self.scale / value).log()
        constant = self.concentration * self.rate.log() - self.concentration.lgamma() + math.log(2)
        return constant + self.concentration * log_precision - self.rate * log_precision.exp() - value.log()


def inverse_chi(scale: Float[Tensor, "..."], df: float) -> InverseRootGamma:
    """Return the distribution of sigma where ``sigma^2 ~ scale^2 / ChiSquared(df)``, of the shape of ``scale``."""
    return InverseRootGamma(scale.new_tensor(df / 2), scale.new_tensor(0.5), scale)
