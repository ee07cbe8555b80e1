"""Distributions of rows in which entries may be missing: NaN is summed or integrated out, never filled in."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor


class MarginalNormal(dist.MultivariateNormal):
    """A multivariate normal whose density at a row with missing entries is that of the others.

    With S the diagonal matrix of ones where an entry is seen, the covariance ``S Sigma S + (1 - S)`` leaves the seen
    block as it is and makes the others standard normal and independent, so that one Cholesky factor serves every
    pattern; their share of the density is left out.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of the seen entries in nats, shape ``batch_shape``; zero where nothing is seen."""
        seen, difference, factor = self._seen(value)
        whitened = torch.linalg.solve_triangular(factor, difference.unsqueeze(-1), upper=False).squeeze(-1)
        log_volume = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return -0.5 * (whitened.square() + seen * math.log(2 * math.pi)).sum(-1) - log_volume

    def complete(self, value: Tensor) -> Tensor:
        """Draw the missing entries given the others: a draw of the whole row, shifted by what is known of it."""
        drawn = self.sample()
        seen, difference, factor = self._seen(value, drawn)
        solved = torch.cholesky_solve(difference.unsqueeze(-1), factor).squeeze(-1)
        shift = (self.covariance_matrix @ (seen * solved).unsqueeze(-1)).squeeze(-1)
        return torch.where(value.isnan(), drawn + shift, value)

    def _seen(self, value: Tensor, centre: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return what is seen as ones and zeros, its difference from the centre, and the Cholesky factor."""
        gap = value.isnan()
        seen = (~gap).to(self.loc.dtype)
        difference = seen * (torch.where(gap, 0.0, value) - (self.loc if centre is None else centre))
        covariance = self.scale_tril @ self.scale_tril.mT
        covariance = seen.unsqueeze(-1) * covariance * seen.unsqueeze(-2) + torch.diag_embed(1 - seen)
        return seen, difference, torch.linalg.cholesky(covariance)


class WhereSeen(dist.TorchDistribution):
    """Independent columns of one distribution, in which missing entries count for nothing.

    Parameters
    ----------
    columns
        A distribution of single entries, with zero in its support; its last batch axis are the columns.
    """

    arg_constraints: dict = {}  # noqa: RUF012
    has_rsample = False

    def __init__(self, columns: dist.TorchDistribution) -> None:
        self.columns = columns
        super().__init__(columns.batch_shape[:-1], columns.batch_shape[-1:], validate_args=False)

    def expand(self, batch_shape: torch.Size, _instance: None = None) -> WhereSeen:
        """Repeat along new axes of rows."""
        return WhereSeen(self.columns.expand((*batch_shape, *self.event_shape)))

    @property
    def mean(self) -> Tensor:
        """Mean of each entry, shape ``(*batch_shape, num_columns)``."""
        mean: Tensor = self.columns.mean
        return mean

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw whole rows."""
        return self.columns.sample(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of the seen entries in nats, shape ``batch_shape``; zero where nothing is seen."""
        gap = value.isnan()
        return torch.where(gap, 0.0, self.columns.log_prob(torch.where(gap, 0.0, value))).sum(-1)

    def complete(self, value: Tensor) -> Tensor:
        """Draw the missing entries."""
        return torch.where(value.isnan(), self.columns.sample(), value)


class SideBySide(dist.TorchDistribution):
    """Rows whose columns come from several distributions, independent of one another.

    Parameters
    ----------
    parts
        Places of columns in the row, and the distribution of these columns.
    """

    arg_constraints: dict = {}  # noqa: RUF012
    has_rsample = False

    def __init__(self, parts: Sequence[tuple[list[int], WhereSeen]]) -> None:
        self.parts = list(parts)
        places = [place for part, _ in self.parts for place in part]
        self._order = [places.index(place) for place in range(len(places))]
        batch = torch.broadcast_shapes(*(part.batch_shape for _, part in self.parts))
        super().__init__(batch, torch.Size([len(places)]), validate_args=False)

    def expand(self, batch_shape: torch.Size, _instance: None = None) -> SideBySide:
        """Repeat along new axes of rows."""
        return SideBySide([(places, part.expand(batch_shape)) for places, part in self.parts])

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw whole rows."""
        drawn = [part.sample(sample_shape).to(torch.get_default_dtype()) for _, part in self.parts]
        return torch.cat(drawn, -1)[..., self._order]

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of the seen entries in nats, shape ``batch_shape``."""
        terms = [part.log_prob(value[..., places]) for places, part in self.parts]
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total

    def complete(self, value: Tensor) -> Tensor:
        """Draw the missing entries."""
        return torch.where(value.isnan(), self.sample(), value)
