r"""Linear Gaussian latent-variable models: base of probabilistic PCA and factor analysis, which differ in the noise.

With latent variables ``z_i ~ Normal(0, I)``, rows ``x_i | z_i ~ Normal(W z_i + mu, diag(sigma^2))``, and S_i the
diagonal 0-1 matrix of observed entries of x_i, the posterior of z_i is that of a linear Gaussian model::

    M_i = I + W' S_i diag(sigma^-2) W        z_i | x_i ~ Normal(M_i^-1 W' S_i diag(sigma^-2) (x_i - mu), M_i^-1)

The guide is this posterior, at the current W, mu and sigma, so that the ELBO is the log-likelihood for every draw:
``log p(x_i, z_i) - log p(z_i | x_i) = log p(x_i)``. Its gradient has no variance.

References
----------
Bishop (2006), Pattern recognition and machine learning, equations 2.116 and 2.117.
"""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from pplgen.models._network_entries import NormalEntries
from pplgen.models._starts.principal_components import principal_loadings
from pyro.nn import pyro_method
from torch import Tensor, nn

from pplgen.distributions.missing import MarginalIndependent
from pplgen.story.latent import LatentStory


class LinearStory(LatentStory):
    """Base class of linear Gaussian latent-variable stories, with the exact posterior as guide.

    Parameters
    ----------
    num_features, num_latents
        Number of data columns, and of latent dimensions.
    noise
        Noise standard deviation: one per ``feature``, or ``shared`` by all.
    """

    origin: Tensor

    def __init__(self, num_features: int, num_latents: int, noise: str) -> None:
        super().__init__(num_features, num_latents)
        self.seen = NormalEntries(num_features, noise)
        self.loadings = nn.Parameter(torch.empty(num_features, num_latents))
        self.offset = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("origin", torch.zeros(num_latents))
        self.dims = {**self.dims, "W": ("feature", "latent"), "mu": ("feature",), "sigma": ("feature",)}
        self._reset_loadings()

    @pyro_method
    def prior(self) -> Any:
        """Return the prior of one row's latent variables."""
        return dist.Normal(self.origin, torch.ones_like(self.origin)).to_event(1)

    @pyro_method
    def decode(self, z: Tensor) -> MarginalIndependent:
        """Return the distribution of rows given latent variables."""
        W, mu, sigma = self.fitted
        return MarginalIndependent(dist.Normal(z @ W.mT + mu, sigma))

    @pyro_method
    def encode(self, x: Tensor) -> Any:
        """Return the posterior of the rows' latent variables; complete rows share one covariance."""
        W, mu, sigma = self.fitted
        scaled = W / sigma[:, None]
        difference = x - mu
        M = torch.eye(self.num_latents, dtype=x.dtype, device=x.device)
        if self.has_missing:
            difference = torch.where(x.isnan(), 0.0, difference)
            M = M + torch.einsum("...j,jk,jl->...kl", (~x.isnan()).to(x.dtype), scaled, scaled)
        else:
            M = M + scaled.mT @ scaled
        # a triangular factor of M^-1, shared with the mean
        factor = dist.MultivariateNormal(self.origin, precision_matrix=M).scale_tril
        mean = factor @ (factor.mT @ (difference / sigma @ scaled).unsqueeze(-1))
        return dist.MultivariateNormal(mean.squeeze(-1), scale_tril=factor)

    @property
    def constants(self) -> dict[str, Tensor]:
        """Maximum-likelihood loadings W, means mu and noise standard deviations sigma, in data units."""
        return {name: value.detach() for name, value in zip(("W", "mu", "sigma"), self.fitted, strict=True)}

    @torch.no_grad()
    def initialise(self, x: Tensor, labels: Tensor | None = None, weights: Tensor | None = None) -> None:
        """Start at the columns' means and near the closed-form solution of probabilistic PCA."""
        self.offset.copy_(self.seen.initialise(x, weights))
        m, s, shared = self.seen.m, self.seen.s, self.seen.noise == "shared"
        unit = s.square().mean().sqrt().expand_as(s) if shared else s
        loadings, sigma = principal_loadings((x - m) / unit, self.num_latents, weights, shared=shared)
        self.loadings.copy_(loadings * (unit / s)[:, None])
        self.seen.log_sigma.copy_(sigma.log())

    @property
    def fitted(self) -> tuple[Tensor, Tensor, Tensor]:
        """W, mu and sigma in data units, from the standardised parameters."""
        m, s, sigma = self.seen.m, self.seen.s, self.seen.sigma
        assert sigma is not None  # the noise is one per feature, or shared
        return s[:, None] * self.loadings, m + s * self.offset, sigma

    def _reset_loadings(self) -> None:
        """Draw random loadings, scaled so that the latent variables explain a column's variance."""
        nn.init.normal_(self.loadings, std=1 / math.sqrt(self.num_latents))
