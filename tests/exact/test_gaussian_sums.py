"""Sums of Gaussians against Kim's filter at one end, and against sums over all pasts of the regimes at the other."""

import pytest
import torch

from pplgen.exact.enumeration import enumerate_regimes
from pplgen.exact.gaussian_sums import gaussian_sum_filter
from pplgen.exact.switching import kim_filter, per_regime
from pplgen.story.dynamics import SwitchingLinearGaussian

ALL = 10**6


def in_regime(step, k):
    """The weight, mean and covariance of one regime in a sum."""
    weights = torch.where(step.regimes == k, step.log_weights.exp(), 0.0)
    shares = (weights / weights.sum(-1, keepdim=True)).unsqueeze(-1)
    mean = (shares * step.mean).sum(-2)
    deviation = (step.mean - mean.unsqueeze(-2)).unsqueeze(-1)
    covariance = (shares.unsqueeze(-1) * (step.covariance + deviation @ deviation.mT)).sum(-3)
    return weights.sum(-1), mean, covariance


def test_without_pasts_it_is_kim_s_filter(switching_model):
    y, parameters = switching_model
    kim, ours = kim_filter(y, parameters), gaussian_sum_filter(y, parameters, max_terms=0)
    torch.testing.assert_close(ours.log_densities, kim.log_densities)
    for t, step in enumerate(ours.steps):
        assert step.log_weights.shape == (3,)
        for k in range(3):
            theirs = kim.probabilities[t, k], kim.mean[t, k], kim.covariance[t, k]
            for own, other in zip(in_regime(step, k), theirs, strict=True):
                torch.testing.assert_close(own, other)


def test_with_all_pasts_it_is_exact(switching_model):
    y, parameters = switching_model
    y = y[:6].clone()
    y[2:4] = torch.nan
    ours = gaussian_sum_filter(y, parameters, max_terms=ALL)
    for num_steps in range(1, 7):
        expected, smoothed = enumerate_regimes(y[:num_steps], parameters)
        # a past of less than a thousandth is collapsed, though not lost
        torch.testing.assert_close(ours.log_densities[:num_steps].sum(), expected, rtol=0, atol=1e-4)
        for k in range(3):
            share, _, _ = in_regime(ours.steps[num_steps - 1], k)
            torch.testing.assert_close(share, smoothed.probabilities[-1, k], rtol=0, atol=1e-4)


def test_more_pasts_come_closer_through_a_gap():
    """Two ways to turn, eight steps unseen: from 2^8 pasts there are as many places to come out."""
    double = {"dtype": torch.float64}
    angles = torch.tensor([0.15, -0.5], **double)
    A = torch.stack([angles.cos(), -angles.sin(), angles.sin(), angles.cos()], -1).reshape(2, 2, 2)
    eye, P = torch.eye(2, **double), torch.tensor([[0.8, 0.2], [0.2, 0.8]], **double)
    turns = SwitchingLinearGaussian(P[0], P, eye[0], eye / 100, A, 0 * eye[0], eye / 100, eye, 0 * eye[0], eye / 100)
    y = torch.full((12, 2), torch.nan, **double)
    y[[0, 1, 10, 11]] = torch.tensor([[1.0, 0.0], [0.99, 0.15], [-0.3, 0.9], [-0.44, 0.85]], **double)
    expected, _ = enumerate_regimes(y, turns)
    errors = [abs(gaussian_sum_filter(y, turns, max_terms=most).log_likelihood - expected) for most in (0, 8, 64)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


def test_batches_of_series_and_parameters(switching_models):
    series, models, both = switching_models
    together = gaussian_sum_filter(series, both, max_terms=3)
    for draw, own in enumerate(models):
        for each in range(3):
            alone = gaussian_sum_filter(series[each], own, max_terms=3)
            torch.testing.assert_close(together.log_densities[draw, each], alone.log_densities)


def test_past_the_end_of_a_series_nothing_moves(switching_model):
    y, parameters = switching_model
    unstable = per_regime(y, parameters)._replace(A=2 * per_regime(y, parameters).A)
    lengths = torch.tensor([len(y), 3, 1])
    series = torch.stack([y, y, y])
    found = gaussian_sum_filter(series, unstable, lengths=lengths)
    for each, length in enumerate(lengths):
        alone = gaussian_sum_filter(y[:length], unstable)
        torch.testing.assert_close(found.log_densities[each, :length], alone.log_densities)
        assert (found.log_densities[each, length:].abs() < 1e-9).all()  # rounding
        at_end, later = found.steps[length - 1].mean[each], found.steps[-1].mean[each]
        assert later.abs().max() <= at_end.abs().max() * (1 + 1e-9)


@pytest.mark.parametrize("most", [0, 4])
def test_a_regime_out_of_reach_stays_finite(switching_model, most):
    y, parameters = switching_model
    eye = torch.eye(3, dtype=torch.float64)
    stuck = gaussian_sum_filter(y, parameters._replace(P=eye, pi=eye[0]), max_terms=most)
    assert stuck.log_densities.isfinite().all()
    expected, _ = enumerate_regimes(y, parameters._replace(P=eye, pi=eye[0]))
    torch.testing.assert_close(stuck.log_likelihood, expected)
    assert all(part.isfinite().all() for step in stuck.steps for part in step)
