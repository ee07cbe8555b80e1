r"""Bayesian Gaussian mixture.

The story, for rows x_i of D features and K components::

    weights        ~ Dirichlet(alpha, ..., alpha)
    Sigma_k        ~ InverseWishart(D + 2, diag(s^2) / K^(2/D))      full, or tied: one Sigma for all components
                     or diag(sigma_k^2), with
    sigma_kd^2     ~ s_d^2 / K^(2/D) / ChiSquared(3)                 diag
    sigma_k^2      ~ mean(s^2) / K^(2/D) / ChiSquared(D + 2)         spherical
    mu_k | Sigma_k ~ Normal(m, Sigma_k / kappa)
    z_i            ~ Categorical(weights)
    x_i | z_i = k  ~ Normal(mu_k, Sigma_k)

Sites are ``scale_tril``, the Cholesky factor of Sigma (full, tied), or ``sigma`` (diag, spherical). The priors are
Fraley and Raftery's (2007) for narrower components, by K^(1/D); their density falls to zero faster than any likelihood
can rise as a component collapses.

Defaults: m is the column mean, s is .15 of the column standard deviation, set by ``initialise`` (from a sample of
streamed rows; 0 and 1 before). A smaller s resolves narrower components in many columns; a larger one, up to 1 standard
deviation, empties fewer components where rows are few.

The guide has the families of the posterior given z, with separate parameters: q(weights) Dirichlet; q(scale_tril)
``BartlettCholesky``, L = diag(s) / K^(1/D) B^-1 with B_ii^2 gamma and B_ij | B_ii ~ Normal(g_ij B_ii, h_ij), or
q(sigma) ``InverseRootGamma``, sigma^-2 gamma; and q(mu_k | L_k) = Normal(a_k, L_k diag(t_k^2) L_k'), with diag(sigma_k)
for L_k. The index z is summed out exactly by ``TraceEnum_ELBO``, and missing entries are integrated out.

References
----------
Fraley and Raftery (2007), Bayesian regularization for normal mixture estimation and model-based clustering.
Bishop (2006), Pattern Recognition and Machine Learning, section 10.2.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from pplgen.models._guides.mixture_weights import weights_guide
from pplgen.models._rows import GaussianRows
from pplgen.models._starts.mixture_start import soft_clusters
from pyro.nn import PyroParam
from torch import Tensor
from torch.distributions import constraints

from pplgen.distributions import fraley_raftery, normal_rows
from pplgen.story import pyro_method


class GaussianMixture(GaussianRows):
    """Mixture of K Gaussians, the component of each row summed out.

    Parameters
    ----------
    num_components, num_features
        Number of components K, and of data columns D.
    covariance
        ``full``, ``tied`` (one for all components), ``diag`` or ``spherical``.
    concentration
        Prior concentration alpha of each weight; values below one empty surplus components.
    prior_mean
        Prior mean m of the component locations, in data units: a number or one per feature. Default: the column means.
    prior_scale
        Prior scale s of the components, in data units: a number or one per feature. Default: .15 of the columns'
        standard deviations.
    mean_precision
        Prior sample size kappa of the component locations, in rows.
    """

    def __init__(
        self,
        num_components: int = 2,
        num_features: int = 2,
        *,
        covariance: str = "full",
        concentration: float = 1.0,
        prior_mean: float | Sequence[float] | None = None,
        prior_scale: float | Sequence[float] | None = None,
        mean_precision: float = 0.01,
    ) -> None:
        options = {"covariance": covariance, "concentration": concentration, "mean_precision": mean_precision}
        super().__init__(num_components, num_features, options | {"prior_mean": prior_mean, "prior_scale": prior_scale})
        self.q_weights = PyroParam(torch.ones(self.K), constraints.positive)

    @pyro_method
    def model(self, x: Tensor | None = None, num_rows: int = 1) -> Tensor:
        """Generate ``num_rows`` rows, or score ``x`` of shape ``(num_rows, num_features)``."""
        K, kappa, m, narrow = self.K, self.kappa, self.components.m, self.components.s / self.K ** (1 / self.D)
        weights = pyro.sample("weights", dist.Dirichlet(m.new_full((K,), self.config["concentration"])))
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
        """Draw weights, covariances and locations; no site depends on the rows."""
        pyro.sample("weights", weights_guide(self.q_weights))
        self.components.sample()

    @torch.no_grad()
    def initialise(self, x: Tensor, labels: Tensor | None = None, weights: Tensor | None = None) -> None:
        """Set m and s from the columns unless specified, and q to the posterior given soft clusters."""
        alpha, (filled, scaled) = self.config["concentration"], self.components.learn_scales(x, weights)
        clusters = soft_clusters(self.components, alpha, filled, scaled, labels, weights)
        self.q_weights = alpha + self.components.initialise(filled, clusters)
