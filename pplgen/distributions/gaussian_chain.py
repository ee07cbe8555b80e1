r"""Gaussian over paths with a block tridiagonal precision, the guide of a continuous state.

The odd steps are eliminated given their neighbours, then the odd ones of the remaining steps, and so on: a Cholesky
factorisation in log2 T rounds (odd-even reduction: Heller 1976, SIAM Journal on Numerical Analysis 13, 484-496).
Back-substitution through the rounds draws a path; forward substitution whitens one, for its log density.

The density is differentiable in the path alone: the omitted score term of the ELBO's gradient has mean zero, and is
all of the gradient's noise if the guide is exact (Roeder, Wu and Duvenaud 2017, Sticking the landing).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import constraints


class _Round(NamedTuple):
    """Conditionals of the steps eliminated in one round.

    ``x_odd ~ Normal(L^-T (h - left x_left - right x_right), (L L')^-1)``.
    """

    L: Float[Tensor, "... odd state state"]
    h: Float[Tensor, "... odd state 1"]
    left: Float[Tensor, "... odd state state"]
    right: Float[Tensor, "... odd state state"]


class GaussianChain(dist.TorchDistribution):
    """Paths x_1, ..., x_T with density proportional to ``exp(h'x - x'Jx / 2)``, J block tridiagonal.

    Parameters
    ----------
    diagonal
        Blocks ``J[t, t]``; J is positive definite.
    lower
        Blocks ``J[t + 1, t]``.
    information
        The vector h.
    """

    arg_constraints: dict = {}  # noqa: RUF012
    support = constraints.independent(constraints.real, 2)
    has_rsample = True

    def __init__(
        self,
        diagonal: Float[Tensor, "... time state state"],
        lower: Float[Tensor, "... time-1 state state"],
        information: Float[Tensor, "... time state"],
    ) -> None:
        super().__init__(information.shape[:-2], information.shape[-2:], validate_args=False)
        self._rounds: list[_Round] = []
        D = information.shape[-1]
        remaining = torch.cat([information.unsqueeze(-1), diagonal], -1)
        while (num_left := remaining.shape[-3]) > 1:
            num_odd, num_even = num_left // 2, num_left - num_left // 2
            h, diagonal = remaining[..., 1::2, :, :].split([1, D], -1)
            L = torch.linalg.cholesky(diagonal)
            # the last odd step may have no neighbour to its right: a block of zeros
            before, after = _resize(lower, 0, 2 * num_odd).unflatten(-3, (num_odd, 2)).unbind(-3)
            whitened = torch.linalg.solve_triangular(L, torch.cat([h, before, after.mT], -1), upper=False)
            white, left, right = whitened.split([1, D, D], -1)
            self._rounds.append(_Round(L, white, left, right))
            from_left, _ = (left.mT @ whitened).split([1 + D, D], -1)
            h_right, fill_in, diagonal_right = (right.mT @ whitened).split([1, D, D], -1)
            from_right = torch.cat([h_right, diagonal_right], -1)
            correction = _resize(from_left, 0, num_even) + _resize(from_right, -1, num_even)
            remaining = remaining[..., 0::2, :, :] - correction
            lower = _resize(-fill_in, 0, num_even - 1)
        h, diagonal = remaining.split([1, D], -1)
        self._first = torch.linalg.cholesky(diagonal)
        self._white = torch.linalg.solve_triangular(self._first, h, upper=False)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> GaussianChain:
        """Return itself; other batch shapes are not supported."""
        if torch.Size(batch_shape) != self.batch_shape:
            raise NotImplementedError(f"GaussianChain of batch shape {tuple(self.batch_shape)} cannot be expanded")
        return self

    def rsample(self, sample_shape: Sequence[int] = ()) -> Float[Tensor, "... time state"]:
        """Draw paths, differentiable in the parameters."""
        shape = (*sample_shape, *self.batch_shape, *self.event_shape, 1)
        return self._path(torch.randn(shape, dtype=self._white.dtype, device=self._white.device))

    @property
    def mean(self) -> Float[Tensor, "... time state"]:
        """Mean path."""
        return self._path(self._white.new_zeros(*self.batch_shape, *self.event_shape, 1))

    def log_prob(self, value: Float[Tensor, "... time state"]) -> Float[Tensor, "..."]:
        """Log density of paths in nats, differentiable in them alone."""
        x = value.unsqueeze(-1)
        total: Tensor = value.new_zeros(())
        for each in (_Round(*(part.detach() for part in each)) for each in self._rounds):
            even, odd = x[..., 0::2, :, :], x[..., 1::2, :, :]
            total = total + _log_density(each.L, each.L.mT @ odd - each.h + _neighbour_term(each, even))
            x = even
        first, white = self._first.detach(), self._white.detach()
        return total + _log_density(first, first.mT @ x - white)

    def _path(self, noise: Float[Tensor, "... time state 1"]) -> Float[Tensor, "... time state"]:
        """Transform white noise to a path."""
        x = torch.linalg.solve_triangular(self._first.mT, self._white + noise[..., :1, :, :], upper=True)
        used = 1
        for each in reversed(self._rounds):
            num_odd = each.L.shape[-3]
            white = noise[..., used : used + num_odd, :, :]
            odd = torch.linalg.solve_triangular(each.L.mT, white + each.h - _neighbour_term(each, x), upper=True)
            pairs = torch.stack([x[..., :num_odd, :, :], odd], -3).flatten(-4, -3)
            x = torch.cat([pairs, x[..., num_odd:, :, :]], -3)
            used += num_odd
        return x.squeeze(-1)


def _neighbour_term(each: _Round, even: Float[Tensor, "... even state 1"]) -> Float[Tensor, "... odd state 1"]:
    """Return minus the contribution of the neighbours to the whitened mean of each odd step."""
    num_odd = each.L.shape[-3]
    return each.left @ even[..., :num_odd, :, :] + each.right @ _resize(even, 1, num_odd)


def _resize(
    steps: Float[Tensor, "... steps rows columns"], start: int, length: int
) -> Float[Tensor, "... {length} rows columns"]:
    """Return ``length`` steps from ``start`` on, padded by zeros."""
    end = start + length - steps.shape[-3]
    return torch.nn.functional.pad(steps, (0, 0, 0, 0, -start, end))


def _log_density(
    L: Float[Tensor, "... steps state state"], noise: Float[Tensor, "... steps state 1"]
) -> Float[Tensor, "..."]:
    """Sum of log densities in nats of steps with whitened values ``noise``."""
    per_step = L.diagonal(dim1=-2, dim2=-1).log().sum(-1) - 0.5 * noise.square().sum((-2, -1))
    return (per_step - 0.5 * noise.shape[-2] * math.log(2 * math.pi)).sum(-1)
