"""Start of Gaussian mixtures: k-means++ clusters, improved by merging and splitting; of many rows the best on a sample.

A split or a merge of clusters is a step that neither EM nor gradients take (Ueda, Nakano, Ghahramani and Hinton 2000,
SMEM algorithm for mixture models). Which is better is told by the variational bound of the soft clusters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations

import torch
from pplgen.models._guides.gaussian_components import TINY, GaussianComponents
from pplgen.models._starts.kmeans_plus_plus import kmeans_plus_plus
from torch import Tensor

from pplgen.distributions import normal_rows

SAMPLE = 10_000
"""Rows above which starts are compared on a sample of this size."""
TRIES = 10
GAIN = 1e-3
"""EM stops when a step gains fewer nats per row."""
MAX_STEPS = 50
MARGIN = 1.0
"""Nats that a split or merge must gain."""
FEW_STEPS = 10
"""Maximum number of steps of EM after a move."""
NUM_SPLITS, NUM_TRIED = 2, 2
"""Number of clusters split after each merge, and of moves refined by EM."""


def soft_clusters(
    components: GaussianComponents,
    concentration: float,
    x: Tensor,
    scaled: Tensor,
    labels: Tensor | None,
    weights: Tensor | None,
) -> Tensor:
    """Return initial responsibilities times row weights, shape ``(num_rows, K)``.

    Few rows are clustered once, and clusters merged and split: restarts differ. With many rows the posterior is too
    narrow for SVI to leave a local optimum, so EM starts from the best of ten clusterings of a sample.

    Parameters
    ----------
    components
        Components, whose guide is left at the posterior given the last clusters.
    concentration
        Prior concentration of the component weights.
    x, scaled
        Rows without missing entries, in data units and standardised, shape ``(num_rows, num_features)`` each.
    labels, weights
        As for ``kmeans_plus_plus``.
    """
    weights = x.new_ones(len(x)) if weights is None else weights
    labels = torch.full((len(x),), -1, device=x.device) if labels is None else labels
    if len(x) > SAMPLE:
        clusters = _best_of_sample(components, x, scaled, labels, weights)
    else:
        clusters = kmeans_plus_plus(scaled, components.K, labels, weights)
        if (labels < 0).all():
            clusters = _split_and_merge(components, concentration, clusters, x, scaled, weights)
    return clusters


def _best_of_sample(
    components: GaussianComponents, x: Tensor, scaled: Tensor, labels: Tensor, weights: Tensor
) -> Tensor:
    """Return responsibilities of many rows by EM from the best of ten clusterings of a sample."""
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
    return responsibilities


def _run_em(
    components: GaussianComponents,
    responsibilities: Tensor,
    x: Tensor,
    labels: Tensor,
    weights: Tensor,
    max_steps: int = MAX_STEPS,
) -> tuple[Tensor, float]:
    """Take steps of EM; return responsibilities and the weighted log density, in nats per row."""
    best = -math.inf
    for _ in range(max_steps):
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
    mu, scale = components.mean()
    rows = normal_rows(mu[index], scale[index], correlated=components.correlated)
    joint = (n / n.sum()).log()[:, None] + rows.log_prob(x)
    joint = joint.masked_fill((labels >= 0) & (labels != index), -math.inf)
    total = joint.logsumexp(0)
    return (joint - total).exp().T * weights[:, None], (weights @ total / weights.sum()).item()


def _split_and_merge(
    components: GaussianComponents, concentration: float, clusters: Tensor, x: Tensor, scaled: Tensor, weights: Tensor
) -> Tensor:
    """Return clusters whose bound no merge, with or without a split of another cluster, raises by ``MARGIN``."""
    unlabelled = torch.full((len(x),), -1, device=x.device)

    def refine(start: Tensor) -> tuple[float, Tensor]:
        refined, _ = _run_em(components, start, x, unlabelled, weights, FEW_STEPS)
        return _bound(components, concentration, x, refined, weights), start

    bound, best = refine(clusters)
    for _ in range(components.K):
        moves = sorted(
            _moves(best, scaled), key=lambda move: _bound(components, concentration, x, move, weights), reverse=True
        )
        tried = [refine(move) for move in moves[:NUM_TRIED]]
        gained, move = max(tried, key=lambda result: result[0], default=(-math.inf, best))
        if not gained > bound + MARGIN:
            break
        bound, best = gained, move
    centres = torch.where(best.sum(0) > 0, best.T @ scaled[:, 0] / best.sum(0).clamp(min=TINY), math.inf)
    return best[:, centres.argsort()]


def _moves(clusters: Tensor, scaled: Tensor) -> Iterator[Tensor]:
    """Yield clusters with one of the K closest pairs merged; the other component is empty, or takes half of a third.

    The clusters with the largest sums of squares are split, across the direction of their largest variance.
    """
    occupied = [k for k in range(clusters.shape[1]) if clusters[:, k].sum() > 0]
    count = clusters.sum(0).clamp(min=TINY)
    centres = clusters.T @ scaled / count[:, None]
    pairs = sorted(combinations(occupied, 2), key=lambda pair: float((centres[pair[0]] - centres[pair[1]]).norm()))
    squares = (clusters.unsqueeze(-1) * (scaled.unsqueeze(1) - centres).square()).sum((0, 2))
    by_size = sorted(occupied, key=lambda k: -float(squares[k]))
    halves: dict[int, tuple[Tensor, Tensor]] = {}
    for kept, freed in pairs[: clusters.shape[1]]:
        merged = clusters.clone()
        merged[:, kept], merged[:, freed] = clusters[:, kept] + clusters[:, freed], 0.0
        yield merged
        for split in [k for k in by_size if k not in (kept, freed)][:NUM_SPLITS]:
            if split not in halves:
                halves[split] = _halves(clusters[:, split], scaled - centres[split])
            moved = merged.clone()
            moved[:, freed], moved[:, split] = halves[split]
            yield moved


def _halves(cluster: Tensor, centred: Tensor) -> tuple[Tensor, Tensor]:
    """Split the weights of a cluster by the sign of each row's score on the cluster's first principal component."""
    scatter = (cluster[:, None] * centred).T @ centred
    positive = centred @ torch.linalg.eigh(scatter)[1][:, -1] > 0
    return cluster * positive, cluster * ~positive


def _bound(
    components: GaussianComponents, concentration: float, x: Tensor, responsibilities: Tensor, weights: Tensor
) -> float:
    """Return the variational bound of the evidence in nats, up to a constant, with parameters integrated out."""
    alpha = responsibilities.new_tensor(concentration)
    sizes = (responsibilities.sum(0) + alpha).lgamma().sum() - components.K * alpha.lgamma()
    shares = responsibilities / weights.clamp(min=TINY)[:, None]
    entropy = -torch.special.xlogy(responsibilities, shares).sum()
    return float(components.evidence(x, responsibilities) + sizes + entropy)
