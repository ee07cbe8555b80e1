"""Start of the Dirichlet process mixture: the best of k-means with 1, ..., K clusters, by posterior probability."""

from __future__ import annotations

import math

import torch
from pplgen.models._guides.gaussian_components import GaussianComponents
from pplgen.models._starts.kmeans_plus_plus import kmeans_plus_plus
from torch import Tensor


def best_clusters(
    components: GaussianComponents, concentration: float, x: Tensor, scaled: Tensor, weights: Tensor | None
) -> Tensor:
    """Return initial responsibilities times row weights, shape ``(num_rows, K)``, in order of decreasing size.

    Parameters
    ----------
    components
        Components, with their priors set.
    concentration
        Prior mean of the concentration of the Dirichlet process.
    x, scaled
        Rows without missing entries, in data units and standardised, shape ``(num_rows, num_features)`` each.
    weights
        Weight of each row.
    """
    tries = (kmeans_plus_plus(scaled, k, weights=weights) for k in range(1, components.K + 1))
    padded = [torch.nn.functional.pad(clusters, (0, components.K - clusters.shape[1])) for clusters in tries]
    best = max(padded, key=lambda clusters: log_probability(components, concentration, x, clusters))
    return best[:, best.sum(0).argsort(descending=True)]


def log_probability(components: GaussianComponents, concentration: float, x: Tensor, clusters: Tensor) -> float:
    """Return the log joint density of rows and clusters in nats, up to a constant.

    It is the conjugate evidence of the rows, plus the log probability of the clusters' sizes in a Chinese restaurant
    process with this concentration.
    """
    sizes = clusters.sum(0)
    sizes = sizes[sizes > 0]
    restaurant = len(sizes) * math.log(concentration) + sizes.lgamma().sum()
    return float(components.evidence(x, clusters) + restaurant)
