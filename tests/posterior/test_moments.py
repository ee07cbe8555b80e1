"""Moments and quantiles of mixtures and weighted draws."""

import pytest
import torch

from pplgen.posterior.moments import GaussianMixtures, weighted_moments, weighted_quantile


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
