"""What is infinite or NaN: the way back from it, the site and the rows that are named, and what comes of restarts."""

import dataclasses
import itertools
import json
import math
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pplgen.models import GaussianMixture
from pyro.distributions import constraints

import pplgen
from pplgen.checks.inputs import CheckInputs
from pplgen.checks.optimisation import faults
from pplgen.compiler.graph import trace
from pplgen.errors import DataWarning, InputError
from pplgen.inference.iterates import Iterates
from pplgen.inference.nonfinite_policy import MAX_NON_FINITE
from pplgen.inference.nonfinite_sites import explain
from pplgen.inference.optimisers import Optimiser
from pplgen.inference.svi import train
from pplgen.inference.training_options import TrainingOptions
from pplgen.inference.training_result import StopReason, Training
from pplgen.story.isolation import seeded
from pplgen.story.pair import Pair

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
    """Fit by Adam, and return what was warned of too."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        fit = pplgen.fit(model, data, guide, optimiser="adam", progress=False, **options)
    assert all(warning.category is DataWarning for warning in seen), "Pyro's own warnings say nothing more"
    return fit, [str(warning.message) for warning in seen]


def location(fit):
    with fit.pair.isolated():
        return pyro.param("loc").item(), pyro.param("scale").item()


def near_the_posterior(loc, scale):
    """Adam's rate is cut while it still wanders: by up to .1 in the mean, which is within a deviation of .16."""
    assert loc == pytest.approx((Y.sum() / PRECISION).item(), abs=PRECISION**-0.5)
    assert scale == pytest.approx(PRECISION**-0.5, rel=0.3)


@pytest.mark.parametrize("path", PATHS)
def test_a_run_goes_back_names_the_row_and_ends_where_it_should(path):
    # Adam overshoots the posterior, .5 +- .16, by more than one at a rate of 1, and not at .1
    options = {"learning_rate": 1.0, "decay": 0.995, "steps": 500, "compile": path}
    fit, said = fitted(spoilt(1.5), guide_from(-3.0), **options)
    assert len(said) == len(fit.best.faults) == 1
    assert f"the log density of 'y' is NaN at row {ROW}, where loc of Normal is NaN; continued from step" in said[0]
    assert said[0].endswith("(fault 1 of 3)")
    assert fit.stop is StopReason.STEPS
    assert 400 <= len(fit.best.history) < 500, "steps that were taken back are no part of the history"
    assert np.isfinite(fit.best.history).all()
    loc, scale = location(fit)
    near_the_posterior(loc, scale)


def overflowing(y):
    """The model with a factor that is one for means up to 6, and zero above 6.7, where an exponential overflows."""
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    pyro.factor("wall", -1e-38 * (2 * mu.square()).exp())
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


@pytest.mark.parametrize(("path", "decay", "steps"), [("off", 0.99, 500), ("graph", 0.997, 1500)])
def test_a_learning_rate_that_is_far_too_large_is_lowered_until_it_works(path, decay, steps):
    # Adam's first step is its rate: the mean goes from 0 to 100, to 10 (in a graph to 7.4, because its rate decays over
    # the window that was taken back too) with a scale of 100 or more or almost none, and to 1 or less; were the second
    # step finite, its gradients of 1e8 would stay in Adam's memory, and the scale would not move
    options = {"learning_rate": 100.0, "decay": decay, "steps": steps, "compile": path}
    fit, said = fitted(overflowing, guide_from(0.0), **options)
    assert len(said) == 2 < MAX_NON_FINITE
    assert said[0].startswith("step 2: ")
    assert "continued from step 0 with learning rate 10 (fault 1 of 3)" in said[0]
    assert "continued from step 0 with learning rate 1 (fault 2 of 3)" in said[1]
    loc, scale = location(fit)
    near_the_posterior(loc, scale)


@pytest.mark.parametrize("path", PATHS)
def test_three_strikes_end_a_run_with_a_verdict(path, capsys):
    """The posterior lies where the density is NaN, so that no learning rate helps."""
    # from -.1 to zero it is five steps of .02, fifty of .002 and five windows of .0002
    fit, said = fitted(spoilt(0.0), guide_from(-0.1, 0.001), steps=800, compile=path)
    assert tuple(said) == fit.best.faults
    assert len(said) == MAX_NON_FINITE
    assert all(f"'y' is NaN at row {ROW}" in sentence for sentence in said)
    assert "(fault 3 of 3)" in said[-1]
    assert fit.stop is StopReason.NOT_FINITE
    assert location(fit)[0] < 0
    assert math.isfinite(fit.elbo)
    fit.summary()
    printed = " ".join(capsys.readouterr().out.split())
    assert "successively lower learning rates" in printed
    assert f"NaN at row {ROW}" in printed
    with fit.pair.isolated():
        check = faults(CheckInputs(fit.pair, None, fit.runs))
    assert (check.value, check.verdict) == (3, "fail")
    assert said[-1] in check.remedy


@pytest.mark.parametrize("options", [{}, {"batch_size": 10}, {"restarts": 2}])
@pytest.mark.parametrize("path", PATHS)
def test_what_is_never_finite_is_an_error_that_names_the_row(path, options):
    """Of a minibatch too, where it is the row of the data that is named."""
    named = rf"before any good state: step \d+: the log density of 'y' is NaN at row {ROW}, where loc of Normal is NaN"
    with pytest.warns(DataWarning), pytest.raises(InputError, match=named), pyro.validation_enabled(False):
        pplgen.fit(spoilt(-5.0), Y, guide_from(-1.0), compile=path, progress=False, **options)


def test_columns_are_named_where_entries_have_densities_of_their_own():
    x = torch.ones(6, 3)

    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        scale = torch.ones(6, 3)
        scale[[1, 4], 1] = -1.0
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, scale).to_event(1), obs=x)

    with pyro.validation_enabled(False):
        pair = Pair(model, guide_from(0.0), (x,))
    sentence = "the log density of 'x' is NaN at rows 2, 5, column {}, where scale of Normal is -1"
    with seeded(0), pair.isolated():
        assert explain(pair, pair.elbo(), pair.data) == sentence.format(2)
        pair.columns = ("a", "b", "c")
        assert explain(pair, pair.elbo(), pair.data) == sentence.format("b")


def rooted(y):
    """The square root of zero has an infinite gradient; the density stays finite."""
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    distance = (mu - mu.detach()) * (y == Y[ROW - 1]) + (y != Y[ROW - 1])
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu + distance.sqrt(), 1.0), obs=y)


@pytest.mark.parametrize("path", PATHS)
def test_a_gradient_that_is_not_finite_is_named_with_its_operation(path):
    # the graph, if rounding at the root lets it pass its comparison with Pyro, finds a fault per window of steps
    step = "5" if path == "off" else r"\d+"
    named = rf"step {step}: the gradient of the log density of 'y' is infinite, in sqrt at row {ROW}"
    with pytest.warns(DataWarning), pytest.raises(InputError, match=named):
        pplgen.fit(rooted, Y, guide_from(-1.0), compile=path, progress=False)


def covariances(by, rows):
    """Two columns whose covariance, or what stands for it, is none in some rows once ``rho`` is above 1."""

    def model(x):
        rho = pyro.sample("rho", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            correlation = rho * torch.isin(torch.arange(len(x)), torch.tensor(rows))
            S = torch.eye(2) + correlation[:, None, None] * torch.tensor([[0.0, 1.0], [1.0, 0.0]])
            matrix = {by: torch.linalg.cholesky(S) if by == "scale_tril" else S}
            pyro.sample("x", dist.MultivariateNormal(torch.zeros(2), **matrix), obs=x)

    return model


X = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))


def point_guide(x):
    pyro.sample("rho", dist.Delta(pyro.param("at", torch.tensor(0.5))))


@pytest.mark.parametrize(
    ("by", "what"),
    [
        ("covariance_matrix", "covariance_matrix of MultivariateNormal"),
        ("precision_matrix", "precision_matrix of MultivariateNormal"),
        ("scale_tril", "the matrix whose Cholesky factor is scale_tril of MultivariateNormal"),
    ],
)
def test_a_matrix_without_a_cholesky_factor_is_named(by, what):
    pair = Pair(covariances(by, [2]), point_guide, (X,))
    with seeded(0), pair.isolated():
        assert explain(pair, pair.elbo(), pair.data) is None
        pair.restore({"at": torch.tensor(1.25)})
        found = explain(pair, pair.elbo(), pair.data)
    # eigenvalues of [[1, r], [r, 1]] are 1 - r and 1 + r
    assert found == f"x: {what} is not positive definite, smallest eigenvalue -0.25 at row 3"


@pytest.mark.parametrize("by", ["covariance_matrix", "scale_tril"])
def test_a_model_that_cannot_start_is_one_sentence(by):
    """Whether it stops at the check of an argument or at a factorisation."""

    def guide(x):
        pyro.sample("rho", dist.Delta(pyro.param("at", torch.tensor(1.25))))

    named = f"evaluated at its initial parameters: x: .*{by} of MultivariateNormal is not positive definite"
    with pytest.raises(InputError, match=f"cannot be {named}, smallest eigenvalue -0.25 at row 3"):
        pplgen.fit(covariances(by, [2]), X, guide, progress=False)

    def other(x):
        raise ValueError("something else")

    with pytest.raises(ValueError, match="something else"):
        pplgen.fit(other, X, guide, progress=False)


@pytest.mark.parametrize("by", ["covariance_matrix", "scale_tril"])
def test_a_first_step_that_stops_is_one_sentence(by):
    pair = Pair(covariances(by, [2]), point_guide, (X,))
    named = f"before any good state: step 3: x: .*{by} of MultivariateNormal is not positive definite"
    with seeded(0), pair.isolated():
        pair.restore({"at": torch.tensor(1.25)})
        with pytest.warns(DataWarning), pytest.raises(InputError, match=named):
            train(pair, TrainingOptions(10, Optimiser(0.01)), seed=0)


@pytest.mark.parametrize("path", PATHS)
def test_a_run_goes_back_from_a_matrix_without_a_factor(path):
    """In a graph a factorisation that fails must not pass for finite, nor stop the others."""
    model = covariances("scale_tril", range(5))
    fit, said = fitted(model, point_guide, X, learning_rate=2.0, steps=300, restarts=2, compile=path)
    assert len(said) >= 2
    assert all("Cholesky factor is scale_tril of MultivariateNormal is not positive" in sentence for sentence in said)
    assert all(run.faults for run in fit.runs)
    with fit.pair.isolated():
        assert abs(pyro.param("at").item()) < 1


def test_a_factor_that_does_not_exist_is_nan_in_a_graph():
    """LAPACK leaves a factor half done, which is finite wherever its diagonal is not looked at."""

    def model(x):
        rho = pyro.sample("rho", dist.Normal(0.0, 1.0))
        L = torch.linalg.cholesky(torch.eye(2) + rho * torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
        pyro.sample("x", dist.Normal(L[1, 0], 1.0).expand(x.shape).to_event(2), obs=x)

    pair = Pair(model, point_guide, (X,))
    with seeded(0), pair.isolated():
        graph = trace(pair, pair.elbo(), pair.data)
        assert graph.loss_and_gradient(torch.tensor([0.5]), X)[0].isfinite()
        mapped = torch.func.vmap(graph.loss_and_gradient, in_dims=(0, None))
        losses, gradients = mapped(torch.tensor([[0.5], [1.5]]), X)
    assert losses.isfinite().tolist() == [True, False]
    assert gradients.isfinite().flatten().tolist() == [True, False]


def test_a_broken_restart_leaves_the_others_alone():
    """Three good restarts end bit for bit where they end beside a fourth that is good as well."""
    options = {"restarts": 4, "steps": 400, "compile": "graph"}

    def runs(third):
        starts = iter([-1.0, -0.5, third, -2.0])
        return fitted(spoilt(5.0), guide_from(lambda: next(starts)), **options)

    with pyro.validation_enabled(False):
        (healthy, nothing), (fit, said) = runs(0.0), runs(9.0)
    assert nothing == []
    assert (healthy.num_failed, fit.num_failed, len(fit.runs)) == (0, 1, 3)
    assert [sentence.partition(",")[0] for sentence in said] == ["restart 3"] * MAX_NON_FINITE
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
    assert (fit.num_failed, len(fit.runs), len(said)) == (1, 2, MAX_NON_FINITE)
    assert math.isfinite(fit.spread)
    assert fit.num_agreeing >= 1


@pytest.mark.parametrize("path", PATHS)
def test_an_infinite_bound_is_never_the_best(path):
    starts = iter([-1.0, 2.0, -0.5])

    def model(y):
        plain(y)
        pyro.factor("defect", torch.where(pyro.param("loc") > 1, math.inf, 0.0))

    fit, said = fitted(model, guide_from(lambda: next(starts)), restarts=3, steps=300, compile=path)
    assert (fit.num_failed, len(fit.runs), len(said)) == (1, 2, MAX_NON_FINITE)
    assert all("the log density of 'defect' is infinite" in sentence for sentence in said)
    assert math.isfinite(fit.elbo)


def test_failed_runs_rank_below_all_others():
    def run(elbo, stop=StopReason.STEPS):
        return Training(0, np.zeros(1), elbo, 0.1, stop)

    good, better = run(-10.0), run(-9.0)
    others = [run(math.inf), run(math.nan), run(1e30, StopReason.NOT_FINITE)]
    for order in itertools.permutations([good, better, *others]):
        assert max(order, key=lambda each: each.rank) is better
    assert [each.failed for each in (good, *others)] == [False, True, True, True]


def test_a_checkpoint_after_a_fault_continues_bit_for_bit(tmp_path):
    options = {"learning_rate": 1.0, "steps": 500, "compile": "graph", "restarts": 2, "batch_size": 20}

    def stop_at(step):
        def progress(update):
            if update.step >= step:
                raise ZeroDivisionError

        return progress

    model, guide = spoilt(1.5), guide_from(-3.0)
    expected, said = fitted(model, guide, **options)
    assert all("continued from step 0 " in run.faults[0] for run in expected.runs)
    assert said
    with pytest.warns(DataWarning), pytest.raises(ZeroDivisionError):
        pplgen.fit(
            model,
            Y,
            guide,
            checkpoint=tmp_path,
            checkpoint_every=1e-9,
            optimiser="adam",
            **options,
            progress=stop_at(300),
        )
    again, later = fitted(model, guide, checkpoint=tmp_path, **options)
    assert len(later) < len(said), "the first fault lies before the checkpoint"
    for run, other in zip(again.runs, expected.runs, strict=True):
        np.testing.assert_array_equal(run.history, other.history)
        np.testing.assert_array_equal(run.final, other.final)
        assert (run.elbo, run.faults) == (other.elbo, other.faults)


def test_where_a_run_has_been_is_not_where_it_was_taken_back_from():
    been = Iterates()
    for step in range(1, 4101):
        been.record(step, torch.full((2, 3), float(step)))
        if step == 3900:
            been.mark()
    assert been.stride == 20, "thinned in between, at 4,000 steps"
    been.overwrite_since_mark(torch.zeros(3), 1)
    steps = torch.arange(20.0, 4101.0, 20.0)
    torch.testing.assert_close(been.stacked()[:, 0, 0], steps)
    torch.testing.assert_close(been.stacked()[:, 1, 2], torch.where(steps > 3900, 0.0, steps))


def test_a_saved_run_tells_of_its_faults(tmp_path):
    fit = pplgen.fit(GaussianMixture(2, 2), "faithful", steps=5, progress=False)
    fit.runs = (dataclasses.replace(fit.runs[0], faults=("step 3: something",)),)
    fit.save(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "header.json").read_text())["runs"][0]["faults"] == ["step 3: something"]
    assert pplgen.load(tmp_path / "run").best.faults == ("step 3: something",)
