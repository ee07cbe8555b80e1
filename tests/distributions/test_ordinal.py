"""Ordered categories against differences of SciPy's distribution functions, and ordered vectors against their order."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch.distributions import biject_to

import pplgen
from pplgen.distributions import OrderStatistics, ordered_logistic, ordered_probit

CUTPOINTS = torch.tensor([-1.5, 0.2, 0.3, 4.0], dtype=torch.float64)
KINDS = [(ordered_logistic, stats.logistic), (ordered_probit, stats.norm)]


@pytest.mark.parametrize(("make", "noise"), KINDS)
def test_categories_are_intervals_of_the_latent_variable(make, noise):
    predictor = torch.linspace(-4, 4, 9, dtype=torch.float64)
    q = make(predictor, CUTPOINTS)
    edges = np.concatenate([[-np.inf], CUTPOINTS.numpy(), [np.inf]])
    theirs = np.diff(noise.cdf(edges - predictor.numpy()[:, None]), axis=-1)
    np.testing.assert_allclose(q.probs.numpy(), theirs, atol=1e-14)
    # every category in turn: log probabilities of all of them, which sum to one
    values = q.enumerate_support()
    assert values.shape == (5, 9)
    np.testing.assert_allclose(q.log_prob(values).exp().numpy(), theirs.T, atol=1e-14)
    np.testing.assert_allclose(q.log_prob(values).logsumexp(0).numpy(), 0, atol=1e-14)


def test_logistic_categories_are_pyros():
    predictor = torch.linspace(-3, 3, 7, dtype=torch.float64)
    theirs = dist.OrderedLogistic(predictor, CUTPOINTS)
    torch.testing.assert_close(ordered_logistic(predictor, CUTPOINTS).probs, theirs.probs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("offset", [-30.0, 30.0])
@pytest.mark.parametrize(("make", "noise"), KINDS)
def test_improbable_categories(make, noise, offset, dtype):
    """Where the difference of the distribution functions rounds to zero, in nats, with finite gradients."""
    predictor = torch.tensor(offset, dtype=dtype, requires_grad=True)
    log_probs = make(predictor, CUTPOINTS.to(dtype)).logits
    lower, upper = CUTPOINTS[1].item() - offset, CUTPOINTS[2].item() - offset
    # of the tails on the side where both edges are, the larger first
    tails = [noise.logsf(lower), noise.logsf(upper)] if offset < 0 else [noise.logcdf(upper), noise.logcdf(lower)]
    exact = tails[0] + math.log(-math.expm1(tails[1] - tails[0]))
    # cutpoints .1 apart are rounded to one part in 1e7, hence their distance to 1e-5
    assert log_probs[2].item() == pytest.approx(exact, rel=1e-12 if dtype is torch.float64 else 1e-5)
    (gradient,) = torch.autograd.grad(log_probs.sum(), predictor)
    assert gradient.isfinite()


def test_the_order_statistics_have_their_density():
    """Over all orders the unordered density is the same, so that n! of it integrates to one; SciPy integrates pairs."""
    prior = OrderStatistics(dist.Normal(torch.tensor(0.5).double(), 2.0), 2)
    grid = torch.linspace(-12, 13, 501, dtype=torch.float64)
    pairs = torch.cartesian_prod(grid, grid).unflatten(0, (501, 501))
    density = prior.log_prob(pairs).exp().where(pairs[..., 1] > pairs[..., 0], 0.0)
    diagonal = 0.5 * prior.log_prob(torch.stack([grid, grid], -1)).exp()
    # the trapezoidal rule in steps of .05 with half weight on the diagonal, wrong by the square of the step
    assert ((density.sum() + diagonal.sum()) * 0.05**2).item() == pytest.approx(1, abs=1e-3)


def test_draws_are_sorted_and_have_the_beta_distribution_of_ranks():
    torch.manual_seed(0)
    prior = OrderStatistics(dist.Normal(torch.zeros(2), 1.0), 3)
    draws = prior.rsample([2000])
    assert draws.shape == (2000, 2, 3)
    assert (draws.diff(dim=-1) > 0).all()
    # the k-th smallest of three uniform numbers is Beta(k, 4 - k); each rejected at one seed in 10,000
    for k in range(3):
        ranks = stats.norm.cdf(draws[:, 1, k].numpy())
        assert stats.kstest(ranks, stats.beta(k + 1, 3 - k).cdf).pvalue > 1e-4
    assert prior.log_prob(draws).shape == (2000, 2)
    assert prior.expand([5, 2]).sample().shape == (5, 2, 3)


def test_the_bijection_to_the_support_has_its_jacobian():
    transform = biject_to(OrderStatistics(dist.Normal(0.0, 1.0), 4).support)
    x = torch.tensor([0.3, -1.0, 0.5, 2.0], dtype=torch.float64)
    y = transform(x)
    assert (y.diff() > 0).all()
    torch.testing.assert_close(transform.inv(y), x)
    jacobian = torch.autograd.functional.jacobian(transform, x)
    torch.testing.assert_close(transform.log_abs_det_jacobian(x, y), jacobian.slogdet().logabsdet)


@pytest.mark.parametrize("make", [ordered_logistic, ordered_probit])
def test_many_cutpoints_at_once_equal_one_by_one(make):
    """``vmap`` over draws, which in-place writes have no rule for; with Pyro's own distribution it fails."""
    torch.manual_seed(0)
    prior = OrderStatistics(dist.Normal(torch.tensor(0.0), 2.0), 3)
    predictor, y, draws = torch.randn(6), torch.tensor([0, 1, 2, 3, 1, 0]), prior.sample([5])

    def density(cutpoints):
        return prior.log_prob(cutpoints) + make(predictor, cutpoints).log_prob(y).sum()

    def gradient(cutpoints):
        return torch.func.grad(density)(cutpoints)

    torch.testing.assert_close(torch.vmap(density)(draws), torch.stack([density(c) for c in draws]))
    torch.testing.assert_close(torch.vmap(gradient)(draws), torch.stack([gradient(c) for c in draws]))
    with pytest.raises(RuntimeError, match="vmap"):
        torch.vmap(lambda cutpoints: dist.OrderedLogistic(predictor, cutpoints, validate_args=False).logits)(draws)


def test_restarts_of_an_ordinal_pair_run_as_one_program():
    torch.manual_seed(0)
    x = torch.randn(60)
    y = torch.bucketize(x + 0.3 * torch.randn(60), torch.tensor([-0.5, 0.5]))

    def model(x, y):
        slope = pyro.sample("slope", dist.Normal(0.0, 3.0))
        cutpoints = pyro.sample("cutpoints", OrderStatistics(dist.Normal(torch.tensor(0.0), 3.0), 2))
        with pyro.plate("data", len(x)):
            pyro.sample("y", ordered_logistic(slope * x, cutpoints), obs=y)

    fit = pplgen.fit(model, (x, y), restarts=2, steps=60, optimiser="adam", compile="graph", progress=False)
    assert fit.path == "the traced graph"
