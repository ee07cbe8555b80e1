"""Distributions of counts against SciPy, at extreme means, dispersions and counts."""

import mpmath
import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from pplgen.distributions import NegativeBinomial2, zero_inflated_negative_binomial, zero_inflated_poisson

MEANS, DISPERSIONS, COUNTS = (
    [1e-6, 1e-2, 1.0, 30.0, 1e6],
    [1e-4, 0.5, 20.0, 1e6],
    [0, 1, 2, 15, 16, 500, 999_000, 10**6],
)
# rounding of log probabilities relative to their size, or to the thousand that cancels where both are 1e6
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-4}


def exact_negative_binomial(k, m, phi):
    with mpmath.workdps(60):
        k, m, phi = map(mpmath.mpf, (k, m, phi))
        choose = mpmath.loggamma(k + phi) - mpmath.loggamma(phi) - mpmath.loggamma(k + 1)
        return float(choose + phi * mpmath.log(phi / (phi + m)) + k * mpmath.log(m / (phi + m)))


def cases(dtype):
    grid = torch.cartesian_prod(*(torch.tensor(each, dtype=dtype) for each in (MEANS, DISPERSIONS, COUNTS)))
    return grid.unbind(-1)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_negative_binomial_at_extremes(dtype):
    mean, dispersion, counts = cases(dtype)
    theirs = [
        exact_negative_binomial(*case) for case in zip(*(x.tolist() for x in (counts, mean, dispersion)), strict=True)
    ]
    mean.requires_grad_()
    dispersion.requires_grad_()
    ours = NegativeBinomial2(mean, dispersion).log_prob(counts)
    theirs = torch.tensor(theirs, dtype=torch.float64)
    error = (ours.double() - theirs).abs() / theirs.abs().clamp_min(1)
    assert error.max() < TOLERANCE[dtype]
    gradients = torch.autograd.grad(ours.sum(), (mean, dispersion))
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_negative_binomial_is_scipys():
    mean, dispersion, counts = cases(torch.float64)
    usual = (counts <= 500) & (mean <= 30) & (dispersion <= 20)
    mean, dispersion, counts = mean[usual], dispersion[usual], counts[usual]
    theirs = stats.nbinom.logpmf(counts.numpy(), dispersion.numpy(), (dispersion / (dispersion + mean)).numpy())
    np.testing.assert_allclose(
        NegativeBinomial2(mean, dispersion).log_prob(counts).numpy(), theirs, rtol=1e-9, atol=1e-9
    )


def test_gradients_are_those_of_the_usual_formula():
    """Pyro's density in float64, where it is right."""
    mean, dispersion = torch.tensor([[0.3, 4.0, 20.0], [2.0, 0.7, 30.0]], dtype=torch.float64)
    counts = torch.tensor([0.0, 3.0, 40.0], dtype=torch.float64)
    gradients = []
    for make in (NegativeBinomial2, lambda m, phi: dist.GammaPoisson(phi, phi / m)):
        parameters = mean.clone().requires_grad_(), dispersion.clone().requires_grad_()
        gradients.append(torch.stack(torch.autograd.grad(make(*parameters).log_prob(counts).sum(), parameters)))
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


def test_moments_of_draws():
    torch.manual_seed(0)
    q = NegativeBinomial2(torch.tensor(3.0), torch.tensor(2.0)).expand([4])
    assert q.variance.tolist() == [3 + 9 / 2] * 4
    draws = q.sample([100_000]).double()
    # four standard errors: sqrt(7.5 / 400,000), and of the variance with the fourth central moment of about 540
    assert draws.mean().item() == pytest.approx(3.0, abs=4 * (7.5 / 4e5) ** 0.5)
    assert draws.var().item() == pytest.approx(7.5, abs=4 * (540 / 4e5) ** 0.5)


@pytest.mark.parametrize("logit", [-80.0, -1.0, 0.0, 4.0, 80.0])
def test_zero_inflated_poisson(logit):
    counts, rate = torch.tensor([0.0, 1.0, 7.0]).double(), torch.tensor([0.1, 3.0, 500.0]).double()[:, None]
    ours = zero_inflated_poisson(rate, torch.tensor(logit).double()).log_prob(counts)
    poisson = stats.poisson.logpmf(counts.numpy(), rate.numpy())
    log_extra, log_other = -np.logaddexp(0, -logit), -np.logaddexp(0, logit)
    mixed = np.where(counts == 0, np.logaddexp(log_extra, log_other + poisson), log_other + poisson)
    np.testing.assert_allclose(ours.numpy(), mixed, rtol=1e-12, atol=1e-12)


def test_poisson_part_keeps_its_digits_in_float32():
    """A count of a million has log probability -7.8; torch's in float32 is off by tenths of a nat."""
    counts, logit = torch.tensor([999_000.0, 1e6, 1_002_000.0]), torch.tensor(-80.0)
    ours = zero_inflated_poisson(torch.tensor(1e6), logit).log_prob(counts)
    np.testing.assert_allclose(ours.numpy(), stats.poisson.logpmf(counts.numpy(), 1e6), atol=5e-4)
    torchs = dist.Poisson(torch.tensor(1e6)).log_prob(counts)
    assert abs(torchs.numpy() - stats.poisson.logpmf(counts.numpy(), 1e6)).max() > 0.05


@pytest.mark.parametrize("logit", [-1.0, 2.0])
def test_zero_inflated_negative_binomial(logit):
    q = zero_inflated_negative_binomial(*torch.tensor([3.0, 0.5, logit]).double())
    counts = torch.arange(6.0).double()
    extra = 1 / (1 + np.exp(-logit))
    theirs = extra * (counts.numpy() == 0) + (1 - extra) * stats.nbinom.pmf(counts.numpy(), 0.5, 0.5 / 3.5)
    np.testing.assert_allclose(q.log_prob(counts).exp().numpy(), theirs, rtol=1e-12)
    assert q.mean.item() == pytest.approx((1 - extra) * 3)
    torch.manual_seed(0)
    zeros = (q.sample([40_000]) == 0).double().mean().item()
    # four standard errors of a frequency
    assert zeros == pytest.approx(theirs[0], abs=4 * (theirs[0] * (1 - theirs[0]) / 4e4) ** 0.5)


def test_draws_at_extremes_are_finite():
    mean, dispersion, _ = cases(torch.float32)
    assert NegativeBinomial2(mean, dispersion).sample([20]).isfinite().all()
