"""Guide of Gaussian components with full covariances, one for each or one shared by all."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pplgen.models._guides.gaussian_components import GaussianComponents
from pplgen.models._guides.offset import Offset
from pyro.nn import PyroParam
from torch import Tensor
from torch.distributions import constraints

from pplgen.distributions import BartlettCholesky, InverseWishartCholesky
from pplgen.distributions.cholesky_factors import below_diagonal, factor


class CorrelatedComponents(GaussianComponents):
    """Components with Cholesky factors of covariances, in the coordinates of Bartlett's decomposition.

    The guide: q(L) is ``BartlettCholesky``, with squared diagonal b ~ Gamma(a, a / exp(l)) and entries below it Normal
    around r_ij b_i^(1/2); q(mu | L) Normal with factor L diag(t).
    """

    correlated, auxiliary = True, frozenset({"scale_tril"})

    def __init__(self, num_components: int, num_features: int, mean_precision: float, *, tied: bool) -> None:
        super().__init__(num_components, num_features, mean_precision)
        self.tied, pairs = tied, num_features * (num_features - 1) // 2
        shape = () if tied else (num_components,)
        self.q_diagonal_shape = PyroParam(torch.full((*shape, num_features), 2.0), constraints.positive)
        self.q_diagonal_log_mean = Offset(*shape, num_features)
        self.q_lower_slope = Offset(*shape, pairs)
        self.q_lower_scale = PyroParam(torch.ones(*shape, pairs), constraints.positive)
        square = ("feature", "other_feature") if tied else ("component", "feature", "other_feature")
        self.dims = {"mu": ("component", "feature"), "Sigma": square, "scale_tril": square}

    def sample(self) -> None:
        """Draw Cholesky factors and locations."""
        shape, slope = self.q_diagonal_shape, self.q_lower_slope.value
        rate = shape / self.q_diagonal_log_mean.value.exp()
        q_L = BartlettCholesky(self.unit, shape, rate, slope, self.q_lower_scale)
        L = pyro.sample("scale_tril", q_L.to_event())
        q_mu = dist.MultivariateNormal(self.q_location.value, scale_tril=L * self.q_spread.unsqueeze(-2))
        pyro.sample("mu", q_mu.to_event(1))

    def mean(self) -> tuple[Tensor, Tensor]:
        """Return the guide's mean as locations and Cholesky factors, ``(K, D, D)``."""
        return self.q_location.value, self._mean_factor().expand(self.K, self.D, self.D)

    def _mean_factor(self) -> Tensor:
        squares = self.q_diagonal_log_mean.value.exp()
        row, _ = below_diagonal(squares)
        return factor(self.unit, squares, self.q_lower_slope.value * squares.sqrt()[..., row])

    @property
    def df(self) -> Tensor:
        """Prior degrees of freedom of each squared diagonal entry of B, shape ``(D,)``: nu - D + i, i = 1, ..., D."""
        return InverseWishartCholesky(self.D + 2, self.unit).degrees

    @property
    def prior_tril(self) -> Tensor:
        """Cholesky factor of Psi, diagonal, shape ``(D, D)``."""
        return torch.diag(self.unit)

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
        return self._mean_factor() * self.q_spread.unsqueeze(-2)

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
