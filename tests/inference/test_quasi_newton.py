"""Fits that end with L-BFGS over fixed draws."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pplgen.models import VAE, GaussianMixture
from pyro.distributions import constraints

import pplgen
from pplgen.errors import InputError
from pplgen.inference.training_result import StopReason
from pplgen.storage import checkpoint
from pplgen.verification.posterior_accuracy import APPROXIMATE_MEAN_ERROR, RESPONSE_ERROR, SD_ERROR, errors

Y = torch.linspace(2.0, 6.0, 50)


def normal(y):
    mu, sigma = pyro.sample("mu", dist.Normal(0.0, 10.0)), pyro.sample("sigma", dist.Exponential(1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, sigma), obs=y)


@pytest.mark.parametrize(
    "name", ["normal-double", "normal-single", "gamma-poisson", "dirichlet-multinomial", "regression-full-rank"]
)
def test_a_guide_that_holds_the_posterior_is_it(name):
    mean_error, sd_error = errors(name, 0)
    # Monte Carlo error of the optimum: at most .01 posterior sd in quadratic mean, here over up to 27 parameters
    assert mean_error < 0.05
    assert sd_error < SD_ERROR


@pytest.mark.parametrize("name", ["normal-sd", "regression-mean-field", "poisson"])
def test_linear_response_has_the_posterior_s_width_where_the_guide_has_not(name):
    mean_error, sd_error = errors(name, 0)
    assert mean_error < APPROXIMATE_MEAN_ERROR  # of the family, which in other data sets errs more than in these
    assert sd_error < 1.5 * RESPONSE_ERROR


def test_two_runs_are_one():
    fits = [pplgen.fit(normal, Y, seed=3, progress=False) for _ in range(2)]
    assert fits[0].best.optimum == fits[1].best.optimum
    assert fits[0].stop is StopReason.CONVERGED
    assert fits[0].path == "the traced graph, then L-BFGS"
    np.testing.assert_array_equal(fits[0].best.final, fits[1].best.final)
    assert fits[0].covariance().equals(fits[1].covariance())


def test_the_monte_carlo_error_is_the_spread_over_seeds():
    fits = [pplgen.fit(normal, Y, seed=seed, progress=False) for seed in range(4)]
    found = [fit.best.optimum for fit in fits]
    assert all(found), "each ends at a stationary point"
    sds = np.array([float(fit.covariance("guide").loc["sigma", "sigma"]) ** 0.5 for fit in fits])
    # the relative error of a standard deviation is 1 / sqrt(2) of that of a mean in sd; a factor of 4 for chance, and
    # that of the 4,096 draws of covariance
    assert sds.std() / sds.mean() < 4 * max(one.monte_carlo_error for one in found) / math.sqrt(2) + 4 / math.sqrt(8192)


@pytest.mark.parametrize(
    ("model", "data", "options"),
    [
        (VAE(3, 1, hidden=(4,)), torch.rand(30, 3), {}),
        (normal, Y, {"batch_size": 10}),
        (normal, Y, {"augment": lambda y: y + 0.0}),
        (normal, Y, {"elbo": "score-function"}),
        (normal, Y, {"optimiser": "adam"}),
        (normal, Y, {"compile": "off"}),
    ],
    ids=["network", "minibatches", "augmentation", "score", "adam", "plain"],
)
def test_where_it_does_not_apply_adam_goes_on(model, data, options):
    fit = pplgen.fit(model, data, steps=300, progress=False, **options)
    assert fit.best.optimum is None
    assert "L-BFGS" not in fit.path + fit.how
    with pytest.raises(InputError, match="need a fit that ended with L-BFGS"):
        fit.covariance()


def test_a_killed_last_phase_is_repeated_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint.Checkpoint, "due", lambda self: True)
    options = {"restarts": 2, "compile": "graph"}
    expected = pplgen.fit(normal, Y, progress=False, **options)

    def die(update):
        if update.doing == "L-BFGS":
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        pplgen.fit(normal, Y, checkpoint=tmp_path, progress=die, **options)
    for _ in range(2):  # resumed, and once more when it has ended
        again = pplgen.fit(normal, Y, checkpoint=tmp_path, progress=False, **options)
        for run, other in zip(again.runs, expected.runs, strict=True):
            np.testing.assert_array_equal(run.final, other.final)
            assert (run.elbo, run.optimum) == (other.elbo, other.optimum)


def test_a_line_search_steps_back_from_where_the_density_is_not_finite():
    def walled(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        pyro.factor("wall", (6.0 - mu).log())

    def guide(y):
        loc = pyro.param("loc", torch.tensor(-20.0))
        scale = pyro.param("scale", torch.tensor(0.1), constraints.interval(0.01, 0.3))
        pyro.sample("mu", dist.Normal(loc, scale))

    fit = pplgen.fit(walled, Y, guide, progress=False)
    assert fit.best.optimum is not None
    grid = torch.linspace(3.0, 5.9, 20_001, dtype=torch.float64)
    density = -0.5 * (Y.double() - grid[:, None]).square().sum(-1) + (6 - grid).log() - grid.square() / 200
    mean = density.softmax(0) @ grid
    # a normal guide of a posterior that is almost normal: sd .14, Monte Carlo error .01 of it
    assert fit.covariance("guide").iloc[0, 0] ** 0.5 == pytest.approx(0.14, rel=0.05)
    with fit.pair.isolated():
        assert pyro.param("loc").item() == pytest.approx(mean.item(), abs=0.02)


def test_a_saved_optimum_is_loaded(tmp_path):
    fit = pplgen.fit(GaussianMixture(2, 1), Y[:, None].sin(), progress=False)
    fit.save(tmp_path / "run")
    again = pplgen.load(tmp_path / "run")
    assert again.best.optimum == fit.best.optimum
    assert again.how == fit.how


def test_nothing_is_compiled_for_steps_that_are_not_taken(monkeypatch):
    """A fit that ends with L-BFGS after its first window does not pay for a compiler, however slow its steps are."""
    monkeypatch.setattr("pplgen.inference.batched_restarts.compiling_repays", lambda *_: True)
    monkeypatch.setattr("pplgen.inference.engine.Engine.compile", lambda *_: pytest.fail("compiled in vain"))
    fit = pplgen.fit(GaussianMixture(2, 2), "faithful", progress=False)
    assert fit.path == "the traced graph, then L-BFGS"


def test_the_optimum_does_not_need_the_hessian(monkeypatch):
    """Of large problems only the diagonal of the Hessian is estimated."""
    exact = pplgen.fit(normal, Y, progress=False)
    monkeypatch.setattr("pplgen.inference.quasi_newton_search.MAX_HESSIAN_TOTAL", 0)
    estimated = pplgen.fit(normal, Y, progress=False)
    for fit in (exact, estimated):
        assert fit.best.optimum.gradient_norm <= fit.best.optimum.tolerance
    sd = float(exact.covariance("guide").loc["mu", "mu"]) ** 0.5
    means = [fit.pair.guide.locs.mu.item() for fit in (exact, estimated)]
    # each optimum is within its Monte Carlo error, in standard deviations, of that of the ELBO
    error = max(fit.best.optimum.monte_carlo_error for fit in (exact, estimated))
    assert means[0] == pytest.approx(means[1], abs=4 * error * math.sqrt(2) * sd)
