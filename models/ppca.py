r"""Probabilistic principal component analysis.

The story, for rows x_i of D features and codes z_i of k entries::

    z_i       ~ Normal(0, I)
    x_i | z_i ~ Normal(W z_i + mu, sigma^2 I)

W, mu and sigma are fitted by maximum likelihood. The guide is the posterior itself (``pplgen.models._linear_codes``)::

    M = W' W + sigma^2 I        q(z_i | x_i) = Normal(M^-1 W' (x_i - mu), sigma^2 M^-1)

so that the bound is the log-likelihood. At its maximum W spans the first k principal axes, sigma^2 is the mean variance
along the others, and a rotation of the codes changes nothing. Missing entries are integrated out: the code's posterior
is that given the seen ones.

One deviation for all features means that units matter, as in any PCA: standardise columns that are not alike, or see
``pplgen.models.factor_analysis``.

References
----------
Tipping and Bishop (1999), Probabilistic principal component analysis, equations 1 to 9. doi:10.1111/1467-9868.00196
"""

from __future__ import annotations

from pplgen.models._linear_codes import LinearStory


class PPCA(LinearStory):
    """Rows that are linear in a few normal codes, with the same noise on all features.

    Parameters
    ----------
    num_features
        Number of data columns D.
    num_latents
        Entries k of a code.
    """

    def __init__(self, num_features: int = 5, num_latents: int = 2) -> None:
        super().__init__(num_features, num_latents, noise="shared")
