"""Where a mixture of codes starts: encoder and decoder trained alone for a while, and clusters of their codes."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from pplgen.models._starts.seeding import kmeans_plus_plus
from torch import Tensor

STEPS = 500
BATCH = 256
RATE = 2e-3
WEAK = 0.1
"""How much the divergence from the standard normal counts: at one, it would draw clusters together."""
SAMPLE = 10_000
"""Rows whose codes are clustered, at most."""
TRIES = 10
LEAST = 0.1
"""Of the components' deviations to begin with."""


@torch.enable_grad()
def train_codes(story: Any, x: Tensor, weights: Tensor | None = None) -> None:
    """Train encoder and decoder of a story with codes by a few hundred steps of Adam, each on some of the rows.

    Parameters
    ----------
    story
        Its methods ``encode`` and ``decode`` are trained.
    x
        Rows, shape ``(num_rows, num_features)``.
    weights
        How often each row is drawn.
    """
    chances = x.new_ones(len(x)) if weights is None else weights
    optimiser = torch.optim.Adam(story.parameters(), lr=RATE)
    for _ in range(STEPS):
        rows = x[torch.multinomial(chances, BATCH, replacement=True)]
        q = story.encode(rows)
        z = q.rsample()
        divergence = q.log_prob(z) - dist.Normal(torch.zeros_like(z), 1.0).to_event(1).log_prob(z)
        loss = (WEAK * divergence - story.decode(z).log_prob(rows)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    optimiser.zero_grad()


def cluster_codes(
    story: Any, x: Tensor, num_clusters: int, labels: Tensor | None = None, weights: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Cluster draws of the codes of rows: the tightest of ten attempts.

    Returns
    -------
    tuple of Tensor
        The share of each cluster, shape ``(num_clusters,)``, its mean and its deviations, ``(num_clusters, k)`` each.
    """
    labels = torch.full((len(x),), -1, device=x.device) if labels is None else labels
    weights = x.new_ones(len(x)) if weights is None else weights
    order = torch.randperm(len(x), device=x.device)
    known_first = (labels[order] < 0).to(torch.uint8).argsort(stable=True)  # or a few labels would name no cluster
    chosen = order[known_first][:SAMPLE]
    z = story.encode(x[chosen]).sample()
    tries = []
    for _ in range(TRIES):
        shares = kmeans_plus_plus(z, num_clusters, labels[chosen], weights[chosen])
        n = shares.sum(0).clamp_min(1e-6)
        mean = shares.T @ z / n[:, None]
        within = shares.T @ z.square() / n[:, None] - mean.square()
        tries.append((float((n[:, None] * within).sum()), n, mean, within))
    _, n, mean, within = min(tries, key=lambda each: each[0])
    return (n + 1) / (n + 1).sum(), mean, within.clamp_min(0).sqrt().clamp_min(LEAST)
