"""Log evidence of conjugate models in closed form, in plain torch.

``log p(x) = log int p(x | theta) p(theta) dtheta`` in nats, for rows of one component (Gelman et al. 2013, Bayesian
Data Analysis, chapters 2 and 3; Murphy 2007, Conjugate Bayesian analysis of the Gaussian distribution).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["dirichlet_evidence", "gamma_poisson_evidence", "shared_variance_evidence", "wishart_evidence"]


def wishart_evidence(
    x: Float[Tensor, "rows features"],
    *,
    m: Float[Tensor, "features"],
    kappa: float,
    nu: float,
    Psi: Float[Tensor, "features features"],
) -> Float[Tensor, ""]:
    """Integrate over mean and full covariance: ``Sigma ~ InverseWishart(nu, Psi)``, ``mu ~ Normal(m, Sigma / kappa)``.

    Parameters
    ----------
    x
        Rows.
    m, Psi
        Prior mean and scale matrix.
    """
    N, D = x.shape
    centre = x.mean(0)
    offset = centre - m
    scatter = (x - centre).T @ (x - centre) + kappa * N / (kappa + N) * torch.outer(offset, offset)
    prior, posterior = (torch.tensor(degrees / 2, dtype=x.dtype) for degrees in (nu, nu + N))
    return (
        torch.mvlgamma(posterior, D)
        - torch.mvlgamma(prior, D)
        + nu / 2 * Psi.logdet()
        - (nu + N) / 2 * (Psi + scatter).logdet()
        + D / 2 * math.log(kappa / (kappa + N))
        - N * D / 2 * math.log(math.pi)
    )


def shared_variance_evidence(
    x: Float[Tensor, "rows features"], *, m: Float[Tensor, "features"], kappa: float, nu: float, psi: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """Integrate over mean and a variance shared by all columns.

    ``1 / sigma^2 ~ Gamma(nu / 2, psi / 2)``, ``mu ~ Normal(m, sigma^2 / kappa)``.

    Parameters
    ----------
    x
        Rows.
    m, psi
        Prior mean and scale.
    """
    N, D = x.shape
    centre = x.mean(0)
    squares = (x - centre).square().sum() + kappa * N / (kappa + N) * (centre - m).square().sum()
    return (
        math.lgamma((nu + N * D) / 2)
        - math.lgamma(nu / 2)
        + nu / 2 * psi.log()
        - (nu + N * D) / 2 * (psi + squares).log()
        + D / 2 * math.log(kappa / (kappa + N))
        - N * D / 2 * math.log(math.pi)
    )


def gamma_poisson_evidence(x: Float[Tensor, "rows"], *, shape: float, rate: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """Integrate over the rate of counts x: ``x_i ~ Poisson(lambda)``, ``lambda ~ Gamma(shape, rate)``."""
    total = shape + x.sum()
    prior = shape * rate.log() - math.lgamma(shape)
    return prior + total.lgamma() - total * (rate + len(x)).log() - (x + 1).lgamma().sum()


def dirichlet_evidence(counts: Float[Tensor, "categories"], *, concentration: float = 1.0) -> Float[Tensor, ""]:
    """Integrate over category probabilities given K counts: ``pi ~ Dirichlet(concentration)``."""
    alpha = torch.full_like(counts, concentration)
    posterior = (alpha + counts).lgamma().sum() - (alpha + counts).sum().lgamma()
    return posterior - alpha.lgamma().sum() + alpha.sum().lgamma()
