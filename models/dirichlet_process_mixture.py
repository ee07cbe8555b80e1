r"""Dirichlet process mixture of Gaussians, truncated.

The story, for rows x_i of D features and at most K components::

    alpha            ~ Gamma(1, 1 / c)                                 mean c, ``concentration``
    sticks_k | alpha ~ Beta(1, alpha),  k < K                          sticks_K = 1
    weights_k        = sticks_k (1 - sticks_1) ... (1 - sticks_(k-1))
    Sigma_k          ~ InverseWishart(D + 2, diag(s^2) / 10^(2/D))     full, or tied: one Sigma for all components
    Sigma_k          = diag(sigma_k^2),  sigma_kd^2 ~ s_d^2 / 10^(2/D) / ChiSquared(3)        diag
    Sigma_k          = sigma_k^2 I,  sigma_k^2 ~ mean(s^2) / 10^(2/D) / ChiSquared(D + 2)     spherical
    mu_k | Sigma_k   ~ Normal(m, Sigma_k / kappa)
    z_i              ~ Categorical(weights)
    x_i | z_i = k    ~ Normal(mu_k, Sigma_k)

Ten components share the volume of the rows in the prior, whatever K; by default m is the column mean, s .15 of the
column standard deviation. The guide is q(alpha) Gamma, q(sticks_k) Beta, and for the components that of
``GaussianMixture``. The index z is summed out, and missing entries are integrated out.

References
----------
Blei and Jordan (2006), Variational inference for Dirichlet process mixtures.
Ishwaran and James (2001), Gibbs sampling methods for stick-breaking priors.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from pplgen.models._rows import GaussianRows
from pplgen.models._starts.dirichlet_process_start import best_clusters
from pyro.nn import PyroParam
from torch import Tensor
from torch.distributions import constraints

from pplgen.distributions import fraley_raftery, normal_rows, stick_breaking
from pplgen.story import Story, pyro_method

SHARING = 10  # components that share the volume of the rows in the prior


class DirichletProcessMixture(GaussianRows):
    """Gaussian mixture with an unknown number of components, at most K; the component of each row summed out.

    Parameters
    ----------
    num_components, num_features
        Largest number of components K, at least 2, and number of data columns D.
    covariance, mean_precision, prior_mean, prior_scale
        As for ``GaussianMixture``: kind, kappa, m and s.
    concentration
        Prior mean c of alpha; larger values favour more components.
    """

    def __init__(
        self,
        num_components: int = 10,
        num_features: int = 2,
        *,
        covariance: str = "full",
        concentration: float = 1.0,
        prior_mean: float | Sequence[float] | None = None,
        prior_scale: float | Sequence[float] | None = None,
        mean_precision: float = 0.01,
    ) -> None:
        options = {"covariance": covariance, "concentration": concentration, "mean_precision": mean_precision}
        options |= {"prior_mean": prior_mean, "prior_scale": prior_scale}
        super().__init__(num_components, num_features, options, fewest=2, sharing=SHARING)
        self.auxiliary |= {"sticks"}
        self.dims = {"alpha": (), "sticks": ("stick",), **self.dims, "num_occupied": ()}
        self.q_alpha = PyroParam(torch.ones(2), constraints.positive)
        self.q_sticks = PyroParam(torch.ones(2, self.K - 1), constraints.positive)

    @pyro_method
    def model(self, x: Tensor | None = None, num_rows: int = 1) -> Tensor:
        """Generate ``num_rows`` rows, or score ``x`` of shape ``(num_rows, num_features)``."""
        K, kappa, m, narrow = self.K, self.kappa, self.components.m, self.components.s / SHARING ** (1 / self.D)
        alpha = pyro.sample("alpha", dist.Gamma(m.new_ones(()), 1 / self.config["concentration"]))
        v = pyro.sample("sticks", dist.Beta(1.0, alpha).expand([K - 1]).to_event(1))
        weights = pyro.deterministic("weights", stick_breaking(v), event_dim=1)
        prior, correlated = fraley_raftery(self.config["covariance"], narrow, K), self.components.correlated
        if correlated:  # full, tied
            L = pyro.sample("scale_tril", prior)
            pyro.deterministic("Sigma", L @ L.mT, event_dim=L.ndim)
            scale = L.expand(K, -1, -1)
        else:  # diag, spherical
            scale = pyro.sample("sigma", prior).reshape(K, -1)
        mu = pyro.sample("mu", normal_rows(m, scale / kappa**0.5, correlated=correlated).to_event(1))
        with pyro.plate("data", num_rows if x is None else len(x)):
            z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
            rows = normal_rows(mu[z], scale[z], correlated=correlated, missing=self.missing)
            return pyro.sample("x", rows, obs=x)

    @pyro_method
    def guide(self, x: Tensor | None = None, num_rows: int = 1) -> None:
        """Draw alpha, sticks, covariances and locations; no site depends on the rows."""
        pyro.sample("alpha", dist.Gamma(self.q_alpha[0], self.q_alpha[1]))
        pyro.sample("sticks", dist.Beta(self.q_sticks[0], self.q_sticks[1]).to_event(1))
        self.components.sample()

    def check_labels(self, labels: Tensor) -> None:
        """Raise ``InputError``: components are ordered by size, so labels have no meaning."""
        Story.check_labels(self, labels)

    @pyro_method
    def generated(self, x: Tensor) -> dict[str, Tensor]:
        """Return the number of components with at least one row, given a draw of each row's component."""
        return {"num_occupied": (self._assign(x) == torch.arange(self.K, device=x.device)[:, None]).any(1).sum()}

    @torch.no_grad()
    def initialise(self, x: Tensor, labels: Tensor | None = None, weights: Tensor | None = None) -> None:
        """Set m and s unless specified, and q to the posterior given clusters, the largest first."""
        c, (filled, scaled) = self.config["concentration"], self.components.learn_scales(x, weights)
        n = self.components.initialise(filled, best_clusters(self.components, c, filled, scaled, weights))
        self.q_sticks = torch.stack([1 + n[:-1], c + n.flip(0).cumsum(0).flip(0)[1:]])
        expected = (self.q_sticks[1].digamma() - self.q_sticks.sum(0).digamma()).sum()
        self.q_alpha = torch.stack([x.new_tensor(float(self.K)), 1 / c - expected])
