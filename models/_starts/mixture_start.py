"""Start of Gaussian mixtures: k-means++ clusters, for many rows the best of several on a sample, refined by EM."""

from __future__ import annotations

import math

import torch
from pplgen.models._distributions.gaussians import GaussianComponents
from pplgen.models._starts.kmeans_plus_plus import kmeans_plus_plus
from torch import Tensor

SAMPLE = 10_000
"""Rows above which starts are compared on a sample of this size."""
TRIES = 10
GAIN = 1e-3
"""EM stops when a step gains fewer nats per row."""
MAX_STEPS = 50


def soft_clusters(
    components: GaussianComponents, x: Tensor, scaled: Tensor, labels: Tensor | None, weights: Tensor | None
) -> Tensor:
    """Return initial responsibilities times row weights, shape ``(num_rows, K)``.

    Few rows are clustered once: SVI explores from there, and restarts differ. With many rows the posterior is too
    narrow for SVI to leave a local optimum, so EM starts from the best of ten clusterings of a sample.

    Parameters
    ----------
    components
        Components, whose guide is left at the posterior given the last clusters.
    x, scaled
        Rows without missing entries, in data units and standardised, shape ``(num_rows, num_features)`` each.
    labels, weights
        As for ``kmeans_plus_plus``.
    """
    weights = x.new_ones(len(x)) if weights is None else weights
    labels = torch.full((len(x),), -1, device=x.device) if labels is None else labels
    if len(x) <= SAMPLE:
        return kmeans_plus_plus(scaled, components.K, labels, weights)
    missing, components.missing = components.missing, False  # the rows are filled
    order = torch.randperm(len(x), device=x.device)
    labelled_first = (
        (labels[order] < 0).to(torch.uint8).argsort(stable=True)
    )  # so that a few labels are all in the sample
    chosen = order[labelled_first][:SAMPLE]
    sample, sample_scaled, annotations = x[chosen], scaled[chosen], (labels[chosen], weights[chosen])
    tries = []
    for _ in range(TRIES):
        tries.append(
            _run_em(components, kmeans_plus_plus(sample_scaled, components.K, *annotations), sample, *annotations)
        )
    best, _ = max(tries, key=lambda result: result[1])
    responsibilities, _ = _assign(components, components.initialise(sample, best), x, labels, weights)
    responsibilities, _ = _run_em(components, responsibilities, x, labels, weights)
    components.missing = missing
    return responsibilities


def _run_em(
    components: GaussianComponents, responsibilities: Tensor, x: Tensor, labels: Tensor, weights: Tensor
) -> tuple[Tensor, float]:
    """Take steps of EM; return responsibilities and the weighted log density, in nats per row."""
    best = -math.inf
    for _ in range(MAX_STEPS):
        responsibilities, value = _assign(components, components.initialise(x, responsibilities), x, labels, weights)
        if value < best + GAIN:
            break
        best = value
    return responsibilities, best


def _assign(
    components: GaussianComponents, n: Tensor, x: Tensor, labels: Tensor, weights: Tensor
) -> tuple[Tensor, float]:
    """Return responsibilities at the guide's mean given row counts n, and the weighted log density per row."""
    index = torch.arange(components.K, device=x.device)[:, None]
    joint = (n / n.sum()).log()[:, None] + components.rows(components.guide_mean(), index).log_prob(x)
    joint = joint.masked_fill((labels >= 0) & (labels != index), -math.inf)
    total = joint.logsumexp(0)
    return (joint - total).exp().T * weights[:, None], (weights @ total / weights.sum()).item()
