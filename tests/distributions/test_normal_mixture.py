"""Mixture of normals by one matrix product, against torch's own mixture."""

import pyro.distributions as dist
import pytest
import torch

from pplgen.distributions.normal_mixture import NormalMixture


def both(num_components=7, num_features=5, apart=3.0):
    torch.manual_seed(0)
    logits = torch.randn(num_components).double().requires_grad_()
    mu = (100 + apart * torch.randn(num_components, num_features).double()).requires_grad_()
    sigma = (torch.rand(num_components, num_features).double() + 0.1).requires_grad_()
    theirs = dist.MixtureSameFamily(dist.Categorical(logits=logits), dist.Normal(mu, sigma).to_event(1))
    return NormalMixture(logits, mu, sigma), theirs, (logits, mu, sigma)


@pytest.mark.parametrize("shape", [(), (4,), (3, 4)])
def test_density_and_gradients_are_those_of_the_sum_over_components(shape):
    ours, theirs, parameters = both()
    z = 100 + 3 * torch.randn(*shape, 5).double()
    given, expected = ours.log_prob(z), theirs.log_prob(z)
    assert given.shape == expected.shape == shape
    torch.testing.assert_close(given, expected, rtol=1e-10, atol=1e-9)
    gradients = (torch.autograd.grad(density.sum(), parameters) for density in (given, expected))
    for gradient, other in zip(*gradients, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-8, atol=1e-8)


def test_moments_and_draws_of_equal_mixtures():
    ours, theirs, _ = both()
    torch.testing.assert_close(ours.mean, theirs.mean)
    torch.testing.assert_close(ours.variance, theirs.variance)
    many = ours.expand(torch.Size([20_000]))
    assert many.batch_shape == (20_000,)
    assert many.mean.shape == many.variance.shape == (20_000, 5)
    draws = many.sample()
    assert draws.shape == (20_000, 5)
    # five standard errors of a mean of 20,000 draws
    assert ((draws.mean(0) - ours.mean).abs() < 5 * (ours.variance / 20_000).sqrt()).all()
    torch.testing.assert_close(many.log_prob(draws[0]), ours.log_prob(draws[0]).expand(20_000))


def test_single_precision_loses_little_in_multiplying_out():
    """Of codes as encoders put them out, deviations a hundredth of the distances."""
    torch.manual_seed(1)
    logits, mu, sigma = torch.zeros(500), 2 * torch.randn(500, 40), 0.02 + torch.rand(500, 40)
    z = mu[:100] + sigma[:100] * torch.randn(100, 40)
    exact = NormalMixture(logits.double(), mu.double(), sigma.double()).log_prob(z.double())
    # exponents reach some 10^4 beside the nearest component's, and have 7 digits
    assert (NormalMixture(logits, mu, sigma).log_prob(z) - exact).abs().max() < 0.02
