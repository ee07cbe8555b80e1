r"""Bayesian Gaussian mixture with full covariances.

The story, for rows x_i of D features and K components::

    pi             ~ Dirichlet(alpha, ..., alpha)
    Sigma_k        ~ InverseWishart(nu, Psi)              nu = D + 2,  Psi = diag(s^2) / K^(2/D)
    mu_k | Sigma_k ~ Normal(m, Sigma_k / kappa)
    z_i | pi       ~ Categorical(pi)
    x_i | z_i = k  ~ Normal(mu_k, Sigma_k)

With alpha = 1 and kappa = .01 this is the weak conjugate prior of Fraley and Raftery (2007): the prior mean of each
covariance divides the volume of the data among K components, and its density falls to zero faster than any likelihood
can rise as a component collapses onto a point, a line or a tie. Unless given, m and s are the columns' means and
standard deviations, set by ``initialise``; until then they are 0 and 1.

The inverse Wishart is written by Bartlett's decomposition, with b_i = B_ii^2 for a lower triangular B::

    b_i            ~ ChiSquared(nu - D + i)               i = 1, ..., D
    B_ij           ~ Normal(0, 1)                         i > j
    Sigma_k        = L L',   L = Psi^(1/2) B^(-1)

The guide is the conjugate family in the same coordinates, each factor with parameters of its own:
q(pi) Dirichlet, q(b) Gamma, q(B_ij | b_i) Normal around r_ij b_i^(1/2), q(mu | Sigma) Normal with factor L diag(t).
The index z is summed out exactly by ``TraceEnum_ELBO``.

References
----------
Fraley and Raftery (2007), Bayesian regularization for normal mixture estimation and model-based clustering.
Bishop (2006), Pattern Recognition and Machine Learning, section 10.2.
Smith and Hocking (1972), Algorithm AS 53: Wishart variate generator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import pyro
import pyro.distributions as dist
import torch
from pplgen.models._seeding import kmeans_plus_plus
from pyro.nn import PyroParam
from torch import Tensor
from torch.distributions import constraints

from pplgen.story import InputError, Story, check_count, check_per_feature, check_positive, pyro_method


class GaussianMixture(Story):
    """Rows from K Gaussian components with full covariances, the component of each row summed out.

    Parameters
    ----------
    num_components
        Number of components K.
    num_features
        Number of data columns D.
    concentration
        Prior concentration alpha of each weight; below one, surplus components empty out.
    prior_mean
        Centre m of the component locations, in data units: a number or one per feature. Default: the column means.
    prior_scale
        Scale s of the data, in data units: a number or one per feature. Default: the column standard
        deviations.
    mean_precision
        Rows that the prior on a location is worth, kappa.
    """

    dims: ClassVar = {
        "weights": ("component",),
        "mu": ("component", "feature"),
        "Sigma": ("component", "feature", "other_feature"),
        "bartlett_diagonal": ("component", "feature"),
        "bartlett_lower": ("component", "feature_pair"),
        "z": ("row", "component"),
        "x": ("row", "feature"),
        "prior_mean": ("feature",),
        "prior_scale": ("feature",),
    }
    auxiliary: ClassVar = frozenset({"bartlett_diagonal", "bartlett_lower"})

    def __init__(
        self,
        num_components: int = 2,
        num_features: int = 2,
        *,
        concentration: float = 1.0,
        prior_mean: float | Sequence[float] | None = None,
        prior_scale: float | Sequence[float] | None = None,
        mean_precision: float = 0.01,
    ) -> None:
        K = check_count("num_components", num_components)
        D = check_count("num_features", num_features)
        super().__init__(
            num_components=K,
            num_features=D,
            concentration=check_positive("concentration", concentration),
            prior_mean=check_per_feature("prior_mean", prior_mean, D),
            prior_scale=check_per_feature("prior_scale", prior_scale, D, positive=True),
            mean_precision=check_positive("mean_precision", mean_precision),
        )
        self.K, self.D, self.nu = K, D, D + 2
        self.register_buffer("m", torch.tensor(self.config["prior_mean"] or [0.0] * D))
        self.register_buffer("s", torch.tensor(self.config["prior_scale"] or [1.0] * D))
        pairs = D * (D - 1) // 2
        self.q_weights = PyroParam(torch.ones(K), constraints.positive)
        self.q_location = PyroParam(torch.randn(K, D))
        self.q_spread = PyroParam(torch.full((K, D), 0.1), constraints.positive)
        self.q_diagonal_shape = PyroParam(torch.full((K, D), 2.0), constraints.positive)
        self.q_diagonal_rate = PyroParam(torch.ones(K, D), constraints.positive)
        self.q_lower_slope = PyroParam(torch.zeros(K, pairs))
        self.q_lower_scale = PyroParam(torch.ones(K, pairs), constraints.positive)

    @pyro_method
    def model(self, x: Tensor | None = None, num_rows: int = 1) -> Tensor:
        """Generate ``num_rows`` rows, or score ``x`` of shape ``(num_rows, num_features)``."""
        K, D = self.K, self.D
        weights = pyro.sample("weights", dist.Dirichlet(self.m.new_full((K,), self.config["concentration"])))
        with pyro.plate("components", K):
            diagonal = pyro.sample("bartlett_diagonal", dist.Chi2(self.freedom).to_event(1))
            lower = pyro.sample("bartlett_lower", dist.Normal(self.m.new_zeros(D * (D - 1) // 2), 1.0).to_event(1))
            L = self.scale_tril(diagonal, lower)
            pyro.deterministic("Sigma", L @ L.mT, event_dim=2)
            mu = pyro.sample("mu", dist.MultivariateNormal(self.m, scale_tril=L / self.config["mean_precision"] ** 0.5))
        with pyro.plate("data", num_rows if x is None else len(x)):
            z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
            return pyro.sample("x", dist.MultivariateNormal(mu[z], scale_tril=L[z]), obs=x)

    @pyro_method
    def guide(self, x: Tensor | None = None, num_rows: int = 1) -> None:
        """Draw weights, covariance factors and locations; no site depends on the rows."""
        pyro.sample("weights", dist.Dirichlet(self.q_weights))
        with pyro.plate("components", self.K):
            diagonal = pyro.sample(
                "bartlett_diagonal", dist.Gamma(self.q_diagonal_shape, self.q_diagonal_rate).to_event(1)
            )
            row, _ = torch.tril_indices(self.D, self.D, -1)
            centre = self.q_lower_slope * diagonal.sqrt()[..., row]
            lower = pyro.sample("bartlett_lower", dist.Normal(centre, self.q_lower_scale).to_event(1))
            factor = self.scale_tril(diagonal, lower) * self.q_spread.unsqueeze(-2)
            pyro.sample("mu", dist.MultivariateNormal(self.m + self.s * self.q_location, scale_tril=factor))

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
        return self.nu - self.D + torch.arange(1, self.D + 1, device=self.m.device, dtype=self.m.dtype)

    @property
    def prior_tril(self) -> Tensor:
        """Cholesky factor of Psi, diagonal, shape ``(D, D)``."""
        return torch.diag(self.s / self.K ** (1 / self.D))

    @property
    def constants(self) -> dict[str, Tensor]:
        """Centre m and scale s of the priors, in data units, shape ``(D,)`` each."""
        return {"prior_mean": self.m, "prior_scale": self.s}

    def check_data(self, x: Tensor) -> None:
        """Refuse rows of another width."""
        if x.ndim != 2 or x.shape[1] != self.D:
            raise InputError(f"data of shape {tuple(x.shape)}: this GaussianMixture expects (num_rows, {self.D})")

    def check_training_data(self, x: Tensor) -> None:
        """Refuse fewer rows than components."""
        if len(x) < max(2, self.K):
            raise InputError(f"{len(x)} rows are too few for {self.K} components; give at least {max(2, self.K)}")

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """Take m and s from the columns unless they were given, and start q at the posterior given k-means clusters."""
        if self.config["prior_mean"] is None:
            self.m = x.mean(dim=0)
        if self.config["prior_scale"] is None:
            deviation = x.std(dim=0, correction=0)
            self.s = torch.where(deviation > 0, deviation, 1.0)
        cluster = kmeans_plus_plus((x - self.m) / self.s, self.K)
        groups = [x[cluster == k] for k in range(self.K)]
        alpha, kappa = self.config["concentration"], self.config["mean_precision"]
        n = x.new_tensor([len(rows) for rows in groups])[:, None]
        centre = torch.stack([rows.mean(dim=0) if len(rows) else self.m for rows in groups])
        scatter = torch.stack([(rows - c).T @ (rows - c) for rows, c in zip(groups, centre, strict=True)])
        shift = (centre - self.m) * (kappa * n / (kappa + n)).sqrt()
        Psi = self.prior_tril @ self.prior_tril.mT + scatter + shift.unsqueeze(-1) * shift.unsqueeze(-2)
        # Given the clusters, B = B* T for a Bartlett factor B* of nu + n degrees of freedom.
        T = torch.linalg.solve_triangular(torch.linalg.cholesky(Psi), self.prior_tril, upper=False)
        T_diagonal = T.diagonal(dim1=-2, dim2=-1)
        i, j = torch.tril_indices(self.D, self.D, -1)
        self.q_weights = alpha + n.squeeze(-1)
        self.q_location = ((kappa * self.m + n * centre) / (kappa + n) - self.m) / self.s
        self.q_spread = (1 / (kappa + n).sqrt()).expand(self.K, self.D)
        self.q_diagonal_shape = (self.freedom + n) / 2
        self.q_diagonal_rate = 0.5 / T_diagonal.square()
        self.q_lower_slope = T[:, i, j] / T_diagonal[:, i]
        self.q_lower_scale = T.square().cumsum(dim=-2)[:, i - 1, j].sqrt()
