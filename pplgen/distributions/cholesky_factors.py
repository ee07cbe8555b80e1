r"""Distributions of Cholesky factors of covariances, in the coordinates of Bartlett's decomposition.

The factor is ``L = diag(s) B^-1`` with scales s and B lower triangular. For the inverse Wishart distribution with scale
matrix ``diag(s^2)``, nu degrees of freedom and D columns, B's entries are independent (Smith and Hocking 1972,
algorithm AS 53)::

    B_ii^2 ~ ChiSquared(nu - D + i),  i = 1, ..., D;    B_ij ~ Normal(0, 1),  i > j

The volume element is ``dL = prod_i s_i^i B_ii^-(D + 1) dB``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributions import biject_to, constraints

from pplgen.distributions.inverse_wishart import FromLogCholesky


class _CholeskyFactor(type(constraints.lower_cholesky)):  # type: ignore[misc]
    """Lower triangular matrices with a positive diagonal, with a bijection from unconstrained vectors."""


class ToCholeskyFactor(FromLogCholesky):
    """Transform from unconstrained vectors, with a log diagonal, to Cholesky factors."""

    codomain = _CholeskyFactor()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ToCholeskyFactor)

    def _call(self, x: Float[Tensor, "... entries"]) -> Float[Tensor, "... size size"]:
        return self._factor(x)

    def _inverse(self, y: Float[Tensor, "... size size"]) -> Float[Tensor, "... entries"]:
        return self._vector(y)

    def log_abs_det_jacobian(
        self, x: Float[Tensor, "... entries"], y: Float[Tensor, "... size size"]
    ) -> Float[Tensor, "..."]:
        """Log determinant for the entries on and below the diagonal: the sum of the log diagonal."""
        return y.diagonal(dim1=-2, dim2=-1).log().sum(-1)


biject_to.register(_CholeskyFactor, lambda constraint: ToCholeskyFactor())


class BartlettCholesky(dist.TorchDistribution):
    """Cholesky factors ``L = diag(scale) B^-1``: a family that holds the posteriors of an inverse Wishart prior.

    ::

        B_ii^2 ~ Gamma(concentration_i, rate_i);    B_ij | B_ii ~ Normal(slope_ij B_ii, lower_scale_ij),  i > j

    Parameters
    ----------
    scale
        Positive, in units of the columns.
    concentration, rate
        Parameters of the squared diagonal of B.
    slope, lower_scale
        Parameters of the entries of B below its diagonal, row by row.
    """

    arg_constraints: dict = {}  # noqa: RUF012
    support = ToCholeskyFactor.codomain
    has_rsample = True

    def __init__(
        self,
        scale: Float[Tensor, "features"],
        concentration: Float[Tensor, "... features"],
        rate: Float[Tensor, "... features"],
        slope: Float[Tensor, "... below"],
        lower_scale: Float[Tensor, "... below"],
    ) -> None:
        self.scale, self.parameters = scale, (concentration, rate, slope, lower_scale)
        self._drawn: tuple[Any, ...] = (None,)
        D = scale.shape[-1]
        super().__init__(concentration.shape[:-1], torch.Size([D, D]), validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> BartlettCholesky:
        """Expand to another batch shape."""
        return BartlettCholesky(self.scale, *(value.expand(*batch_shape, value.shape[-1]) for value in self.parameters))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Float[Tensor, "... features features"]:
        """Draw factors."""
        squares = self._squares.rsample(torch.Size(sample_shape))
        lower = self._lower(squares).rsample()
        L = factor(self.scale, squares, lower)
        self._drawn = L, squares, lower
        return L

    def log_prob(self, value: Float[Tensor, "... features features"]) -> Float[Tensor, "..."]:
        """Log density in nats, with respect to the entries on and below the diagonal."""
        squares, lower = self._drawn[1:] if self._drawn[0] is value else coordinates(self.scale, value)
        density = self._squares.log_prob(squares).sum(-1) + self._lower(squares).log_prob(lower).sum(-1)
        return density - log_volume(self.scale, squares)

    @property
    def _squares(self) -> Any:
        """Distribution of the squared diagonal of B."""
        concentration, rate, _, _ = self.parameters
        return dist.Gamma(concentration, rate, validate_args=False)

    def _lower(self, squares: Float[Tensor, "... features"]) -> Any:
        """Return the distribution of the entries of B below its diagonal, given its squared diagonal."""
        _, _, slope, scale = self.parameters
        row, _ = below_diagonal(squares)
        return dist.Normal(slope * squares.sqrt()[..., row], scale, validate_args=False)


class InverseWishartCholesky(dist.TorchDistribution):
    """Cholesky factor of a covariance, ``L L' ~ InverseWishart(df, diag(scale^2))``.

    Stan has it as ``inv_wishart_cholesky``. No covariance is factorised, so that nearly singular ones lose no digits.

    Parameters
    ----------
    df
        Degrees of freedom, above D - 1.
    scale
        Square roots of the scale matrix's diagonal.
    """

    arg_constraints: dict = {}  # noqa: RUF012
    support = ToCholeskyFactor.codomain
    has_rsample = True

    def __init__(self, df: float, scale: Float[Tensor, "features"], batch_shape: Sequence[int] = ()) -> None:
        self.df, self.scale = df, scale
        D = scale.shape[-1]
        super().__init__(torch.Size(batch_shape), torch.Size([D, D]), validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> InverseWishartCholesky:
        """Expand to another batch shape."""
        return InverseWishartCholesky(self.df, self.scale, batch_shape)

    @property
    def degrees(self) -> Float[Tensor, "features"]:
        """Degrees of freedom of each squared diagonal entry of B."""
        D = self.event_shape[-1]
        return self.df - D + torch.arange(1, D + 1, dtype=self.scale.dtype, device=self.scale.device)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Float[Tensor, "... features features"]:
        """Draw factors."""
        shape, D = (*sample_shape, *self.batch_shape), self.event_shape[-1]
        squares = dist.Chi2(self.degrees.expand(*shape, D), validate_args=False).rsample()
        lower = torch.randn(*shape, D * (D - 1) // 2, dtype=squares.dtype, device=squares.device)
        return factor(self.scale, squares, lower)

    def log_prob(self, value: Float[Tensor, "... features features"]) -> Float[Tensor, "..."]:
        """Log density in nats, with respect to the entries on and below the diagonal."""
        D, half = self.event_shape[-1], self.degrees / 2
        B = torch.linalg.solve_triangular(value, torch.diag_embed(self.scale).expand_as(value), upper=False)
        place = torch.arange(1, D + 1, dtype=value.dtype, device=value.device)
        log_diagonal = B.diagonal(dim1=-2, dim2=-1).log()
        constant = (half * math.log(2) + half.lgamma() + place * self.scale.log()).sum(-1)
        constant = constant + D * (D - 1) / 4 * math.log(2 * math.pi) - D * math.log(2)
        density: Tensor = ((self.df + place) * log_diagonal).sum(-1) - B.square().sum((-2, -1)) / 2 - constant
        return density


def below_diagonal(like: Float[Tensor, "... features"]) -> tuple[Int[Tensor, "below"], Int[Tensor, "below"]]:
    """Return rows and columns of the entries below the diagonal, row by row; ``like`` has a last axis of length D."""
    D = like.shape[-1]
    row, column = torch.tril_indices(D, D, -1, device=like.device)
    return row, column


def factor(
    scale: Float[Tensor, "features"], squares: Float[Tensor, "... features"], lower: Float[Tensor, "... below"]
) -> Float[Tensor, "... features features"]:
    """Return ``diag(scale) B^-1``, given the squared diagonal of B and its entries below, row by row."""
    B = torch.diag_embed(squares.sqrt())
    B[(..., *below_diagonal(squares))] = lower
    return torch.linalg.solve_triangular(B, torch.diag(scale).expand_as(B), upper=False, left=False)


def coordinates(
    scale: Float[Tensor, "features"], L: Float[Tensor, "... features features"]
) -> tuple[Float[Tensor, "... features"], Float[Tensor, "... below"]]:
    """Return the squared diagonal of ``B = L^-1 diag(scale)``, and its entries below the diagonal, row by row."""
    B = torch.linalg.solve_triangular(L, torch.diag_embed(scale).expand_as(L), upper=False)
    return B.diagonal(dim1=-2, dim2=-1).square(), B[(..., *below_diagonal(scale))]


def log_volume(scale: Float[Tensor, "features"], squares: Float[Tensor, "... features"]) -> Float[Tensor, "..."]:
    """Log of the volume of L per volume of the squared diagonal of B and the entries below it."""
    D = squares.shape[-1]
    place = torch.arange(1, D + 1, dtype=squares.dtype, device=squares.device)
    return (place * scale.log()).sum(-1) - (D + 2) / 2 * squares.log().sum(-1) - D * math.log(2)
