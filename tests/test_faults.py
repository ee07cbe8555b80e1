"""What is infinite or NaN: the way back from it, the site and the rows that are named, and what comes of restarts."""

import math
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints

import pplgen
from pplgen.errors import DataWarning, InputError
from pplgen.faults import STRIKES, explain
from pplgen.isolation import seeded
from pplgen.pair import Pair
from pplgen.training import StopReason

Y = torch.linspace(-1.0, 2.0, 40)
PRECISION = len(Y) + 0.01
ROW = 17
"""The row that is spoilt, counted from 1."""
PATHS = ("off", "graph")


def plain(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def spoilt(limit):
    """Return the model with a density that is NaN in one row once the mean is above a limit."""

    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        defect = torch.where((y == Y[ROW - 1]) & (mu > limit), math.nan, 0.0)
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu + defect, 1.0), obs=y)

    return model


def guide_from(start, scale=0.1):
    def guide(y):
        loc = pyro.param("loc", lambda: torch.tensor(float(start() if callable(start) else start)))
        spread = pyro.param("scale", torch.tensor(scale), constraint=constraints.positive)
        pyro.sample("mu", dist.Normal(loc, spread))

    return guide


def fitted(model, guide, data=Y, **options):
    """Fit, and return what was warned of too."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        fit = pplgen.fit(model, data, guide, progress=False, **options)
    assert all(warning.category is DataWarning for warning in seen), "Pyro's own warnings say nothing more"
    return fit, [str(warning.message) for warning in seen]


def location(fit):
    with fit.pair.isolated():
        return pyro.param("loc").item(), pyro.param("scale").item()


@pytest.mark.parametrize("path", PATHS)
def test_a_run_goes_back_names_the_row_and_ends_where_it_should(path):
    # Adam overshoots the posterior, .5 +- .16, by more than .5 at a rate of 1, and not at .1
    fit, said = fitted(spoilt(1.5), guide_from(-1.0), learning_rate=1.0, compile=path)
    assert len(said) == len(fit.best.faults) == 1
    assert f"the log density of 'y' is NaN at row {ROW}, where loc of Normal is NaN; on from step" in said[0]
    assert "with learning rate 0.1 (fault 1 of 3)" in said[0]
    assert fit.stop is StopReason.CONVERGED
    loc, scale = location(fit)
    assert loc == pytest.approx((Y.sum() / PRECISION).item(), abs=PRECISION**-0.5)  # a deviation: rates end at .01
    assert scale == pytest.approx(PRECISION**-0.5, rel=0.2)
    assert np.isfinite(fit.best.history).all()


@pytest.mark.parametrize("path", PATHS)
def test_a_learning_rate_that_is_far_too_large_is_lowered_until_it_works(path):
    # the exponential of a hundred overflows in single precision, so that the first step goes wrong
    fit, said = fitted(plain, guide_from(-1.0), learning_rate=100.0, compile=path)
    assert 1 <= len(said) < STRIKES
    assert "step 2:" in said[0]
    assert "on from step 0 with learning rate 10 (fault 1 of 3)" in said[0]
    loc, scale = location(fit)
    assert loc == pytest.approx((Y.sum() / PRECISION).item(), abs=PRECISION**-0.5)
    assert scale == pytest.approx(PRECISION**-0.5, rel=0.2)


@pytest.mark.parametrize("path", PATHS)
def test_three_strikes_end_a_run_with_a_verdict(path, capsys):
    """The posterior lies where the density is NaN, so that no learning rate helps."""
    model = spoilt(0.0)
    # steps of .02 cross zero from -1 in fifty steps, those of .002 in five windows
    fit, said = fitted(model, guide_from(-1.0, 0.001), steps=1500, compile=path)
    assert len(said) == len(fit.best.faults) == STRIKES
    assert all(f"'y' is NaN at row {ROW}" in sentence for sentence in said)
    assert "(fault 3 of 3)" in said[-1]
    assert fit.stop is StopReason.NOT_FINITE
    assert location(fit)[0] < 0
    assert math.isfinite(fit.elbo)
    fit.summary()
    printed = " ".join(capsys.readouterr().out.split())
    assert "ever lower learning rates" in printed
    assert f"NaN at row {ROW}" in printed
    check = next(each for each in fit.diagnose() if each.name == "times the run was infinite or NaN")
    assert (check.value, check.verdict) == (3, "fail")


@pytest.mark.parametrize("path", PATHS)
def test_what_is_never_finite_is_an_error_that_names_the_row(path):
    named = rf"before any good state: step 1: the log density of 'y' is NaN at row {ROW}, where loc of Normal is NaN"
    with (
        pytest.raises(InputError, match=named),
        pytest.warns(DataWarning, match="fault 3 of 3"),
        pyro.validation_enabled(False),
    ):
        pplgen.fit(spoilt(-5.0), Y, guide_from(-1.0), compile=path, progress=False)


@pytest.mark.parametrize("path", PATHS)
def test_rows_of_a_minibatch_are_those_of_the_data(path):
    with (
        pytest.raises(InputError, match=rf"'y' is NaN at row {ROW}, where"),
        pytest.warns(DataWarning),
        pyro.validation_enabled(False),
    ):
        pplgen.fit(spoilt(-5.0), Y, guide_from(-1.0), batch_size=10, compile=path, progress=False)


def rooted(y):
    """The square root of zero has an infinite gradient; the density stays finite."""
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    distance = (mu - mu.detach()) * (y == Y[ROW - 1]) + (y != Y[ROW - 1])
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu + distance.sqrt(), 1.0), obs=y)


@pytest.mark.parametrize("path", PATHS)
def test_a_gradient_that_is_not_finite_is_named_with_its_operation(path):
    named = rf"step 1: the gradient of the log density of 'y' is infinite, in sqrt at row {ROW}"
    with pytest.raises(InputError, match=named), pytest.warns(DataWarning):
        pplgen.fit(rooted, Y, guide_from(-1.0), compile=path, progress=False)


def covariances(rho, matrix=False, **kind):
    """Two columns whose covariance, of one row alone where told so, is no covariance once ``rho`` is above 1."""

    def model(x):
        correlation = pyro.sample("rho", dist.Normal(0.0, 1.0))
        ones = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        with pyro.plate("data", len(x)):
            each = torch.where(torch.arange(len(x)) == 2, correlation, 0.0)[:, None, None] * ones
            S = torch.eye(2) + each
            if matrix:
                pyro.sample("x", dist.MultivariateNormal(torch.zeros(2), scale_tril=torch.linalg.cholesky(S)), obs=x)
            else:
                pyro.sample("x", dist.MultivariateNormal(torch.zeros(2), **{kind["by"]: S}), obs=x)

    return model


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"by": "covariance_matrix"}, "x: covariance_matrix of MultivariateNormal is not positive definite"),
        ({"by": "precision_matrix"}, "x: precision_matrix of MultivariateNormal is not positive definite"),
        ({"matrix": True}, "x: the matrix whose Cholesky factor is scale_tril of MultivariateNormal is not positive"),
    ],
)
def test_a_matrix_without_a_cholesky_factor_is_named(options, sentence):
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))

    def guide(x):
        pyro.sample("rho", dist.Delta(pyro.param("at", torch.tensor(0.5))))

    pair = Pair(covariances(0.5, **options), guide, (x,))
    with seeded(0), pair.isolated():
        assert explain(pair, pair.elbo(), pair.data) is None
        pair.restore({"at": torch.tensor(1.25)})
        found = explain(pair, pair.elbo(), pair.data)
    # eigenvalues of [[1, r], [r, 1]] are 1 - r and 1 + r
    assert found.startswith(sentence)
    assert found.endswith("definite, smallest eigenvalue -0.25 at row 3")


@pytest.mark.parametrize("path", PATHS)
def test_a_run_goes_back_from_a_matrix_without_a_factor(path):
    """In a graph a factorisation that fails must not pass for finite, nor stop the others."""
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    x[2] = torch.tensor([2.0, 2.0])  # its likelihood rises in rho, up to .66
    starts = iter([0.5, 0.5, 0.5])

    def guide(x):
        pyro.sample("rho", dist.Delta(pyro.param("at", lambda: torch.tensor(next(starts)))))

    fit, said = fitted(
        covariances(0.5, by="covariance_matrix"), guide, x, learning_rate=2.0, steps=600, restarts=2, compile=path
    )
    assert fit.num_failed == 0
    assert all("x: covariance_matrix of MultivariateNormal is not positive definite" in sentence for sentence in said)
    assert all(len(run.faults) >= 1 for run in fit.runs)
    with fit.pair.isolated():
        assert abs(pyro.param("at").item()) < 1


def test_a_broken_restart_leaves_the_others_alone():
    """Three good restarts end bit for bit where they end beside a fourth that is good as well."""
    options = {"restarts": 4, "steps": 400, "compile": "graph"}

    def runs(third):
        starts = iter([-1.0, -0.5, third, -2.0])
        return fitted(spoilt(5.0), guide_from(lambda: next(starts)), **options)

    (healthy, nothing), (fit, said) = runs(0.0), runs(9.0)
    assert nothing == []
    assert (healthy.num_failed, fit.num_failed, len(fit.runs)) == (0, 1, 3)
    assert [sentence.partition(",")[0] for sentence in said] == ["restart 3"] * STRIKES
    others = [run for index, run in enumerate(healthy.runs) if index != 2]
    for run, expected in zip(fit.runs, others, strict=True):
        np.testing.assert_array_equal(run.history, expected.history)
        np.testing.assert_array_equal(run.final, expected.final)
        assert run.elbo == expected.elbo
        assert run.faults == ()
    assert fit.elbo == max(run.elbo for run in others)


def test_a_broken_restart_in_plain_pyro_is_dropped_too():
    starts = iter([-1.0, 9.0, -0.5])
    with pyro.validation_enabled(False):
        fit, said = fitted(spoilt(5.0), guide_from(lambda: next(starts)), restarts=3, steps=100, compile="off")
    assert (fit.num_failed, len(fit.runs), len(said)) == (1, 2, STRIKES)
    assert math.isfinite(fit.spread)
    assert fit.num_agreeing >= 1


def collapsing(y):
    """A density without bound where the scale of one restart shrinks to nothing on the point at zero."""
    loc, log_scale = pyro.param("loc"), pyro.param("log_scale")
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(loc, log_scale.exp()), obs=torch.zeros_like(y))


def test_a_density_that_collapses_on_a_point_is_never_the_best():
    starts = iter([1.0, 0.0, 1.0])

    def guide(y):
        loc = pyro.param("loc", lambda: torch.tensor(next(starts)))
        log_scale = pyro.param("log_scale", lambda: torch.where(loc == 0, torch.tensor(-80.0), torch.tensor(0.0)))
        pyro.sample("mu", dist.Normal(loc, 1.0))
        return log_scale

    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(0 * mu + (pyro.param("loc") - mu) * 0, pyro.param("log_scale").exp()), obs=y)

    fit, said = fitted(model, guide, torch.zeros(20), restarts=3, steps=500, learning_rate=0.1, compile="graph")
    assert said
    assert fit.num_failed == 1
    assert all(math.isfinite(run.elbo) for run in fit.runs)
