"""The continuous Bernoulli distribution against mpmath with 50 digits, also where torch's is wrong."""

import mpmath
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from pplgen.distributions import ContinuousBernoulli

mpmath.mp.dps = 50
LOGITS = [sign * size for size in (1e-12, 1e-6, 1e-3, 0.1, 0.5, 0.999, 1.001, 2.0, 10.0, 50.0) for sign in (-1, 1)]
VALUES = [0.0, 1e-3, 0.3, 0.5, 0.9, 1.0]
PROBABILITIES = [1e-6, 0.01, 0.4, 0.5, 0.75, 0.999]
# double the rounding error of numbers as large as the logits, 50, times the operations of a formula, about ten
TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-5}


def log_prob(a, x):
    return a * x - mpmath.log(mpmath.expm1(a) / a)


def quantile(a, u):
    return mpmath.log1p(u * mpmath.expm1(a)) / a


def rounded(value, dtype):
    """The number of this precision, exactly, as mpmath takes it."""
    return mpmath.mpf(torch.tensor(value, dtype=dtype).item())


def grid(dtype, others):
    a, x = torch.meshgrid(torch.tensor(LOGITS, dtype=dtype), torch.tensor(others, dtype=dtype), indexing="ij")
    return a.clone().requires_grad_(), x


def reference(function, dtype, others, derivative=0):
    """The function, or its derivative in the logit, with 50 digits."""
    rows = []
    for a in LOGITS:
        a = rounded(a, dtype)
        row = []
        for x in others:
            x = rounded(x, dtype)
            row.append(mpmath.diff(lambda a, x=x: function(a, x), a, derivative) if derivative else function(a, x))
        rows.append([float(value) for value in row])
    return torch.tensor(rows, dtype=torch.float64)


def largest_error(ours, theirs):
    """Absolute for numbers below one, relative above."""
    return ((ours.double() - theirs).abs() / theirs.abs().clamp_min(1)).max().item()


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_density_and_gradient(dtype):
    a, x = grid(dtype, VALUES)
    density = ContinuousBernoulli(logits=a).log_prob(x)
    assert largest_error(density, reference(log_prob, dtype, VALUES)) < TOLERANCE[dtype]
    (gradient,) = torch.autograd.grad(density.sum(), a)
    assert largest_error(gradient, reference(log_prob, dtype, VALUES, 1)) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_quantiles_and_their_gradients(dtype):
    """Draws are quantiles of uniform numbers, so that these are the reparameterisation's gradients."""
    a, u = grid(dtype, PROBABILITIES)
    x = ContinuousBernoulli(logits=a).icdf(u)
    assert largest_error(x, reference(quantile, dtype, PROBABILITIES)) < TOLERANCE[dtype]
    (gradient,) = torch.autograd.grad(x.sum(), a, create_graph=True)
    assert largest_error(gradient, reference(quantile, dtype, PROBABILITIES, 1)) < TOLERANCE[dtype]
    (curvature,) = torch.autograd.grad(gradient.sum(), a)
    assert largest_error(curvature, reference(quantile, dtype, PROBABILITIES, 2)) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_moments_are_derivatives_of_the_log_normaliser(dtype):
    q = ContinuousBernoulli(logits=torch.tensor(LOGITS, dtype=dtype))
    theirs = [-reference(lambda a, x: log_prob(a, 0 * x), dtype, [0.0], order).squeeze(-1) for order in (1, 2)]
    assert largest_error(q.mean, theirs[0]) < TOLERANCE[dtype]
    assert largest_error(q.variance, theirs[1]) < TOLERANCE[dtype]


def test_distribution_function_is_the_inverse_of_the_quantiles():
    a, u = grid(torch.float64, PROBABILITIES)
    q = ContinuousBernoulli(logits=a)
    # where the density is d an error of 1e-16 in x is one of d 1e-16 in the probability, and d is at most 50
    torch.testing.assert_close(q.cdf(q.icdf(u)), u, rtol=0, atol=1e-14)
    assert q.cdf(torch.ones(())).equal(torch.ones_like(a))


@pytest.mark.parametrize("logit", [-50.0, -1.0, 0.0, 1e-4, 3.0])
def test_draws_have_the_distribution(logit):
    torch.manual_seed(0)
    q = ContinuousBernoulli(logits=torch.tensor(logit, dtype=torch.float64)).expand([2])
    draws = q.rsample([1000])
    assert draws.shape == (1000, 2)
    # rejected at one seed in 10,000 if the draws are right
    assert (
        stats.kstest(draws.flatten().numpy(), lambda x: q.cdf(torch.as_tensor(x)[:, None])[:, 0].numpy()).pvalue > 1e-4
    )


def test_torch_has_other_gradients():
    """Those of its draws vanish around one half, those of its density are .05 off where probabilities round to one."""
    gradients = {}
    for kind in (ContinuousBernoulli, dist.ContinuousBernoulli):
        a = torch.tensor([1e-3, 20.0], requires_grad=True)
        drawn = kind(logits=a).icdf(torch.tensor(0.3))[0]
        density = kind(logits=a).log_prob(torch.tensor(0.25))[1]
        gradients[kind] = [torch.autograd.grad(drawn, a)[0][0].item(), torch.autograd.grad(density, a)[0][1].item()]
    exact = [
        float(mpmath.diff(lambda a: quantile(a, 0.3), 1e-3)),
        float(mpmath.diff(lambda a: log_prob(a, 0.25), 20.0)),
    ]
    assert gradients[ContinuousBernoulli] == pytest.approx(exact, abs=1e-6)
    assert gradients[dist.ContinuousBernoulli] == [0.0, pytest.approx(exact[1] - 0.05)]


def test_probabilities_and_logits_are_one_parameter():
    q = ContinuousBernoulli(torch.tensor([0.2, 0.7]))
    torch.testing.assert_close(q.logits, torch.tensor([0.2, 0.7]).logit())
    torch.testing.assert_close(q.probs, torch.tensor([0.2, 0.7]))
    with pytest.raises(ValueError, match="either probs or logits"):
        ContinuousBernoulli()
