"""Uniformity of ranks: simultaneous ECDF bands, exact p-values, and Holm's correction.

The counts of ranks below successive points form a Markov chain with binomial transitions, so the coverage of a
simultaneous band is a product of matrices and needs no simulation (Säilynoja, Bürkner and Vehtari 2022, Graphical test
for discrete uniformity and its applications in goodness-of-fit evaluation and multiple sample comparison, section 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

__all__ = ["ecdf_band", "holm", "p_value", "points_of"]

POINTS = 100
"""Maximum number of points at which distribution functions are compared."""
HALVINGS = 40
"""Bisection steps for the pointwise level of a simultaneous band."""


@lru_cache(maxsize=8)
def points_of(num_draws: int) -> np.ndarray:
    """Return points in (0, 1) at which the distribution function of a uniform rank among ``num_draws`` is exact."""
    values = num_draws + 1
    count = min(values, POINTS)
    return np.unique(np.round(np.arange(1, count) * values / count)) / values


def ecdf_band(num_ranks: int, num_draws: int, level: float = 0.95) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return evaluation points, and lower and upper limits of a simultaneous band of the ECDF of uniform ranks.

    Parameters
    ----------
    num_ranks
        Number of ranks.
    num_draws
        Number of draws that each truth was ranked among; ranks are 0 to ``num_draws``.
    level
        Probability that the ECDF lies inside the band at all points.
    """
    tails = _tails(num_ranks, num_draws)
    low, high = 0.0, 1 - level
    for _ in range(HALVINGS):  # pointwise level, approached from the conservative side
        middle = (low + high) / 2
        low, high = (middle, high) if _inside(num_ranks, num_draws, middle) >= level else (low, middle)
    allowed = tails > low
    lower, upper = allowed.argmax(1), num_ranks - allowed[:, ::-1].argmax(1)
    return points_of(num_draws), lower / num_ranks, upper / num_ranks


def p_value(ranks: np.ndarray, num_draws: int) -> float:
    """P-value of uniformity: how probable a pointwise tail probability as small as the smallest of these ranks is.

    Parameters
    ----------
    ranks
        Integers from 0 to ``num_draws``, shape ``(num_ranks,)``.
    num_draws
        Number of draws that each truth was ranked among.
    """
    points = points_of(num_draws)
    counts = np.searchsorted(np.sort(ranks), np.round(points * (num_draws + 1)), side="left")
    extreme = _tails(len(ranks), num_draws)[np.arange(len(points)), counts].min()
    return float(np.clip(1 - _inside(len(ranks), num_draws, extreme), 0.0, 1.0))


def holm(values: Sequence[float]) -> np.ndarray:
    """Adjust p-values for multiple testing, controlling the family-wise error rate (Holm 1979)."""
    order = np.argsort(values)
    adjusted = np.maximum.accumulate(np.asarray(values)[order] * np.arange(len(values), 0, -1))
    result = np.empty(len(values))
    result[order] = np.minimum(adjusted, 1.0)
    return result


@lru_cache(maxsize=8)
def _tails(num_ranks: int, num_draws: int) -> np.ndarray:
    """Two-sided tail probabilities of each count at each point, shape ``(num_points, num_ranks + 1)``."""
    masses = np.exp([_log_masses(np.arange(num_ranks + 1), num_ranks, z) for z in points_of(num_draws)])
    below, above = masses.cumsum(1), masses[:, ::-1].cumsum(1)[:, ::-1]
    return np.minimum(1.0, 2 * np.minimum(below, above))


def _inside(num_ranks: int, num_draws: int, extreme: float) -> float:
    """Probability that the two-sided tail probability exceeds ``extreme`` at all points."""
    # tolerance for rounding of the tail sums
    allowed = _tails(num_ranks, num_draws) > extreme * (1 + 1e-9)
    counts, mass, previous = np.zeros(1, dtype=int), np.ones(1), 0.0
    for z, allowed_here in zip(points_of(num_draws), allowed, strict=True):
        reached = np.flatnonzero(allowed_here)
        if not len(reached):
            return 0.0
        remaining = (num_ranks - counts)[:, None]
        increments = reached[None] - counts[:, None]
        mass = mass @ np.exp(_log_masses(increments, remaining, (z - previous) / (1 - previous)))
        counts, previous = reached, z
    return float(mass.sum())


def _log_masses(counts: np.ndarray, trials: np.ndarray | int, probability: float) -> np.ndarray:
    """Binomial log probabilities, minus infinity outside the support."""
    possible = (counts >= 0) & (counts <= trials)
    valid = np.where(possible, counts, 0)
    factorials = _log_factorials(int(np.max(trials)))
    log_choose = factorials[trials] - factorials[valid] - factorials[trials - valid]
    return np.where(
        possible, log_choose + valid * np.log(probability) + (trials - valid) * np.log1p(-probability), -np.inf
    )


@lru_cache(maxsize=8)
def _log_factorials(most: int) -> np.ndarray:
    """Log factorials of 0 to ``most``."""
    return np.concatenate([[0.0], np.log(np.arange(1, most + 1)).cumsum()])
