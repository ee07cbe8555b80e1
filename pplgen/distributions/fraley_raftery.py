"""Priors of the covariances of Gaussian components that keep a component from collapsing onto a point, line or tie."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor

from pplgen.distributions.cholesky_factors import InverseWishartCholesky
from pplgen.distributions.inverse_chi import inverse_chi
from pplgen.story.base import check_choice

__all__ = ["fraley_raftery"]

COVARIANCES = ("full", "tied", "diag", "spherical")


def fraley_raftery(covariance: str, scale: Float[Tensor, "features"], num_components: int) -> Any:
    """Return Fraley and Raftery's conjugate prior of the covariances of K components, for scales s.

    ============= ========================================================= ===================================
    covariance    prior                                                     event
    ============= ========================================================= ===================================
    ``full``      ``L_k L_k' ~ InverseWishart(D + 2, diag(s^2))``           Cholesky factors L, ``(K, D, D)``
    ``tied``      ``L L' ~ InverseWishart(D + 2, diag(s^2))``               Cholesky factor L, ``(D, D)``
    ``diag``      ``sigma_kd^2 ~ s_d^2 / ChiSquared(3)``                    standard deviations, ``(K, D)``
    ``spherical`` ``sigma_k^2 ~ mean(s^2) / ChiSquared(D + 2)``             standard deviations, ``(K,)``
    ============= ========================================================= ===================================

    Parameters
    ----------
    covariance
        Kind of the covariances.
    scale
        Prior scales s of the columns in a component, in their units.
    num_components
        Number of components K.

    Raises
    ------
    InputError
        For another kind of covariances.

    References
    ----------
    Fraley and Raftery (2007), Bayesian regularization for normal mixture estimation and model-based clustering.
    """
    D, K = len(scale), num_components
    if check_choice("covariance", covariance, COVARIANCES) == "full":
        return InverseWishartCholesky(D + 2, scale).expand([K]).to_event(1)
    if covariance == "tied":
        return InverseWishartCholesky(D + 2, scale)
    if covariance == "diag":
        return inverse_chi(scale.expand(K, D), 3).to_event(2)
    return inverse_chi(scale.square().mean().sqrt().expand(K), D + 2).to_event(1)
