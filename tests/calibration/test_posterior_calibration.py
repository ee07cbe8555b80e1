"""Calibration around a fit's posterior: uniform for the exact posterior, not for a guide that is too narrow."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pplgen.models import GaussianMixture, LinearGaussianSSM
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

import pplgen
from pplgen.calibration.replication import replicated_datasets
from pplgen.errors import InputError

X = torch.randn(30, 2, generator=torch.Generator().manual_seed(1))
X[:, 1] = 0.95 * X[:, 0] + 0.3 * X[:, 1]
Y = X @ torch.tensor([1.0, -0.5]) + torch.randn(30, generator=torch.Generator().manual_seed(2))


def model(x, y):
    beta = pyro.sample("beta", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ beta, 1.0), obs=y)


@pytest.fixture(scope="module")
def fit():
    return pplgen.fit(model, (X, Y), AutoMultivariateNormal(model), progress=False)


def test_the_posterior_of_a_conjugate_regression_passes(fit):
    found = pplgen.calibrate(fit, num_datasets=100, steps=600, progress=False)
    assert found.passed
    # what is ranked are draws from the posterior given the rows and their replication
    expected = torch.linalg.inv(2 * X.T @ X + torch.eye(2)).diagonal().sqrt().numpy()
    # an sd of 199 draws has a relative standard error of .05, the mean over 100 fits .005; the rest is the fits' error
    assert abs(found.deviations[:, :2].mean(0) / expected - 1).max() < 0.05
    # four standard errors of an sd of 200 z-scores
    assert abs(found.z_scores[:, :2].std() - 1) < 4 * 400**-0.5


def test_truths_are_draws_from_the_posterior_and_rows_precede_those_of_the_fit(fit):
    with fit.pair.isolated():
        torch.manual_seed(1)
        latents, datasets = replicated_datasets(fit.pair, 400, None)
    precision = X.T @ X + torch.eye(2)
    mean, factor = torch.linalg.solve(precision, X.T @ Y), torch.linalg.cholesky(precision)
    standardised = (latents["beta"] - mean) @ factor
    # four standard errors of means and of sds of 400 standard normal draws
    assert standardised.mean(0).abs().max() < 4 * 400**-0.5
    assert (standardised.std(0) - 1).abs().max() < 4 * 800**-0.5
    x, y = datasets[3]
    torch.testing.assert_close(x, torch.cat([X, X]))
    torch.testing.assert_close(y[30:], Y)
    residuals = torch.stack([data[1][:30] - X @ beta for data, beta in zip(datasets, latents["beta"], strict=True)])
    # four standard errors of an sd of 12,000 standard normal draws
    assert abs(float(residuals.std()) - 1) < 4 * 24_000**-0.5


def test_a_guide_that_is_too_narrow_fails():
    narrow = pplgen.fit(model, (X, Y), AutoNormal(model), progress=False)
    found = pplgen.calibrate(narrow, num_datasets=60, steps=600, progress=False)
    assert not found.passed
    assert found.coverage.loc["beta[0]", 0.9] < 0.75
    assert any("too narrow" in check.remedy for check in found.checks())


def test_series_are_joined_to_those_of_the_fit():
    fit = pplgen.fit(LinearGaussianSSM.local_level(), "nile", progress=False)
    with fit.pair.isolated():
        latents, datasets = replicated_datasets(fit.pair, 5, None)
    assert {tuple(data.shape) for (data,) in datasets} == {(2, 100, 1)}
    torch.testing.assert_close(datasets[0][0][1:], fit.pair.data[0])
    assert set(latents) == {"m0", "s0", "q", "r"}


def test_what_cannot_be_joined_is_refused(faithful):
    labels = torch.full((272,), -1)
    labels[0] = 0
    fit = pplgen.fit(GaussianMixture(2, 2), faithful, labels=labels, steps=100, progress=False)
    with pytest.raises(InputError, match="labels or weights, which simulated rows do not have"):
        pplgen.calibrate(fit, num_datasets=10, progress=False)

    def without_plate(y):
        pyro.sample("y", dist.Normal(pyro.sample("m", dist.Normal(0.0, 1.0)), 1.0).expand([5]).to_event(1), obs=y)

    fit = pplgen.fit(without_plate, torch.zeros(5), steps=100, progress=False)
    with pytest.raises(InputError, match="expected a model with a plate of rows"):
        pplgen.calibrate(fit, num_datasets=10, progress=False)
