"""Guides of Gaussian components, in the conjugate family; those with diagonal or spherical covariances.

Each factor has separate parameters, in the coordinates of Fraley and Raftery's prior
(``pplgen.distributions.fraley_raftery``). ``initialise`` sets them to the posterior given soft clusters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from pplgen.models._guides.offset import Offset
from pplgen.models._starts.kmeans_plus_plus import PRIOR_SCALE, column_scales
from pyro.nn import PyroModule, PyroParam
from torch import Tensor
from torch.distributions import constraints

from pplgen.distributions import InverseRootGamma

TINY = 1e-30
"""Smallest row count of a component, against division by zero."""


class GaussianComponents(PyroModule):
    """Base class of all covariance structures: m, s, the locations, and the posterior given soft clusters."""

    correlated: bool
    """Whether scales are Cholesky factors of covariances, site ``scale_tril``, or standard deviations, ``sigma``."""

    def __init__(self, num_components: int, num_features: int, mean_precision: float) -> None:
        super().__init__()
        self.K, self.D, self.kappa = num_components, num_features, mean_precision
        self.sharing = num_components
        self.given: tuple[Sequence[float] | None, Sequence[float] | None] = None, None
        self.register_buffer("m", torch.zeros(num_features))
        self.register_buffer("s", torch.ones(num_features))
        self.q_location = Offset(self.K, self.D, correlated=self.correlated, initial_scale=1.0)
        self.q_spread = PyroParam(torch.full((self.K, self.D), 0.1), constraints.positive)

    def learn_scales(self, x: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Set m and s that are not given from the columns' observed entries; return the rows, and in these units.

        Missing entries of the returned rows are at the prior's centre m, zero in these units.
        """
        average, sd = column_scales(x, weights)
        self.m, self.s = average, PRIOR_SCALE * sd
        self.set_scales(*self.given)
        scaled = torch.where(x.isnan(), 0.0, (x - self.m) / self.s)
        return self.m + self.s * scaled, scaled

    def set_scales(self, mean: Sequence[float] | None, scale: Sequence[float] | None) -> None:
        """Set m and s to the given values, if not None, for good."""
        self.given = mean, scale
        self.m = self.m if mean is None else self.m.new_tensor(mean)
        self.s = self.s if scale is None else self.s.new_tensor(scale)

    @property
    def unit(self) -> Tensor:
        """Prior scale of one component, ``s C^(-1/D)``, shape ``(D,)``: C components share the volume of the rows."""
        return self.s / self.sharing ** (1 / self.D)

    def sample(self) -> None:
        """Draw scales and locations from the guide."""
        raise NotImplementedError

    def mean(self) -> tuple[Tensor, Tensor]:
        """Return the guide's mean: locations, ``(K, D)``, and Cholesky factors or standard deviations of each."""
        raise NotImplementedError

    def initialise(self, x: Tensor, responsibilities: Tensor) -> Tensor:
        """Set the guide to the posterior given responsibilities, ``(num_rows, K)``; return the row counts ``(K,)``."""
        n, means, scatter = self._statistics(x, responsibilities)
        n = n[:, None]
        self.q_spread = (1 / (self.kappa + n).sqrt()).expand(self.K, self.D)
        preconditioner = self._initialise_scales(n, scatter)
        self.q_location.initialise((self.kappa * self.m + n * means) / (self.kappa + n), preconditioner)
        return n.squeeze(-1)

    def evidence(self, x: Tensor, responsibilities: Tensor) -> Tensor:
        """Log marginal likelihood in nats of rows given their clusters, in conjugate closed form."""
        n, _, scatter = self._statistics(x, responsibilities)
        locations = 0.5 * self.D * (self.kappa / (self.kappa + n)).log().sum()
        return locations - 0.5 * self.D * n.sum() * math.log(math.pi) + self._scale_evidence(n[:, None], scatter)

    def _statistics(self, x: Tensor, responsibilities: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return row counts, means, and scatter around the means plus the prior's term for their distance from m."""
        n = responsibilities.sum(0)
        means = self.m + responsibilities.T @ (x - self.m) / n.clamp(min=TINY)[:, None]
        scatter = torch.stack(
            [(r * (x - c)).T @ (x - c) for r, c in zip(responsibilities.T.unsqueeze(-1), means, strict=True)]
        )
        shift = (means - self.m) * (self.kappa * n / (self.kappa + n)).sqrt()[:, None]
        return n, means, scatter + shift.unsqueeze(-1) * shift.unsqueeze(-2)

    def _initialise_scales(self, n: Tensor, scatter: Tensor) -> Tensor:
        """Initialise the scales; return the preconditioner of the locations. ``q_spread`` must be set."""
        raise NotImplementedError

    def _scale_evidence(self, n: Tensor, scatter: Tensor) -> Tensor:
        raise NotImplementedError


class DiagonalComponents(GaussianComponents):
    """Components with diagonal covariances: one standard deviation per column, or one for all (spherical).

    The guide: (psi / sigma)^2 is Gamma(a, a / exp(l)), q(mu | sigma) Normal with standard deviation t sigma.
    """

    correlated = False
    auxiliary: frozenset[str] = frozenset()

    def __init__(self, num_components: int, num_features: int, mean_precision: float, *, spherical: bool) -> None:
        super().__init__(num_components, num_features, mean_precision)
        self.spherical, width = spherical, 1 if spherical else num_features
        self.df = num_features + 2.0 if spherical else 3.0
        self.q_shape = PyroParam(torch.full((num_components, width), 2.0), constraints.positive)
        self.q_log_mean = Offset(num_components, width)
        axes = ("component",) if spherical else ("component", "feature")
        self.dims = {"mu": ("component", "feature"), "sigma": axes}

    def sample(self) -> None:
        """Draw standard deviations and locations."""
        shape = (self.K,) if self.spherical else (self.K, self.D)
        rate = self.q_shape / self.q_log_mean.value.exp()
        q_sigma = InverseRootGamma(self.q_shape.reshape(shape), rate.reshape(shape), self.psi.sqrt())
        sigma = pyro.sample("sigma", q_sigma.to_event()).reshape(self.K, -1)
        pyro.sample("mu", dist.Normal(self.q_location.value, sigma * self.q_spread).to_event(2))

    def mean(self) -> tuple[Tensor, Tensor]:
        """Return the guide's mean as locations and standard deviations, ``(K, D)`` or ``(K, 1)``."""
        return self.q_location.value, (self.psi / self.q_log_mean.value.exp()).sqrt()

    @property
    def psi(self) -> Tensor:
        """Prior scale of the variances, shape ``(D,)`` or ``(1,)``."""
        return self.unit.square().mean().reshape(1) if self.spherical else self.unit.square()

    def _initialise_scales(self, n: Tensor, scatter: Tensor) -> Tensor:
        n, squares = self._pooled(n, scatter)
        self.q_shape = ((self.df + n) / 2).expand(squares.shape)
        self.q_log_mean.initialise(((self.df + n) * self.psi / (self.psi + squares)).log(), self.q_shape.rsqrt())
        return self.mean()[1] * self.q_spread

    def _scale_evidence(self, n: Tensor, scatter: Tensor) -> Tensor:
        n, squares = self._pooled(n, scatter)
        half, prior = (self.df + n) / 2, self.psi.new_tensor(self.df / 2)
        gammas = (half.lgamma() - prior.lgamma()).expand(squares.shape)
        return (gammas + prior * self.psi.log() - half * (self.psi + squares).log()).sum()

    def _pooled(self, n: Tensor, scatter: Tensor) -> tuple[Tensor, Tensor]:
        """Return the count and the sum of squares for each standard deviation."""
        squares = scatter.diagonal(dim1=-2, dim2=-1)
        return (n * self.D, squares.sum(-1, keepdim=True)) if self.spherical else (n, squares)
