"""Priors of a row's latent variables: standard ones on the support of a guide's family, VampPrior, flat."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor

from pplgen.distributions.normal_mixture import NormalMixture
from pplgen.story.base import check_choice

__all__ = ["FlatPrior", "standard_prior", "vamp_prior"]

SUPPORTS = {
    **dict.fromkeys(("normal", "laplace", "student-t", "logistic", "full", "flow"), "real"),
    **dict.fromkeys(("beta", "kumaraswamy"), "unit interval"),
    **{name: name for name in ("gamma", "lognormal", "dirichlet")},
}
"""Kind of prior for each family of guides."""


def standard_prior(family: str, like: Float[Tensor, "latents"]) -> Any:
    """Return the fixed prior of k latent variables with the support of a guide's family.

    ======================================================================== ========================
    family of the guide                                                      prior
    ======================================================================== ========================
    ``normal``, ``full``, ``laplace``, ``student-t``, ``logistic``, ``flow`` ``Normal(0, I)``
    ``gamma``                                                                ``Gamma(2, 2)``
    ``lognormal``                                                            ``LogNormal(0, 1)``
    ``beta``, ``kumaraswamy``                                                ``Uniform(0, 1)``
    ``dirichlet``                                                            ``Dirichlet(1, ..., 1)``
    ======================================================================== ========================

    Parameters
    ----------
    family
        One of the families above.
    like
        Tensor with the prior's event shape, dtype and device.

    Raises
    ------
    InputError
        For another family.
    """
    zeros, ones = torch.zeros_like(like), torch.ones_like(like)
    kind = SUPPORTS[check_choice("family", family, SUPPORTS)]
    if kind == "dirichlet":
        return dist.Dirichlet(ones)
    if kind == "gamma":
        return dist.Gamma(2 * ones, 2 * ones).to_event(1)
    if kind == "lognormal":
        return dist.LogNormal(zeros, ones).to_event(1)
    return (dist.Normal(zeros, ones) if kind == "real" else dist.Uniform(zeros, ones)).to_event(1)


def vamp_prior(logits: Float[Tensor, "components"], components: Any) -> Any:
    """Return the VampPrior ``sum_c pi_c q(z | u_c)``, a mixture of the guide at learned pseudo-inputs u_c.

    Parameters
    ----------
    logits
        Log weights of the K components, up to a constant.
    components
        The guide's distribution at the pseudo-inputs, batch shape ``(K,)``. For independent normals the result is a
        ``NormalMixture``, whose density is one matrix product.

    References
    ----------
    Tomczak and Welling (2018), VAE with a VampPrior.
    """
    if isinstance(components, dist.Independent) and isinstance(components.base_dist, dist.Normal):
        return NormalMixture(logits, components.mean, components.stddev)
    return dist.MixtureSameFamily(dist.Categorical(logits=logits), components)


class FlatPrior(dist.MultivariateNormal):
    """Flat, improper density of vectors that draws from a normal fitted to the values whose density is evaluated.

    The log density is zero. Its gradient is the normal's in location and scale, and zero in the value: maximising a
    log joint density fits the normal to the values by maximum likelihood, without changing them.

    Parameters
    ----------
    loc, covariance_matrix, precision_matrix, scale_tril
        As for ``torch.distributions.MultivariateNormal``.
    """

    def log_prob(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Zero, shape ``batch_shape``."""
        density = super().log_prob(value.detach())
        return density - density.detach()
