"""Continuous Bernoulli distribution of grey values in [0, 1], with stable values and gradients at all logits.

With the logit a the density is ``exp(a x - A(a))`` for the log normaliser ``A(a) = log int_0^1 exp(a t) dt``, which is
``log((exp(a) - 1) / a)``. The closed forms of A, of the moments and of the quantile function are 0 / 0 at ``a = 0``;
for ``|a| < 1`` the integrals are computed by a Gauss-Legendre rule or a power series, exact to rounding in float64.
torch's ``ContinuousBernoulli`` replaces them by expansions of low order in the probability, from which its gradients
jump, and rounds probabilities to 1 where logits are large.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.distributions import constraints

__all__ = ["ContinuousBernoulli"]

NUM_NODES = 8
"""Nodes of the Gauss-Legendre rule, whose error for logits in (-1, 1) is below 1e-17."""
NUM_TERMS = 7
"""Terms of the power series of ``sinh(u) / u`` for ``u < 1/2``; the next is below 1e-17."""


class ContinuousBernoulli(dist.TorchDistribution):
    """Continuous Bernoulli distribution, with the arguments of torch's.

    Parameters
    ----------
    probs
        Parameter in (0, 1); it is not the mean.
    logits
        Its logit a, any real number; the density is ``a exp(a x) / (exp(a) - 1)``, decreasing for ``a < 0``.

    Raises
    ------
    ValueError
        Unless exactly one of both is given.

    References
    ----------
    Loaiza-Ganem and Cunningham (2019), The continuous Bernoulli: fixing a pervasive error in variational autoencoders.
    """

    arg_constraints = {"logits": constraints.real}  # noqa: RUF012
    support = constraints.unit_interval
    has_rsample = True

    def __init__(
        self,
        probs: Float[Tensor, "..."] | None = None,
        logits: Float[Tensor, "..."] | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if (probs is None) == (logits is None):
            raise ValueError("ContinuousBernoulli takes either probs or logits")
        self.logits: Tensor = torch.logit(probs) if logits is None else logits  # type: ignore[arg-type]
        super().__init__(self.logits.shape, torch.Size(), validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> ContinuousBernoulli:
        """Expand to another batch shape."""
        return ContinuousBernoulli(logits=self.logits.expand(batch_shape), validate_args=False)

    @property
    def probs(self) -> Float[Tensor, "..."]:
        """Parameter in (0, 1)."""
        return self.logits.sigmoid()

    @property
    def mean(self) -> Float[Tensor, "..."]:
        """Mean, ``A'(a)``: between 0 and 1, increasing in the logit."""
        is_small, small, far = _split(self.logits)
        decay = (-far.abs()).exp()
        offset = decay / (1 - decay) - far.abs().reciprocal()
        return torch.where(is_small, _moments(small)[0], torch.where(far > 0, 1 + offset, -offset))

    @property
    def variance(self) -> Float[Tensor, "..."]:
        """Variance, ``A''(a)``: at most 1/12."""
        is_small, small, far = _split(self.logits)
        decay = (-far.abs()).exp()
        return torch.where(is_small, _moments(small)[1], far.square().reciprocal() - decay / (1 - decay).square())

    def log_prob(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Log density in nats."""
        if self._validate_args:
            self._validate_sample(value)
        return self.logits * value - log_normaliser(self.logits)

    def cdf(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Probability of at most ``value``: ``x exp(A(a x) - A(a))``."""
        return value * (log_normaliser(self.logits * value) - log_normaliser(self.logits)).exp()

    def icdf(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Quantile of a probability u: ``log(1 - u + u exp(a)) / a = int_0^1 sigmoid(a t + logit(u)) dt``."""
        is_small, small, far = _split(self.logits)
        nodes, weights = _rule(value)
        near = ((small.unsqueeze(-1) * nodes + value.logit().unsqueeze(-1)).sigmoid() * weights).sum(-1)
        return torch.where(is_small, near, torch.logaddexp(torch.log1p(-value), value.log() + far) / far)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Float[Tensor, "..."]:
        """Draw values, differentiable in the logits: quantiles of uniform numbers."""
        shape = self._extended_shape(torch.Size(sample_shape))
        uniform = torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device)
        tiny = torch.finfo(uniform.dtype).eps / 2
        return self.icdf(uniform.clamp(tiny, 1 - tiny))


def log_normaliser(logits: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return ``A(a) = log((exp(a) - 1) / a) = a / 2 + log(sinh(u) / u)`` in nats, with ``u = |a| / 2``."""
    is_small, small, far = _split(logits)
    square, series = (small / 2).square(), torch.zeros_like(small)
    for n in range(NUM_TERMS, 0, -1):
        series = square / (2 * n * (2 * n + 1)) * (1 + series)
    size = far.abs()
    closed = size / 2 + torch.log1p(-(-size).exp()) - size.log()
    return logits / 2 + torch.where(is_small, torch.log1p(series), closed)


def _split(
    logits: Float[Tensor, "..."],
) -> tuple[Bool[Tensor, "..."], Float[Tensor, "..."], Float[Tensor, "..."]]:
    """Return whether logits are small, and both kinds, with harmless values in place of the other kind."""
    is_small = logits.abs() < 1
    return is_small, torch.where(is_small, logits, 0.0), torch.where(is_small, 1.0, logits)


def _moments(logits: Float[Tensor, "..."]) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """Return mean and variance for small logits: those of the nodes with weights ``w_i exp(a t_i)``."""
    nodes, weights = _rule(logits)
    weights = (logits.unsqueeze(-1) * nodes + weights.log()).softmax(-1)
    mean = (weights * nodes).sum(-1)
    return mean, (weights * (nodes - mean.unsqueeze(-1)).square()).sum(-1)


def _rule(like: Tensor) -> tuple[Float[Tensor, "nodes"], Float[Tensor, "nodes"]]:
    """Return nodes and weights of the Gauss-Legendre rule on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(NUM_NODES)
    options: Any = {"dtype": like.dtype, "device": like.device}
    return torch.tensor((nodes + 1) / 2, **options), torch.tensor(weights / 2, **options)
