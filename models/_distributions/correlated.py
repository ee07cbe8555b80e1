"""Gaussian components with full covariances, one for each or one shared by all."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pplgen.models._distributions.gaussians import GaussianComponents
from pplgen.models._guides.offset import Offset
from pyro.nn import PyroParam
from torch import Tensor
from torch.distributions import constraints

from pplgen.distributions.missing import MarginalNormal


class CorrelatedComponents(GaussianComponents):
    """Components with inverse Wishart covariances; see ``GaussianComponents`` for the priors.

    The inverse Wishart is parameterised by Bartlett's decomposition (Smith and Hocking 1972, algorithm AS 53), with
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
        axes = () if tied else ("component",)
        self.dims = {
            "mu": ("component", "feature"),
            "Sigma": (*axes, "feature", "other_feature"),
            "bartlett_diagonal": (*axes, "feature"),
            "bartlett_lower": (*axes, "feature_pair"),
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
        diagonal = pyro.sample("bartlett_diagonal", dist.Chi2(self.df).to_event(1))
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
        lower = pyro.sample("bartlett_lower", dist.Normal(self._lower_loc(diagonal), self.q_lower_scale).to_event(1))
        return self.scale_tril(diagonal, lower)

    def _lower_loc(self, diagonal: Tensor) -> Tensor:
        row, _ = torch.tril_indices(self.D, self.D, -1)
        loc: Tensor = self.q_lower_slope.value * diagonal.sqrt()[..., row]
        return loc

    def guide_mean(self) -> tuple[Tensor, Tensor]:
        """Return the guide's mean as locations and Cholesky factors."""
        return self.q_location.value, self._guide_mean_factor()

    def _guide_mean_factor(self) -> Tensor:
        diagonal = self.q_diagonal_log_mean.value.exp()
        return self.scale_tril(diagonal, self._lower_loc(diagonal))

    def rows(self, drawn: tuple[Tensor, Tensor], z: Tensor) -> Any:
        """Return the distribution of rows given components z."""
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
    def df(self) -> Tensor:
        """Prior degrees of freedom of each squared diagonal entry of B, shape ``(D,)``: nu - D + i, i = 1, ..., D."""
        return 2 + torch.arange(1, self.D + 1, device=self.m.device, dtype=self.m.dtype)

    @property
    def prior_tril(self) -> Tensor:
        """Cholesky factor of Psi, diagonal, shape ``(D, D)``."""
        return torch.diag(self.s / self.sharing ** (1 / self.D))

    def _initialise_scales(self, n: Tensor, scatter: Tensor) -> Tensor:
        """Set q(Sigma) to the posterior given clusters: B = B* T, B* a Bartlett factor of nu + n degrees of freedom."""
        n, Psi = self._pooled(n, scatter)
        T = torch.linalg.solve_triangular(torch.linalg.cholesky(Psi), self.prior_tril, upper=False)
        T_diagonal = T.diagonal(dim1=-2, dim2=-1)
        i, j = torch.tril_indices(self.D, self.D, -1)
        self.q_diagonal_shape = (self.df + n) / 2
        self.q_diagonal_log_mean.initialise(
            (2 * self.q_diagonal_shape * T_diagonal.square()).log(), self.q_diagonal_shape.rsqrt()
        )
        self.q_lower_scale = T.square().cumsum(dim=-2)[..., i - 1, j].sqrt()
        diagonal = (2 * self.q_diagonal_shape).sqrt() * T_diagonal
        self.q_lower_slope.initialise(T[..., i, j] / T_diagonal[..., i], self.q_lower_scale / diagonal[..., i])
        return self._guide_mean_factor() * self.q_spread.unsqueeze(-2)

    def _scale_evidence(self, n: Tensor, scatter: Tensor) -> Tensor:
        n, Psi = self._pooled(n, scatter)
        nu = self.D + 2
        half, prior = (nu + n.squeeze(-1)) / 2, n.new_tensor(nu / 2)
        gammas = torch.mvlgamma(half, self.D) - torch.mvlgamma(prior, self.D)
        return (gammas + nu * self.prior_tril.logdet() - half * Psi.logdet()).sum()

    def _pooled(self, n: Tensor, scatter: Tensor) -> tuple[Tensor, Tensor]:
        """Pool rows by covariance: their count, and their scatter plus the prior's scale."""
        n, scatter = (n.sum(0), scatter.sum(0)) if self.tied else (n, scatter)
        return n, self.prior_tril @ self.prior_tril.mT + scatter
