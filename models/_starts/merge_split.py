"""Where Gaussian components start among many rows: soft clusters found on a sample and sharpened by EM."""

from __future__ import annotations

import math

import torch
from pplgen.models._distributions.gaussians import GaussianComponents
from pplgen.models._starts.seeding import kmeans_plus_plus
from torch import Tensor

SAMPLE = 10_000
"""Rows among which starts are tried where there are more."""
TRIES = 10
GAIN = 1e-3
"""Nats per row that a step of EM must gain to be followed by another."""
MOST_STEPS = 50


def soft_clusters(
    components: GaussianComponents, x: Tensor, scaled: Tensor, labels: Tensor | None, weights: Tensor | None
) -> Tensor:
    """Return where the guide is to start: shares, responsibilities times weights, shape ``(num_rows, K)``.

    Few rows are clustered once: the steps of the fit explore from there, and restarts differ. Among many, where the
    posterior is so narrow that such steps lead nowhere else, the best of ten clusterings of a sample is climbed from.

    Parameters
    ----------
    components
        Left at the posterior given the last clusters that were tried.
    x, scaled
        Rows without missing entries, in data units and on a common scale, shape ``(num_rows, num_features)`` each.
    labels, weights
        As ``kmeans_plus_plus`` takes them.
    """
    weights = x.new_ones(len(x)) if weights is None else weights
    labels = torch.full((len(x),), -1, device=x.device) if labels is None else labels
    if len(x) <= SAMPLE:
        return kmeans_plus_plus(scaled, components.K, labels, weights)
    missing, components.missing = components.missing, False  # for the rows are filled
    order = torch.randperm(len(x), device=x.device)
    known_first = (labels[order] < 0).to(torch.uint8).argsort(stable=True)  # or a few labels would name no cluster
    chosen = order[known_first][:SAMPLE]
    some, some_scaled, known = x[chosen], scaled[chosen], (labels[chosen], weights[chosen])
    tries = []
    for _ in range(TRIES):
        tries.append(_climb(components, kmeans_plus_plus(some_scaled, components.K, *known), some, *known))
    best, _ = max(tries, key=lambda shares_and_value: shares_and_value[1])
    shares, _ = _assign(components, components.begin(some, best), x, labels, weights)
    shares, _ = _climb(components, shares, x, labels, weights)
    components.missing = missing
    return shares


def _climb(
    components: GaussianComponents, shares: Tensor, x: Tensor, labels: Tensor, weights: Tensor
) -> tuple[Tensor, float]:
    """Take steps of EM; return shares and the weighted log density that they reached, in nats per row."""
    reached = -math.inf
    for _ in range(MOST_STEPS):
        shares, value = _assign(components, components.begin(x, shares), x, labels, weights)
        if value < reached + GAIN:
            break
        reached = value
    return shares, reached


def _assign(
    components: GaussianComponents, n: Tensor, x: Tensor, labels: Tensor, weights: Tensor
) -> tuple[Tensor, float]:
    """Return shares at the guide's centre, given how many rows each component has, and the log density of rows."""
    every = torch.arange(components.K, device=x.device)[:, None]
    joint = (n / n.sum()).log()[:, None] + components.rows(components.typical(), every).log_prob(x)
    joint = joint.masked_fill((labels >= 0) & (labels != every), -math.inf)
    total = joint.logsumexp(0)
    return (joint - total).exp().T * weights[:, None], (weights @ total / weights.sum()).item()
