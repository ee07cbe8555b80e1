"""Moments and quantiles of mixtures and weighted draws."""

import pytest
import torch

from pplgen.mixtures import GaussianMixtures, smoothed_weights, weighted_moments, weighted_quantile


def test_a_mixture_s_moments_and_quantiles():
    generator = torch.Generator().manual_seed(0)
    means = 1e4 + torch.randn(30, 4, 2, generator=generator, dtype=torch.float64)
    covariance = torch.tensor([[2.0, 0.5], [0.5, 1.0]]).double().expand(30, 4, 2, 2)
    mixtures = GaussianMixtures()
    assert mixtures.empty
    mixtures.add(means[:7], covariance[:7])
    mixtures.add(means[7:], covariance[7:])
    mean, total = mixtures.moments()
    torch.testing.assert_close(mean, means.mean(0))
    # sums of squares around 1e4 would lose eight of sixteen digits; around the first draw they lose none to speak of
    torch.testing.assert_close(total[1], covariance[0, 1] + means[:, 1].T.cov(correction=0), rtol=1e-10, atol=1e-10)
    found = mixtures.quantile(0.05)
    below = torch.special.ndtr((found - means) / covariance.diagonal(dim1=-2, dim2=-1).sqrt()).mean(0)
    # sixteen halvings of a bracket some four deviations wide
    torch.testing.assert_close(below, torch.full_like(below, 0.05), rtol=0, atol=1e-4)


def test_weighted_draws():
    values = torch.tensor([[3.0], [1.0], [2.0]]).double()
    weights = torch.tensor([0.2, 0.5, 0.3]).double()
    mean, covariance = weighted_moments(values, weights)
    assert mean.item() == pytest.approx(1.7)
    assert covariance.item() == pytest.approx(0.2 * 9 + 0.5 + 0.3 * 4 - 1.7**2)
    for probability, expected in ((0.05, 1.0), (0.49, 1.0), (0.79, 2.0), (0.95, 3.0)):
        assert weighted_quantile(values, weights, probability).item() == expected


def test_pareto_smoothed_weights():
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(100_000, generator=generator, dtype=torch.float64)
    # Pareto tails of shapes k
    true = torch.tensor([0.3, 0.6], dtype=torch.float64)
    weights, k = smoothed_weights(-true * uniform.log()[:, None])
    torch.testing.assert_close(weights.sum(0), torch.ones(2).double())
    # four standard errors: that of the fit to the 3 sqrt(100,000) = 949 largest is (1 + k) / sqrt(949), .04 and .05
    assert ((k - true).abs() < 4 * (1 + true) / 949**0.5).all()
    weights, k = smoothed_weights(torch.zeros(100))
    assert k == -torch.inf
    torch.testing.assert_close(weights, torch.full((100,), 0.01).double())
    _, k = smoothed_weights(torch.tensor([0.0] + [-1e4] * 99))
    assert k == torch.inf
