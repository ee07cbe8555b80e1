"""Start of ``MixtureVAE``: pretraining of encoder and decoder, and clusters of the latent variables."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from pplgen.models._starts.kmeans_plus_plus import kmeans_plus_plus
from torch import Tensor

STEPS = 500
BATCH_SIZE = 256
LEARNING_RATE = 2e-3
KL_WEIGHT = 0.1
"""Weight of the KL divergence from the standard normal; a weight of one would pull clusters together."""
SAMPLE = 10_000
"""Largest number of rows that are clustered."""
TRIES = 10
MIN_SCALE = 0.1
"""Smallest initial standard deviation of the components."""


@torch.enable_grad()
def pretrain_networks(story: Any, x: Tensor, weights: Tensor | None = None) -> None:
    """Train encoder and decoder by a few hundred steps of Adam on minibatches.

    Parameters
    ----------
    story
        Story whose ``encode`` and ``decode`` are trained.
    x
        Rows, shape ``(num_rows, num_features)``.
    weights
        Sampling weight of each row.
    """
    probabilities = x.new_ones(len(x)) if weights is None else weights
    optimiser = torch.optim.Adam(story.parameters(), lr=LEARNING_RATE)
    for _ in range(STEPS):
        rows = x[torch.multinomial(probabilities, BATCH_SIZE, replacement=True)]
        q = story.encode(rows)
        z = q.rsample()
        kl = q.log_prob(z) - dist.Normal(torch.zeros_like(z), 1.0).to_event(1).log_prob(z)
        loss = (KL_WEIGHT * kl - story.decode(z).log_prob(rows)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    optimiser.zero_grad()


def cluster_latents(
    story: Any, x: Tensor, num_clusters: int, labels: Tensor | None = None, weights: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Cluster draws of the rows' latent variables: the best of ten k-means runs by within-cluster variance.

    Returns
    -------
    tuple of Tensor
        Weight of each cluster, shape ``(num_clusters,)``, means and standard deviations, ``(num_clusters, k)`` each.
    """
    labels = torch.full((len(x),), -1, device=x.device) if labels is None else labels
    weights = x.new_ones(len(x)) if weights is None else weights
    order = torch.randperm(len(x), device=x.device)
    labelled_first = (
        (labels[order] < 0).to(torch.uint8).argsort(stable=True)
    )  # so that a few labels are all in the sample
    chosen = order[labelled_first][:SAMPLE]
    z = story.encode(x[chosen]).sample()
    tries = []
    for _ in range(TRIES):
        responsibilities = kmeans_plus_plus(z, num_clusters, labels[chosen], weights[chosen])
        n = responsibilities.sum(0).clamp_min(1e-6)
        mean = responsibilities.T @ z / n[:, None]
        within = responsibilities.T @ z.square() / n[:, None] - mean.square()
        tries.append((float((n[:, None] * within).sum()), n, mean, within))
    _, n, mean, within = min(tries, key=lambda run: run[0])
    return (n + 1) / (n + 1).sum(), mean, within.clamp_min(0).sqrt().clamp_min(MIN_SCALE)
