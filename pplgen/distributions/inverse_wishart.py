"""Inverse Wishart distributions of covariances, which keep them away from singular ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import biject_to, constraints, transforms


class _Covariance(type(constraints.positive_definite)):  # type: ignore[misc]
    """Positive definite matrices, with a bijection from unconstrained vectors."""


class InverseWishart(dist.TorchDistribution):
    """Inverse Wishart distribution, ``Sigma ~ InverseWishart(df, diag(scale^2))``.

    Parameters
    ----------
    df
        Degrees of freedom, above D - 1.
    scale
        Square roots of the scale matrix's diagonal.
    """

    arg_constraints: dict = {}  # noqa: RUF012
    support = _Covariance()
    has_rsample = False

    def __init__(self, df: float, scale: Float[Tensor, "... features"]) -> None:
        self.df, self.scale = df, scale
        D = scale.shape[-1]
        super().__init__(scale.shape[:-1], torch.Size([D, D]), validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> InverseWishart:
        """Expand to more batch axes."""
        return InverseWishart(self.df, self.scale.expand(*batch_shape, self.scale.shape[-1]))

    def log_prob(self, value: Float[Tensor, "... features features"]) -> Float[Tensor, "..."]:
        """Log density in nats, with respect to the entries on and below the diagonal."""
        D, nu = self.scale.shape[-1], self.df
        factor = torch.linalg.cholesky(value)
        whitened = torch.linalg.solve_triangular(factor, torch.diag_embed(self.scale), upper=False)
        log_volume = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        constant = nu * self.scale.log().sum(-1) - nu * D / 2 * math.log(2) - _log_gamma(nu / 2, D)
        return constant - (nu + D + 1) * log_volume - whitened.square().sum((-2, -1)) / 2

    def sample(self, sample_shape: Sequence[int] = ()) -> Float[Tensor, "... features features"]:
        """Draw covariances, by Bartlett's decomposition of their inverse."""
        D = self.scale.shape[-1]
        scale = self.scale.expand(*sample_shape, *self.scale.shape)
        df = self.df - torch.arange(D, dtype=scale.dtype, device=scale.device)
        diagonal = dist.Chi2(df.expand(scale.shape)).sample().sqrt()
        bartlett = torch.randn_like(scale.unsqueeze(-1).expand(*scale.shape, D)).tril(-1) + torch.diag_embed(diagonal)
        root = torch.linalg.solve_triangular(bartlett, torch.diag_embed(scale), upper=False)
        return root.mT @ root


class FromLogCholesky(transforms.Transform):
    """Transform from unconstrained vectors, the Cholesky factor with a log diagonal, to covariances."""

    domain = constraints.real_vector
    codomain = InverseWishart.support
    bijective = True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FromLogCholesky)

    def _call(self, x: Float[Tensor, "... entries"]) -> Float[Tensor, "... size size"]:
        factor = self._factor(x)
        return factor @ factor.mT

    def _inverse(self, y: Float[Tensor, "... size size"]) -> Float[Tensor, "... entries"]:
        return self._vector(torch.linalg.cholesky(y))

    def _factor(self, x: Float[Tensor, "... entries"]) -> Float[Tensor, "... size size"]:
        """Return the Cholesky factor of a vector."""
        D = _width(x.shape[-1])
        i, j = torch.tril_indices(D, D, device=x.device)
        place = torch.zeros(D, D, dtype=torch.long, device=x.device)
        place[i, j] = torch.arange(len(i), device=x.device)
        entries = x[..., place.reshape(-1)].unflatten(-1, (D, D))
        return entries.tril(-1) + torch.diag_embed(entries.diagonal(dim1=-2, dim2=-1).exp())

    def _vector(self, factor: Float[Tensor, "... size size"]) -> Float[Tensor, "... entries"]:
        """Return the vector of a Cholesky factor."""
        i, j = torch.tril_indices(factor.shape[-1], factor.shape[-1], device=factor.device)
        return (factor.tril(-1) + torch.diag_embed(factor.diagonal(dim1=-2, dim2=-1).log()))[..., i, j]

    def log_abs_det_jacobian(
        self, x: Float[Tensor, "... entries"], y: Float[Tensor, "... size size"]
    ) -> Float[Tensor, "..."]:
        """Log determinant for the entries on and below the diagonal: ``2^D prod_i L_ii^(D - i + 2)``, i from 1."""
        D = y.shape[-1]
        place = torch.arange(1, D + 1, device=x.device).cumsum(0) - 1
        power = torch.arange(D + 1, 1, -1, dtype=x.dtype, device=x.device)
        return D * math.log(2) + (power * x[..., place]).sum(-1)

    def forward_shape(self, shape: Sequence[int]) -> torch.Size:
        """Return the shape of covariances."""
        D = _width(shape[-1])
        return torch.Size([*shape[:-1], D, D])

    def inverse_shape(self, shape: Sequence[int]) -> torch.Size:
        """Return the shape of vectors."""
        return torch.Size([*shape[:-2], shape[-1] * (shape[-1] + 1) // 2])


biject_to.register(_Covariance, lambda constraint: FromLogCholesky())


def _width(size: int) -> int:
    """Return D, given the size D (D + 1) / 2."""
    return (math.isqrt(8 * size + 1) - 1) // 2


def _log_gamma(a: float, D: int) -> float:
    """Log of the multivariate gamma function."""
    return D * (D - 1) / 4 * math.log(math.pi) + sum(math.lgamma(a - i / 2) for i in range(D))
