r"""Factor analysis.

The story, for rows x_i of D features and codes z_i of k entries, here called factors::

    z_i       ~ Normal(0, I)
    x_i | z_i ~ Normal(W z_i + mu, diag(sigma_1^2, ..., sigma_D^2))

W, mu and sigma are fitted by maximum likelihood. The guide is the posterior itself (``pplgen.models._linear_codes``)::

    M = I + W' diag(sigma)^-2 W        q(z_i | x_i) = Normal(M^-1 W' diag(sigma)^-2 (x_i - mu), M^-1)

so that the bound is the log-likelihood. It is probabilistic PCA (``pplgen.models.ppca``) with a deviation of its own
for each feature: codes explain what features have in common, and units do not matter. Missing entries are integrated
out: the code's posterior is that given the seen ones.

A code may take a feature over whole, so that its noise shrinks to nothing (a Heywood case); it stops at a thousandth of
the column's deviation.

References
----------
Rubin and Thayer (1982), EM algorithms for ML factor analysis. doi:10.1007/BF02293851
"""

from __future__ import annotations

from pplgen.models._linear_codes import LinearStory


class FactorAnalysis(LinearStory):
    """Rows that are linear in a few normal codes, with noise of its own on each feature.

    Parameters
    ----------
    num_features
        Number of data columns D.
    num_latents
        Entries k of a code.
    """

    def __init__(self, num_features: int = 5, num_latents: int = 2) -> None:
        super().__init__(num_features, num_latents, noise="feature")
