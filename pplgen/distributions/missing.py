"""Distributions of rows with missing entries: NaN is summed or integrated out, never imputed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from jaxtyping import Float, Num
from torch import Tensor


class MarginalNormal(dist.MultivariateNormal):
    """Multivariate normal whose density of a row with missing entries is the marginal density of the observed ones.

    With S the diagonal 0-1 matrix of observed entries, the covariance ``S Sigma S + (1 - S)`` keeps the observed block
    and makes the others independent standard normals, so that every pattern of missing entries needs one Cholesky
    factor of the same size; the terms of the missing entries are left out.
    """

    def log_prob(self, value: Float[Tensor, "... columns"]) -> Float[Tensor, "..."]:
        """Log density of the observed entries in nats, shape ``batch_shape``; zero if there are none."""
        observed, difference, factor = self._observed(value)
        whitened = torch.linalg.solve_triangular(factor, difference.unsqueeze(-1), upper=False).squeeze(-1)
        log_volume = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return -0.5 * (whitened.square() + observed * math.log(2 * math.pi)).sum(-1) - log_volume

    def complete(self, value: Float[Tensor, "... columns"]) -> Float[Tensor, "... columns"]:
        """Draw the missing entries given the observed ones: a joint draw, shifted by Matheron's rule."""
        drawn = self.sample()
        observed, difference, factor = self._observed(value, drawn)
        solved = torch.cholesky_solve(difference.unsqueeze(-1), factor).squeeze(-1)
        shift = (self.covariance_matrix @ (observed * solved).unsqueeze(-1)).squeeze(-1)
        return torch.where(value.isnan(), drawn + shift, value)

    def _observed(
        self, value: Float[Tensor, "... columns"], centre: Float[Tensor, "... columns"] | None = None
    ) -> tuple[Float[Tensor, "... columns"], Float[Tensor, "... columns"], Float[Tensor, "... columns columns"]]:
        """Return the 0-1 mask of observed entries, their difference from the centre, and the Cholesky factor."""
        gap = value.isnan()
        observed = (~gap).to(self.loc.dtype)
        difference = observed * (torch.where(gap, 0.0, value) - (self.loc if centre is None else centre))
        covariance = self.scale_tril @ self.scale_tril.mT
        covariance = observed.unsqueeze(-1) * covariance * observed.unsqueeze(-2) + torch.diag_embed(1 - observed)
        return observed, difference, torch.linalg.cholesky(covariance)


class WholeRowNormal(MarginalNormal):
    """Multivariate normal for rows that are either complete or entirely missing: one factor serves all rows."""

    def log_prob(self, value: Float[Tensor, "... columns"]) -> Float[Tensor, "..."]:
        """Log density in nats, shape ``batch_shape``; zero for missing rows."""
        gap = value.isnan().all(-1)
        eye = torch.eye(value.shape[-1], dtype=value.dtype, device=value.device)
        whitener = torch.linalg.solve_triangular(self.scale_tril, eye.expand_as(self.scale_tril), upper=False)
        difference = torch.where(gap.unsqueeze(-1), 0.0, value) - self.loc
        whitened = torch.einsum("...kij,...kj->...ki", whitener, difference)
        log_volume = self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        density = -0.5 * whitened.square().sum(-1) - log_volume - 0.5 * value.shape[-1] * math.log(2 * math.pi)
        return torch.where(gap, 0.0, density)


class MarginalIndependent(dist.TorchDistribution):
    """Independent columns of one distribution, with missing entries integrated out.

    Parameters
    ----------
    columns
        Distribution of single entries, with zero in its support; its last batch axis indexes the columns.
    """

    arg_constraints: dict = {}  # noqa: RUF012
    has_rsample = False

    def __init__(self, columns: Any) -> None:
        self.columns = columns
        super().__init__(columns.batch_shape[:-1], columns.batch_shape[-1:], validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> MarginalIndependent:
        """Expand to more batch axes."""
        return MarginalIndependent(self.columns.expand((*batch_shape, *self.event_shape)))

    @property
    def mean(self) -> Float[Tensor, "... columns"]:
        """Mean of each entry."""
        mean: Tensor = self.columns.mean
        return mean

    def sample(self, sample_shape: Sequence[int] = ()) -> Num[Tensor, "... columns"]:
        """Draw complete rows."""
        return self.columns.sample(torch.Size(sample_shape))

    def log_prob(self, value: Num[Tensor, "... columns"]) -> Float[Tensor, "..."]:
        """Log density of the observed entries in nats, shape ``batch_shape``; zero if there are none."""
        gap = value.isnan()
        return torch.where(gap, 0.0, self.columns.log_prob(torch.where(gap, 0.0, value))).sum(-1)

    def complete(self, value: Num[Tensor, "... columns"]) -> Num[Tensor, "... columns"]:
        """Draw the missing entries given the observed ones."""
        return torch.where(value.isnan(), self.columns.sample(), value)


def normal_rows(
    loc: Float[Tensor, "... columns"], scale: Float[Tensor, "..."], *, correlated: bool, missing: bool = False
) -> Any:
    """Return the normal distribution of rows of D columns.

    Parameters
    ----------
    loc
        Means.
    scale
        If ``correlated``, Cholesky factors of covariances; else standard deviations, which broadcast with ``loc``.
    correlated
        Whether columns are correlated.
    missing
        Whether entries may be NaN, to be integrated out; complete rows are faster.
    """
    if correlated:
        return (MarginalNormal if missing else dist.MultivariateNormal)(loc, scale_tril=scale)
    columns = dist.Normal(loc, scale)
    return MarginalIndependent(columns) if missing else columns.to_event(1)


class Blockwise(dist.TorchDistribution):
    """Joint distribution of independent blocks of columns, like TensorFlow Probability's ``Blockwise``.

    Parameters
    ----------
    parts
        Pairs of a block's column indices in the row, and the distribution of these columns, whose event is a vector.
        Rows may have missing entries if all blocks may, as with the other distributions of this module.
    """

    arg_constraints: dict = {}  # noqa: RUF012
    has_rsample = False

    def __init__(self, parts: Sequence[tuple[Sequence[int], Any]]) -> None:
        self.parts = [(list(indices), part) for indices, part in parts]
        indices = [index for part, _ in self.parts for index in part]
        self._order = [indices.index(index) for index in range(len(indices))]
        batch = torch.broadcast_shapes(*(part.batch_shape for _, part in self.parts))
        super().__init__(batch, torch.Size([len(indices)]), validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Blockwise:
        """Expand to more batch axes."""
        return Blockwise([(indices, part.expand(batch_shape)) for indices, part in self.parts])

    def sample(self, sample_shape: Sequence[int] = ()) -> Float[Tensor, "... columns"]:
        """Draw complete rows."""
        return self._row([part.sample(sample_shape) for _, part in self.expand(self.batch_shape).parts])

    def log_prob(self, value: Num[Tensor, "... columns"]) -> Float[Tensor, "..."]:
        """Log density of the observed entries in nats, shape ``batch_shape``."""
        terms = [part.log_prob(value[..., indices]) for indices, part in self.parts]
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total

    def complete(self, value: Num[Tensor, "... columns"]) -> Float[Tensor, "... columns"]:
        """Draw the missing entries given the observed ones of their block."""
        return self._row([part.complete(value[..., indices]) for indices, part in self.expand(self.batch_shape).parts])

    def _row(self, blocks: list[Num[Tensor, "... _"]]) -> Float[Tensor, "... columns"]:
        """Return rows, given their blocks: of real numbers, also where all blocks are categorical."""
        row = torch.cat(blocks, -1)[..., self._order]
        return row if row.is_floating_point() else row.to(torch.get_default_dtype())
