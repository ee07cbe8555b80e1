r"""Factor analysis.

The story, for rows x_i of D features and factors z_i of k dimensions::

    z_i       ~ Normal(0, I)
    x_i | z_i ~ Normal(W z_i + mu, diag(sigma_1^2, ..., sigma_D^2))

W, mu and sigma are fitted by maximum likelihood. The guide is the exact posterior (``pplgen.models._linear_latent``)::

    M = I + W' diag(sigma)^-2 W        q(z_i | x_i) = Normal(M^-1 W' diag(sigma)^-2 (x_i - mu), M^-1)

so that the ELBO is the log-likelihood. It is probabilistic PCA (``pplgen.models.ppca``) with a separate noise standard
deviation for each feature: factors explain the covariances of features, and the fit does not depend on units. Missing
entries are integrated out: the posterior of the factors is that given the observed ones,
with their rows of W, mu and sigma.

A factor may explain a feature completely, so that its noise goes to zero (a Heywood case); sigma is clamped
at a thousandth of the column's standard deviation.

References
----------
Rubin and Thayer (1982), EM algorithms for ML factor analysis. doi:10.1007/BF02293851
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
from pplgen.models._linear_latent import LinearStory
from pyro.nn import pyro_method
from torch import Tensor

from pplgen.distributions.missing import MarginalIndependent


class FactorAnalysis(LinearStory):
    """Rows linear in a few normal factors, with a separate noise variance for each feature.

    Parameters
    ----------
    num_features
        Number of data columns D.
    num_latents
        Number of factors k.
    """

    def __init__(self, num_features: int = 5, num_latents: int = 2) -> None:
        super().__init__(num_features, num_latents, noise="feature")

    @pyro_method
    def model(self, x: Tensor | None = None, num_rows: int = 1) -> Tensor:
        """Generate ``num_rows`` rows, or score ``x`` of shape ``(num_rows, num_features)``."""
        W, mu, sigma = self.fitted
        zeros, ones = W.new_zeros(self.num_latents), W.new_ones(self.num_latents)
        with pyro.plate("data", num_rows if x is None else len(x)):
            z = pyro.sample("z", dist.Normal(zeros, ones).to_event(1))
            return pyro.sample("x", MarginalIndependent(dist.Normal(z @ W.mT + mu, sigma)), obs=x)

    @pyro_method
    def guide(self, x: Tensor | None = None, num_rows: int = 1) -> None:
        """Draw the factors of rows from their exact posterior."""
        if x is not None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", self.encode(x))
