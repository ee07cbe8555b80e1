"""Errors of densities that are averaged over the draws of Markov chains."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.special import logsumexp

import pplgen
from pplgen.posterior.row_likelihood import LogLikelihood

Y = torch.tensor([0.3, -0.5, 1.2, 2.0])
CHAINS, DRAWS = 4, 1000


def schools(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, 1.0))
        pyro.sample("y", dist.Normal(theta, 1.0), obs=y)


def autoregressive(rho, columns):
    """Stationary chains with unit variance and correlation rho of neighbours, shape (CHAINS * DRAWS, columns)."""
    noise = torch.randn(DRAWS, CHAINS, columns, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    chain = [noise[0]]
    for step in noise[1:]:
        chain.append(rho * chain[-1] + math.sqrt(1 - rho**2) * step)
    return torch.stack(chain, 1).flatten(0, 1)


@pytest.mark.parametrize("rho", [0.0, 0.8])
def test_errors_of_chains_are_those_of_their_effective_sample_size(rho):
    u = autoregressive(rho, 400)
    found = LogLikelihood.from_draws((1 + 0.01 * u).log(), "exact", CHAINS)
    error = float(found.standard_error.square().mean().sqrt())
    # variance of the mean of an autoregression of order 1: (1 + rho) / (1 - rho) times that of independent draws
    expected = 0.01 * math.sqrt((1 + rho) / (1 - rho) / (CHAINS * DRAWS))
    # the estimated variances scatter by 8 % at rho = .8 over columns, .4 % for their mean; ESS is biased by up to 4 %
    assert error == pytest.approx(expected, rel=0.06)
    # the estimates of the columns are replicates: their standard deviation has a relative error of 1 / sqrt(800), 3.5 %
    assert float(found.as_subclass(torch.Tensor).std()) == pytest.approx(error, rel=0.15)
    independent = LogLikelihood.from_draws((1 + 0.01 * u).log(), "exact").standard_error
    assert float(independent.mean()) == pytest.approx(0.01 / math.sqrt(CHAINS * DRAWS), rel=0.06)


def test_errors_of_few_draws_are_not_known():
    found = LogLikelihood.from_draws(torch.tensor([[0.0], [1.0], [0.0], [2.0]]), "exact", 2)
    assert found.standard_error.isnan().all()


def test_densities_of_a_sampler_are_averaged_in_the_order_of_its_draws():
    fit = pplgen.fit(schools, Y, method="nuts", steps=60, warm_up=60, restarts=2, progress=False)
    found = fit.log_likelihood(draws=1000)
    # conditional on the latents of rows: at each draw of mu and theta, all of them
    draws = fit.to_datatree(groups=["posterior"])["posterior"]["theta"].values.reshape(120, 4)
    densities = -0.5 * (Y.numpy() - draws) ** 2 - 0.5 * math.log(2 * math.pi)
    np.testing.assert_allclose(found.numpy(), logsumexp(densities, 0) - math.log(120), rtol=1e-5)
    assert found.estimator == "exact"
    slow = torch.linspace(-1, 1, 60).repeat(2)[:, None].expand(-1, 4)
    fit.pair.guide.draws["theta"].copy_(slow)
    trending = fit.log_likelihood(draws=1000).standard_error
    order = torch.randperm(120, generator=torch.Generator().manual_seed(1))
    fit.pair.guide.draws["theta"].copy_(slow[order])
    shuffled = fit.log_likelihood(draws=1000).standard_error
    # a trend over each chain: about two effective draws of a chain instead of sixty
    assert (trending > 2 * shuffled).all()
