"""Uniformity of ranks: the band's level, p-values, and Holm's correction."""

import itertools

import numpy as np
import pytest

from pplgen.checks.uniformity import ecdf_band, holm, p_value, points_of


def counts_of(ranks, points, num_draws):
    return (ranks[..., None] < points * (num_draws + 1) - 0.5).sum(-2)


def test_the_band_holds_as_many_curves_as_it_says():
    num_ranks, num_draws = 60, 19
    points, low, high = ecdf_band(num_ranks, num_draws, 0.9)
    ranks = np.random.default_rng(0).integers(0, num_draws + 1, (20_000, num_ranks))
    curves = counts_of(ranks, points, num_draws) / num_ranks
    inside = ((curves >= low - 1e-9) & (curves <= high + 1e-9)).all(1).mean()
    # at least .9, and little more, for counts are whole numbers; four standard errors of 20,000 curves are .0085
    assert 0.9 - 0.0085 < inside < 0.92


def test_p_values_are_those_of_an_enumeration():
    num_ranks, num_draws = 4, 3
    every = np.array(list(itertools.product(range(num_draws + 1), repeat=num_ranks)))
    points = points_of(num_draws)
    counts = counts_of(every, points, num_draws)
    tails = np.array([[min(1, 2 * min((c <= own).mean(), (c >= own).mean())) for own in c] for c in counts.T]).T
    extreme = tails.min(1)
    for index in range(0, len(every), 7):
        expected = (extreme <= extreme[index] + 1e-12).mean()
        assert p_value(every[index], num_draws) == pytest.approx(expected, abs=1e-12)


def test_p_values_of_uniform_ranks_are_uniform():
    ranks = np.random.default_rng(1).integers(0, 200, (400, 200))
    values = [p_value(each, 199) for each in ranks]
    # four standard errors of 400 shares, and of the mean of 400 uniform numbers
    assert np.mean(np.array(values) < 0.1) == pytest.approx(0.1, abs=4 * (0.09 / 400) ** 0.5)
    assert np.mean(values) == pytest.approx(0.5, abs=4 * (1 / 12 / 400) ** 0.5)


def test_holm_multiplies_the_smallest_most():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])
    np.testing.assert_allclose(holm([0.6, 0.9]), [1.0, 1.0])
