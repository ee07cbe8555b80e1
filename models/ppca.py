r"""Probabilistic principal component analysis.

The story, for rows x_i of D features and latent variables z_i of k dimensions::

    z_i       ~ Normal(0, I)
    x_i | z_i ~ Normal(W z_i + mu, sigma^2 I)

W, mu and sigma are fitted by maximum likelihood. The guide is the exact posterior (``pplgen.models._linear_latent``)::

    M = W' W + sigma^2 I        q(z_i | x_i) = Normal(M^-1 W' (x_i - mu), sigma^2 M^-1)

so that the ELBO is the log-likelihood. At its maximum W spans the first k principal axes, sigma^2 is the mean variance
along the others, and W is identified up to a rotation. sigma is at least a thousandth of the columns' scale. Missing
entries are integrated out: the posterior of z_i is that given the observed ones, with their rows of W and mu.

The noise variance is shared by all features, so the fit depends on units, as in any PCA: standardise columns with
different units, or use ``pplgen.models.factor_analysis``.

References
----------
Tipping and Bishop (1999), Probabilistic principal component analysis, equations 1 to 9. doi:10.1111/1467-9868.00196
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
from pplgen.models._linear_latent import LinearStory
from pyro.nn import pyro_method
from torch import Tensor

from pplgen.distributions.missing import MarginalIndependent


class PPCA(LinearStory):
    """Rows linear in a few normal latent variables, with the same noise variance for all features.

    Parameters
    ----------
    num_features
        Number of data columns D.
    num_latents
        Number of latent dimensions k.
    """

    def __init__(self, num_features: int = 5, num_latents: int = 2) -> None:
        super().__init__(num_features, num_latents, noise="shared")

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
        """Draw the latent variables of rows from their exact posterior."""
        if x is not None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", self.encode(x))
