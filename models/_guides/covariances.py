"""Guides of Gaussian components by the name of their covariances."""

from __future__ import annotations

from pplgen.models._guides.correlated_components import CorrelatedComponents
from pplgen.models._guides.gaussian_components import DiagonalComponents, GaussianComponents

from pplgen.story.base import check_choice

COVARIANCES: dict[str, tuple[type[GaussianComponents], dict[str, bool]]] = {
    "full": (CorrelatedComponents, {"tied": False}),
    "tied": (CorrelatedComponents, {"tied": True}),
    "diag": (DiagonalComponents, {"spherical": False}),
    "spherical": (DiagonalComponents, {"spherical": True}),
}


def gaussian_components(
    covariance: str, num_components: int, num_features: int, mean_precision: float, *, sharing: int | None = None
) -> GaussianComponents:
    """Return components with this kind of covariance, or raise ``InputError``.

    ``sharing`` is the number of components C that share the volume of the rows in the prior; default: all.
    """
    kind, options = COVARIANCES[check_choice("covariance", covariance, COVARIANCES)]
    components = kind(num_components, num_features, mean_precision, **options)
    if sharing is not None:
        components.sharing = sharing
    return components
