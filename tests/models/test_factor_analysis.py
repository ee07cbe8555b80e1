"""Factor analysis against EM."""

import pytest
import torch
from pplgen.models import FactorAnalysis

import pplgen
from pplgen.exact.ppca import em_factor_analysis


@pytest.fixture(scope="module")
def fit(wine):
    return pplgen.fit(FactorAnalysis(13, 2), wine, compile="graph", progress=False)


def test_bound_is_the_maximum_of_the_likelihood(wine, fit):
    # the published maximum; what is left to gain at the plateau
    assert fit.elbo == pytest.approx(-2747.19105, abs=0.001)
    exact = em_factor_analysis(wine, 2).parameters
    W, _, sigma = fit.story.constants.values()
    # parameters are flat to second order around the maximum: the root of what is left
    torch.testing.assert_close(W @ W.T, exact.W @ exact.W.T, atol=0.005, rtol=0)
    torch.testing.assert_close(sigma.square(), exact.psi, atol=0.005, rtol=0)


def test_units_of_a_column_change_nothing_else(wine, fit):
    units = torch.logspace(-3, 3, 13, dtype=wine.dtype)
    again = pplgen.fit(FactorAnalysis(13, 2), units * wine + 5, compile="graph", progress=False)
    # gradient norms of up to .001 in the metric of the Hessian, over 52 parameters: 52 / 2 * .001^2 nats each
    assert again.elbo + len(wine) * units.log().sum().item() == pytest.approx(fit.elbo, abs=2e-4)
    sigma = fit.story.constants["sigma"]
    torch.testing.assert_close(again.story.constants["sigma"] / units, sigma, rtol=1e-3, atol=0)


def test_a_factor_may_take_a_column_over(wine):
    """Two columns that are the same: the likelihood has no maximum, the fit has a least deviation."""
    x = torch.cat([wine[:, :3], wine[:, :1]], dim=1)
    fit = pplgen.fit(FactorAnalysis(4, 1), x, steps=600, compile="graph", progress=False)
    sigma = fit.story.constants["sigma"]
    assert sigma.isfinite().all()
    assert sigma[0] < 0.05
    assert sigma[3] < 0.05
