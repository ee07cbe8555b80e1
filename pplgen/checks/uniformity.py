"""Are ranks uniform? Simultaneous bands of their distribution function, an exact p-value, and Holm's correction.

The count of ranks up to each of several points is a Markov chain of binomials, so that the probability of a band around
all of them is a product of matrices, without simulation (Säilynoja, Bürkner and Vehtari 2022, Graphical test for
discrete uniformity and its applications in goodness-of-fit evaluation and multiple sample comparison, section 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

__all__ = ["ecdf_band", "holm", "p_value", "points_of"]

POINTS = 100
"""Points at most at which distribution functions are compared."""
HALVINGS = 40
"""Bisections of the level of single points that gives a band its level."""


@lru_cache(maxsize=8)
def points_of(num_draws: int) -> np.ndarray:
    """Return points between 0 and 1 at which the distribution function of a rank among ``num_draws`` is known."""
    values = num_draws + 1
    count = min(values, POINTS)
    return np.unique(np.round(np.arange(1, count) * values / count)) / values


def ecdf_band(num_ranks: int, num_draws: int, level: float = 0.95) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the points, and the band that holds the distribution function of uniform ranks at all of them.

    Parameters
    ----------
    num_ranks
        Ranks whose distribution function is drawn.
    num_draws
        Draws among which each was ranked, its values being 0 to ``num_draws``.
    level
        Probability with which it holds all of the curve.
    """
    tails = _tails(num_ranks, num_draws)
    low, high = 0.0, 1 - level
    for _ in range(HALVINGS):  # the level of single points, from Bonferroni's side
        middle = (low + high) / 2
        low, high = (middle, high) if _inside(num_ranks, num_draws, middle) >= level else (low, middle)
    allowed = tails > low
    lower, upper = allowed.argmax(1), num_ranks - allowed[:, ::-1].argmax(1)
    return points_of(num_draws), lower / num_ranks, upper / num_ranks


def p_value(ranks: np.ndarray, num_draws: int) -> float:
    """Probability that uniform ranks leave the diagonal as far, at the point where it is least likely, as these do.

    Parameters
    ----------
    ranks
        Whole numbers from 0 to ``num_draws``, shape ``(num_ranks,)``.
    num_draws
        Draws among which each was ranked.
    """
    points = points_of(num_draws)
    counts = np.searchsorted(np.sort(ranks), np.round(points * (num_draws + 1)), side="left")
    extreme = _tails(len(ranks), num_draws)[np.arange(len(points)), counts].min()
    return float(np.clip(1 - _inside(len(ranks), num_draws, extreme), 0.0, 1.0))


def holm(values: Sequence[float]) -> np.ndarray:
    """Adjust p-values of several tests so that the smallest says whether any of them fails (Holm 1979)."""
    order = np.argsort(values)
    adjusted = np.maximum.accumulate(np.asarray(values)[order] * np.arange(len(values), 0, -1))
    result = np.empty(len(values))
    result[order] = np.minimum(adjusted, 1.0)
    return result


@lru_cache(maxsize=8)
def _tails(num_ranks: int, num_draws: int) -> np.ndarray:
    """Two-sided probabilities of every count at every point, shape ``(num_points, num_ranks + 1)``."""
    masses = np.exp([_log_masses(np.arange(num_ranks + 1), num_ranks, z) for z in points_of(num_draws)])
    below, above = masses.cumsum(1), masses[:, ::-1].cumsum(1)[:, ::-1]
    return np.minimum(1.0, 2 * np.minimum(below, above))


def _inside(num_ranks: int, num_draws: int, extreme: float) -> float:
    """Probability that at every point the two-sided probability of the count is above ``extreme``."""
    # the sums of a tail are rounded
    allowed = _tails(num_ranks, num_draws) > extreme * (1 + 1e-9)
    counts, chance, before = np.zeros(1, dtype=int), np.ones(1), 0.0
    for z, here in zip(points_of(num_draws), allowed, strict=True):
        reached = np.flatnonzero(here)
        if not len(reached):
            return 0.0
        left = (num_ranks - counts)[:, None]
        steps = reached[None] - counts[:, None]
        chance = chance @ np.exp(_log_masses(steps, left, (z - before) / (1 - before)))
        counts, before = reached, z
    return float(chance.sum())


def _log_masses(counts: np.ndarray, trials: np.ndarray | int, probability: float) -> np.ndarray:
    """Binomial log probabilities, minus infinity outside of 0 to ``trials``."""
    possible = (counts >= 0) & (counts <= trials)
    held = np.where(possible, counts, 0)
    factorials = _log_factorials(int(np.max(trials)))
    chosen = factorials[trials] - factorials[held] - factorials[trials - held]
    return np.where(possible, chosen + held * np.log(probability) + (trials - held) * np.log1p(-probability), -np.inf)


@lru_cache(maxsize=8)
def _log_factorials(most: int) -> np.ndarray:
    """Logarithms of the factorials of 0 to ``most``."""
    return np.concatenate([[0.0], np.log(np.arange(1, most + 1)).cumsum()])
