"""Gaussian components with full covariances, or with one for all of them."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pplgen.models._distributions.gaussians import GaussianComponents
from pplgen.models._distributions.missing import MarginalNormal
from pplgen.models._guides.offset import Offset
from pyro.nn import PyroParam
from torch import Tensor
from torch.distributions import constraints


class CorrelatedComponents(GaussianComponents):
    """Components with covariances from the inverse Wishart; see ``GaussianComponents`` for the priors.

    The inverse Wishart is written by Bartlett's decomposition (Smith and Hocking 1972, algorithm AS 53), with
    b_i = B_ii^2 for a lower triangular B::

        b_i ~ ChiSquared(nu - D + i),  i = 1, ..., D;   B_ij ~ Normal(0, 1),  i > j
        Sigma = L L',  L = Psi^(1/2) B^(-1)

    The guide: q(b) Gamma(a, a / exp(l)), q(B_ij | b_i) Normal around r_ij b_i^(1/2), q(mu | Sigma) Normal with factor
    L diag(t).
    """

    auxiliary = frozenset({"bartlett_diagonal", "bartlett_lower"})

    def __init__(self, num_components: int, num_features: int, mean_precision: float, *, tied: bool) -> None:
        super().__init__(num_components, num_features, mean_precision, correlated=True)
        self.tied, pairs = tied, num_features * (num_features - 1) // 2
        shape = () if tied else (num_components,)
        self.q_diagonal_shape = PyroParam(torch.full((*shape, num_features), 2.0), constraints.positive)
        self.q_diagonal_log_mean = Offset(*shape, num_features)
        self.q_lower_slope = Offset(*shape, pairs)
        self.q_lower_scale = PyroParam(torch.ones(*shape, pairs), constraints.positive)
        which = () if tied else ("component",)
        self.dims = {
            "mu": ("component", "feature"),
            "Sigma": (*which, "feature", "other_feature"),
            "bartlett_diagonal": (*which, "feature"),
            "bartlett_lower": (*which, "feature_pair"),
        }

    def draw(self) -> tuple[Tensor, Tensor]:
        """Draw locations and Cholesky factors from the prior, shapes ``(K, D)`` and ``(K, D, D)`` or ``(D, D)``."""
        components = pyro.plate("components", self.K)
        if self.tied:
            L = self._draw_factor()
        with components:
            if not self.tied:
                L = self._draw_factor()
            return pyro.sample("mu", dist.MultivariateNormal(self.m, scale_tril=L / self.kappa**0.5)), L

    def _draw_factor(self) -> Tensor:
        diagonal = pyro.sample("bartlett_diagonal", dist.Chi2(self.freedom).to_event(1))
        lower = pyro.sample(
            "bartlett_lower", dist.Normal(self.m.new_zeros(self.D * (self.D - 1) // 2), 1.0).to_event(1)
        )
        L = self.scale_tril(diagonal, lower)
        pyro.deterministic("Sigma", L @ L.mT, event_dim=2)
        return L

    def draw_guide(self) -> None:
        """Draw the same sites from the guide."""
        components = pyro.plate("components", self.K)
        if self.tied:
            L = self._draw_guide_factor()
        with components:
            if not self.tied:
                L = self._draw_guide_factor()
            pyro.sample(
                "mu", dist.MultivariateNormal(self.q_location.value, scale_tril=L * self.q_spread.unsqueeze(-2))
            )

    def _draw_guide_factor(self) -> Tensor:
        shape = self.q_diagonal_shape
        diagonal = pyro.sample(
            "bartlett_diagonal", dist.Gamma(shape, shape / self.q_diagonal_log_mean.value.exp()).to_event(1)
        )
        lower = pyro.sample("bartlett_lower", dist.Normal(self._lower_centre(diagonal), self.q_lower_scale).to_event(1))
        return self.scale_tril(diagonal, lower)

    def _lower_centre(self, diagonal: Tensor) -> Tensor:
        row, _ = torch.tril_indices(self.D, self.D, -1)
        centre: Tensor = self.q_lower_slope.value * diagonal.sqrt()[..., row]
        return centre

    def typical(self) -> tuple[Tensor, Tensor]:
        """Return locations and Cholesky factors at the guide's centre."""
        return self.q_location.value, self._typical_factor()

    def _typical_factor(self) -> Tensor:
        diagonal = self.q_diagonal_log_mean.value.exp()
        return self.scale_tril(diagonal, self._lower_centre(diagonal))

    def rows(self, drawn: tuple[Tensor, Tensor], z: Tensor) -> Any:
        """Return the distribution of rows of the components z."""
        mu, L = drawn
        normal = MarginalNormal if self.missing else dist.MultivariateNormal
        return normal(mu[z], scale_tril=L if self.tied else L[z])

    def scale_tril(self, diagonal: Tensor, lower: Tensor) -> Tensor:
        """Return the covariance's Cholesky factor ``Psi^(1/2) B^(-1)``, shape ``(..., D, D)``.

        ``diagonal`` holds the squared diagonal of B, shape ``(..., D)``; ``lower`` the entries below it, row by row.
        """
        row, column = torch.tril_indices(self.D, self.D, -1)
        B = torch.diag_embed(diagonal.sqrt())
        B[..., row, column] = lower
        return torch.linalg.solve_triangular(B, self.prior_tril.expand_as(B), upper=False, left=False)

    @property
    def freedom(self) -> Tensor:
        """Prior degrees of freedom of each squared diagonal entry of B, shape ``(D,)``: nu - D + i, i = 1, ..., D."""
        return 2 + torch.arange(1, self.D + 1, device=self.m.device, dtype=self.m.dtype)

    @property
    def prior_tril(self) -> Tensor:
        """Cholesky factor of Psi, diagonal, shape ``(D, D)``."""
        return torch.diag(self.s / self.K ** (1 / self.D))

    def _begin_spread(self, n: Tensor, scatter: Tensor) -> Tensor:
        """Given the clusters, B = B* T for a Bartlett factor B* of nu + n degrees of freedom."""
        n, Psi = self._pooled(n, scatter)
        T = torch.linalg.solve_triangular(torch.linalg.cholesky(Psi), self.prior_tril, upper=False)
        T_diagonal = T.diagonal(dim1=-2, dim2=-1)
        i, j = torch.tril_indices(self.D, self.D, -1)
        self.q_diagonal_shape = (self.freedom + n) / 2
        self.q_diagonal_log_mean.begin(
            (2 * self.q_diagonal_shape * T_diagonal.square()).log(), self.q_diagonal_shape.rsqrt()
        )
        self.q_lower_scale = T.square().cumsum(dim=-2)[..., i - 1, j].sqrt()
        deviation = (2 * self.q_diagonal_shape).sqrt() * T_diagonal
        self.q_lower_slope.begin(T[..., i, j] / T_diagonal[..., i], self.q_lower_scale / deviation[..., i])
        return self._typical_factor() * self.q_spread.unsqueeze(-2)

    def _evidence_of_spread(self, n: Tensor, scatter: Tensor) -> Tensor:
        n, Psi = self._pooled(n, scatter)
        nu = self.D + 2
        half, prior = (nu + n.squeeze(-1)) / 2, n.new_tensor(nu / 2)
        gammas = torch.mvlgamma(half, self.D) - torch.mvlgamma(prior, self.D)
        return (gammas + nu * self.prior_tril.logdet() - half * Psi.logdet()).sum()

    def _pooled(self, n: Tensor, scatter: Tensor) -> tuple[Tensor, Tensor]:
        """Count rows for each covariance and add their scatter to the prior's scale."""
        n, scatter = (n.sum(0), scatter.sum(0)) if self.tied else (n, scatter)
        return n, self.prior_tril @ self.prior_tril.mT + scatter
