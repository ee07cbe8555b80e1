"""Where the components of a mixture start: the columns' scales, k-means++ seeds and a few of Lloyd's steps."""

from __future__ import annotations

import torch
from torch import Tensor


def column_scales(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each column's seen entries, the latter one where it is zero."""
    seen = x.isfinite()
    count = seen.sum(0).clamp(min=1)
    mean = torch.where(seen, x, 0.0).sum(0) / count
    deviation = (torch.where(seen, x - mean, 0.0).square().sum(0) / count).sqrt()
    return mean, torch.where(deviation > 0, deviation, 1.0)


def kmeans_plus_plus(x: Tensor, num_clusters: int, num_steps: int = 10) -> Tensor:
    """Assign rows to clusters: seeds far apart in squared distance, then Lloyd's algorithm.

    Parameters
    ----------
    x
        Rows on a common scale, shape ``(num_rows, num_features)``.
    num_clusters
        At most ``num_rows``.
    num_steps
        Lloyd steps after seeding; a start needs only a few.

    Returns
    -------
    Tensor
        Cluster of each row, shape ``(num_rows,)``, numbered by the first feature of the cluster's mean.

    References
    ----------
    Arthur and Vassilvitskii (2007), k-means++: the advantages of careful seeding.
    """
    centres = x[torch.randint(len(x), (1,))]
    for _ in range(num_clusters - 1):
        distance = torch.cdist(x, centres).amin(dim=1).square()
        # where all rows coincide with a centre every further seed is as good as any other
        weights = distance if distance.sum() > 0 else torch.ones_like(distance)
        centres = torch.cat([centres, x[torch.multinomial(weights, 1)]])
    for _ in range(num_steps):
        nearest = torch.cdist(x, centres).argmin(dim=1)
        for k in nearest.unique():  # a cluster without rows keeps its centre
            centres[k] = x[nearest == k].mean(dim=0)
    centres = centres[centres[:, 0].argsort()]
    return torch.cdist(x, centres).argmin(dim=1)
