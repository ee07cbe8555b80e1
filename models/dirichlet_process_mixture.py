r"""Dirichlet process mixture of Gaussians, truncated.

The story, for rows x_i of D features and at most K components::

    alpha          ~ Gamma(1, 1 / c)                       its mean c is ``concentration``
    v_k | alpha    ~ Beta(1, alpha),  k < K;   v_K = 1     stick-breaking
    pi_k           = v_k (1 - v_1) ... (1 - v_(k-1))
    (mu_k, Sigma_k)  as in ``GaussianMixture`` with K = 10, whatever the truncation
    z_i | pi       ~ Categorical(pi)
    x_i | z_i = k  ~ Normal(mu_k, Sigma_k)

The guide is the conjugate family: q(alpha) Gamma, q(v_k) Beta, components as in ``GaussianMixture``; its sticks are
initialised in order of decreasing cluster size. The index z is summed out exactly, and missing entries are integrated
out. ``num_occupied`` is the number of components with at least one row, given a draw of z.

References
----------
Blei and Jordan (2006), Variational inference for Dirichlet process mixtures.
Ishwaran and James (2001), Gibbs sampling methods for stick-breaking priors.
"""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from pplgen.models._distributions.covariances import gaussian_components
from pplgen.models._rows import GaussianRows
from pplgen.models._starts.kmeans_plus_plus import kmeans_plus_plus
from pyro.nn import PyroParam
from torch import Tensor, nn
from torch.distributions import constraints

from pplgen.story.base import Story, check_count, check_positive, pyro_method
from pplgen.story.shared_sites import shared_values

SHARING = 10
"""Number of components that share the volume of the rows in the base measure, whatever the truncation."""


class DirichletProcessMixture(GaussianRows, Story):
    """Gaussian mixture with an unknown number of components, at most K; the component of each row summed out.

    Parameters
    ----------
    num_components
        Largest number of components K, at least 2: the truncation.
    num_features
        Number of data columns D.
    covariance
        ``full``, ``tied`` (one for all components), ``diag`` or ``spherical``.
    concentration
        Prior mean of alpha; larger values favour more components.
    mean_precision
        Prior sample size kappa of the component locations, in rows.
    """

    def __init__(
        self,
        num_components: int = 10,
        num_features: int = 2,
        *,
        covariance: str = "full",
        concentration: float = 1.0,
        mean_precision: float = 0.01,
    ) -> None:
        K = check_count("num_components", num_components, minimum=2)
        D = check_count("num_features", num_features)
        super().__init__(
            num_components=K,
            num_features=D,
            covariance=covariance,
            concentration=check_positive("concentration", concentration),
            mean_precision=check_positive("mean_precision", mean_precision),
        )
        self.K, self.D = K, D
        self.components = gaussian_components(covariance, K, D, self.config["mean_precision"], sharing=SHARING)
        self.auxiliary = self.components.auxiliary | {"sticks"}
        self.dims = {
            "alpha": (),
            "sticks": ("stick",),
            "weights": ("component",),
            **self.components.dims,
            "z": ("row", "component"),
            "x": ("row", "feature"),
            "num_occupied": (),
            "prior_mean": ("feature",),
            "prior_scale": ("feature",),
        }
        self.q_alpha = PyroParam(torch.ones(2), constraints.positive)
        self.q_sticks = PyroParam(torch.ones(2, K - 1), constraints.positive)

    @pyro_method
    def model(self, x: Tensor | None = None, num_rows: int = 1) -> Tensor:
        """Generate ``num_rows`` rows, or score ``x`` of shape ``(num_rows, num_features)``."""
        weights, components = self._draw()
        with pyro.plate("data", num_rows if x is None else len(x)):
            z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
            return pyro.sample("x", self.components.rows(components, z), obs=x)

    def _draw(self) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Draw the global parameters."""
        one = self.components.m.new_ones(())
        alpha = pyro.sample("alpha", dist.Gamma(one, one / self.config["concentration"]))
        v = pyro.sample("sticks", dist.Beta(one, alpha).expand([self.K - 1]).to_event(1))
        log_rest = torch.cumsum(torch.log1p(-v), -1)
        log_weights = torch.cat([v.log(), log_rest.new_zeros(1)]) + torch.cat([log_rest.new_zeros(1), log_rest])
        weights = pyro.deterministic("weights", log_weights.softmax(-1), event_dim=1)
        return weights, self.components.draw()

    @pyro_method
    def guide(self, x: Tensor | None = None, num_rows: int = 1) -> None:
        """Draw alpha, sticks, locations and covariances; no site depends on the rows."""
        pyro.sample("alpha", dist.Gamma(self.q_alpha[0], self.q_alpha[1]))
        pyro.sample("sticks", dist.Beta(self.q_sticks[0], self.q_sticks[1]).to_event(1))
        self.components.draw_guide()

    def check_labels(self, labels: Tensor) -> None:
        """Raise ``InputError``: components are ordered by size, so labels have no meaning."""
        Story.check_labels(self, labels)

    @pyro_method
    def generated(self, x: Tensor) -> dict[str, Tensor]:
        """Return the number of components with at least one row, given a draw of each row's component."""
        z = self._assign(shared_values(self.model), x)
        index = torch.arange(self.K, device=x.device)
        return {"num_occupied": (z == index[:, None]).any(1).sum()}

    @torch.no_grad()
    def initialise(self, x: Tensor, labels: Tensor | None = None, weights: Tensor | None = None) -> None:
        """Set m and s from the columns, and q to the posterior given the best of k-means with 1, ..., K clusters.

        Clusterings are compared by their posterior probability: the conjugate evidence of their rows, times the Chinese
        restaurant process probability of their sizes. Components are ordered by decreasing size.
        """
        scaled = self.components.learn_scales(x, weights=weights)
        filled = self.components.m + self.components.s * scaled
        tries = (kmeans_plus_plus(scaled, k, weights=weights) for k in range(1, self.K + 1))
        padded = [nn.functional.pad(clusters, (0, self.K - clusters.shape[1])) for clusters in tries]
        best = max(padded, key=lambda clusters: self._log_probability(filled, clusters))
        n = self.components.initialise(filled, best[:, best.sum(0).argsort(descending=True)])
        self.q_sticks = torch.stack([1 + n[:-1], self.config["concentration"] + n.flip(0).cumsum(0).flip(0)[1:]])
        expected = (self.q_sticks[1].digamma() - self.q_sticks.sum(0).digamma()).sum()
        self.q_alpha = torch.stack([x.new_tensor(float(self.K)), 1 / self.config["concentration"] - expected])

    def _log_probability(self, x: Tensor, clusters: Tensor) -> float:
        """Return the log joint density of rows and clusters in nats, up to a constant, at the prior mean of alpha."""
        sizes = clusters.sum(0)
        sizes = sizes[sizes > 0]
        restaurant = len(sizes) * math.log(self.config["concentration"]) + sizes.lgamma().sum()
        return float(self.components.evidence(x, clusters) + restaurant)
