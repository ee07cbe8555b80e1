"""Ordered categories: cumulative logit and probit models, and ordered vectors of cutpoints.

An ordered value is the interval between cutpoints ``c_1 < ... < c_{K-1}`` in which a latent variable lies, the
predictor plus logistic or normal noise (McCullagh 1980, Regression models for ordinal data)::

    P(y = k) = F(c_{k+1} - predictor) - F(c_k - predictor),  k = 0, ..., K - 1,  c_0 = -inf, c_K = inf

Log probabilities are computed from those of both tails, so that they are finite, with their gradients, where the
difference of the probabilities rounds to zero. No operation writes in place, which ``vmap`` has no rule for; Pyro's
``OrderedLogistic`` does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.distributions import constraints
from torch import Tensor

__all__ = ["OrderStatistics", "ordered_logistic", "ordered_probit"]


def ordered_logistic(predictor: Float[Tensor, "..."], cutpoints: Float[Tensor, "... cutpoints"]) -> Any:
    """Return the distribution of ordered categories with logistic noise, as Stan's ``ordered_logistic``.

    Parameters
    ----------
    predictor
        Location of the latent variable; its axes broadcast with the batch axes of the cutpoints.
    cutpoints
        Increasing along the last axis, in logits.

    Returns
    -------
    Categorical
        Over 0, 1, ..., the number of cutpoints.
    """
    return _categories(predictor, cutpoints, torch.nn.functional.logsigmoid)


def ordered_probit(predictor: Float[Tensor, "..."], cutpoints: Float[Tensor, "... cutpoints"]) -> Any:
    """Return the distribution of ordered categories with standard normal noise; arguments as ``ordered_logistic``."""
    return _categories(predictor, cutpoints, _log_normal_cdf)


def _categories(
    predictor: Float[Tensor, "..."], cutpoints: Float[Tensor, "... cutpoints"], log_cdf: Callable[[Tensor], Tensor]
) -> Any:
    """Return the categories whose noise has this log distribution function, of a distribution symmetric about 0."""
    z = cutpoints - predictor.unsqueeze(-1)
    # intervals above 0 are mirrored: F(b) - F(a) = F(-a) - F(-b), of which the smaller tails lose no digits
    lower, upper = z[..., :-1], z[..., 1:]
    mirrored = lower > 0
    larger, smaller = log_cdf(torch.where(mirrored, -lower, upper)), log_cdf(torch.where(mirrored, -upper, lower))
    between = larger + (-torch.expm1(smaller - larger)).log()
    return dist.Categorical(logits=torch.cat([log_cdf(z[..., :1]), between, log_cdf(-z[..., -1:])], -1))


def _log_normal_cdf(z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return the log distribution function of the standard normal; torch's ``log_ndtr`` has no rule for ``vmap``."""
    is_negative = z < 0
    left, right = torch.where(is_negative, z, -1.0), torch.where(is_negative, 1.0, z)
    tail = (torch.special.erfcx(-left / math.sqrt(2)) / 2).log() - left.square() / 2
    return torch.where(is_negative, tail, torch.log1p(-torch.erfc(right / math.sqrt(2)) / 2))


class OrderStatistics(dist.TorchDistribution):
    """Independent draws of one distribution, sorted: a prior of increasing cutpoints.

    The density of ``c_1 < ... < c_n`` is ``n! prod_k f(c_k)``, that of Stan's ``ordered[n] c; c ~ f;``, normalised.

    Parameters
    ----------
    base
        Continuous distribution f over the real line, with event shape ``()``.
    size
        Number n of draws.
    """

    arg_constraints: dict = {}  # noqa: RUF012
    support = constraints.ordered_vector

    def __init__(self, base: Any, size: int) -> None:
        self.base, self.size = base, size
        super().__init__(base.batch_shape, torch.Size([size]), validate_args=False)

    @property
    def has_rsample(self) -> bool:
        """Whether draws are differentiable in the parameters: as for the base."""
        return bool(self.base.has_rsample)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> OrderStatistics:
        """Expand to another batch shape."""
        return OrderStatistics(self.base.expand(torch.Size(batch_shape)), self.size)

    def log_prob(self, value: Float[Tensor, "... draws"]) -> Float[Tensor, "..."]:
        """Log density in nats."""
        return math.lgamma(self.size + 1) + self.base.log_prob(value.movedim(-1, 0)).sum(0)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Float[Tensor, "... draws"]:
        """Draw increasing vectors."""
        return self._sorted(self.base.rsample(torch.Size([*sample_shape, self.size])), len(sample_shape))

    def sample(self, sample_shape: Sequence[int] = ()) -> Float[Tensor, "... draws"]:
        """Draw increasing vectors."""
        return self._sorted(self.base.sample(torch.Size([*sample_shape, self.size])), len(sample_shape))

    def _sorted(self, draws: Float[Tensor, "..."], axis: int) -> Float[Tensor, "... draws"]:
        return draws.movedim(axis, -1).sort(-1).values
