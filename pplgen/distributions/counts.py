"""Distributions of counts: negative binomial by mean and dispersion, and zero-inflated forms.

Log densities are sums of a deviance and of Stirling's corrections (Loader 2000, Fast and accurate computation of
binomial probabilities; R's ``dnbinom`` and ``dpois``). The usual differences of ``lgamma`` lose a nat in float32 for
counts or dispersions of a million, so does Pyro's ``GammaPoisson``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from jaxtyping import Float, Num
from torch import Tensor
from torch.distributions import constraints

__all__ = ["NegativeBinomial2", "zero_inflated_negative_binomial", "zero_inflated_poisson"]

STIRLING_FROM = 16.0
"""Argument from which Stirling's series is exact to rounding in float64."""


class NegativeBinomial2(dist.TorchDistribution):
    """Negative binomial distribution by mean and dispersion, ``variance = mean + mean^2 / dispersion``.

    The convention of Stan's ``neg_binomial_2`` and of scvi-tools: a Poisson distribution whose rate is
    ``Gamma(dispersion, dispersion / mean)``; a large dispersion gives ``Poisson(mean)``.

    Parameters
    ----------
    mean, dispersion
        Positive; both broadcast to the batch shape.
    """

    arg_constraints = {"mean": constraints.positive, "dispersion": constraints.positive}  # noqa: RUF012
    support = constraints.nonnegative_integer

    def __init__(
        self, mean: Float[Tensor, "..."], dispersion: Float[Tensor, "..."], validate_args: bool | None = None
    ) -> None:
        self._mean, self.dispersion = torch.broadcast_tensors(mean, dispersion)
        super().__init__(self._mean.shape, torch.Size(), validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> NegativeBinomial2:
        """Expand to another batch shape."""
        return NegativeBinomial2(self.mean.expand(batch_shape), self.dispersion.expand(batch_shape), False)

    @property
    def mean(self) -> Float[Tensor, "..."]:
        """Mean."""
        return self._mean

    @property
    def variance(self) -> Float[Tensor, "..."]:
        """Variance."""
        return self.mean + self.mean.square() / self.dispersion

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Float[Tensor, "..."]:
        """Draw counts: Poisson, with gamma rates."""
        shape = self._extended_shape(torch.Size(sample_shape))
        unit = dist.Gamma(self.dispersion, self.dispersion, validate_args=False).expand(shape).sample()
        return torch.poisson(self.mean * unit)

    def log_prob(self, value: Num[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Log probability in nats."""
        if self._validate_args:
            self._validate_sample(value)
        m, phi, k = torch.broadcast_tensors(self.mean, self.dispersion, value.to(self.mean.dtype))
        n, positive = k + phi, torch.where(k > 0, k, 1.0)
        deviance = phi * _log_ratio(phi + m, n, (m - k) / n)
        deviance = deviance + k * _log_ratio(
            positive * (phi + m), m * (positive + phi), phi * (positive - m) / (m * (positive + phi))
        )
        remainders = log_factorial_remainder(n) - log_factorial_remainder(phi) - log_factorial_remainder(k)
        return phi.log() - n.log() + remainders - deviance


class _Poisson(dist.Poisson):
    """Poisson distribution, whose log density is right for large counts in float32 too."""

    def log_prob(self, value: Num[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Log probability in nats."""
        rate, k = torch.broadcast_tensors(self.rate, value.to(self.rate.dtype))
        positive = torch.where(k > 0, k, 1.0)
        return k - rate - k * _log_ratio(positive, rate, (positive - rate) / rate) - log_factorial_remainder(k)


def zero_inflated_negative_binomial(
    mean: Float[Tensor, "..."], dispersion: Float[Tensor, "..."], logits: Float[Tensor, "..."]
) -> Any:
    """Return the mixture of ``NegativeBinomial2`` and of extra zeros (scvi-tools' ZINB).

    Parameters
    ----------
    mean, dispersion
        Parameters of the counts that are no extra zeros, positive.
    logits
        Logits of the probability of an extra zero. All broadcast to the batch shape.
    """
    return dist.ZeroInflatedDistribution(NegativeBinomial2(mean, dispersion), gate_logits=logits)


def zero_inflated_poisson(rate: Float[Tensor, "..."], logits: Float[Tensor, "..."]) -> Any:
    """Return the mixture of ``Poisson(rate)`` and of extra zeros (Lambert 1992).

    Parameters
    ----------
    rate
        Rate of the counts that are no extra zeros, positive.
    logits
        Logits of the probability of an extra zero. Both broadcast to the batch shape.
    """
    return dist.ZeroInflatedDistribution(_Poisson(rate), gate_logits=logits)


def log_factorial_remainder(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return ``lgamma(x + 1) - (x log x - x)`` for ``x >= 0``: zero at 0, about ``log(2 pi x) / 2`` for large x."""
    is_small = x < STIRLING_FROM
    small, large = torch.where(is_small, x, 1.0), torch.where(is_small, STIRLING_FROM, x)
    # x log x has an infinite derivative at 0, where counts need none
    logarithm = torch.where(small > 0, small, 1.0).log()
    square = large.square().reciprocal()
    series = (1 / 12 - square * (1 / 360 - square * (1 / 1260 - square * (1 / 1680 - square / 1188)))) / large
    exact = torch.lgamma(small + 1) - small * (logarithm - 1)
    return torch.where(is_small, exact, 0.5 * (math.log(2 * math.pi) + large.log()) + series)


def _log_ratio(
    numerator: Float[Tensor, "..."], denominator: Float[Tensor, "..."], excess: Float[Tensor, "..."]
) -> Float[Tensor, "..."]:
    """Return ``log(numerator / denominator)``, from their relative difference ``excess`` unless it is near -1."""
    near = excess > -0.5
    return torch.where(near, torch.log1p(torch.where(near, excess, 0.0)), numerator.log() - denominator.log())
