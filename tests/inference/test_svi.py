"""The loop: convergence, interrupts, a way back from NaN, minibatches."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import pplgen
from pplgen.checks.inputs import CheckInputs
from pplgen.checks.optimisation import elbo_change
from pplgen.errors import DataWarning, InputError
from pplgen.inference.convergence import (
    DECAY,
    MAX_IGNORED,
    PATIENCE,
    PLATEAUS,
    WINDOW,
    PlateauWatch,
    has_diverged,
    relative_drift,
)
from pplgen.inference.optimisers import Optimiser
from pplgen.inference.svi import train
from pplgen.inference.training_options import Batching, TrainingOptions
from pplgen.inference.training_result import StopReason, Training
from pplgen.story.isolation import seeded
from pplgen.story.pair import Pair

Y = torch.linspace(-1.0, 2.0, 40)


def model(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def guide(y):
    loc = pyro.param("loc", torch.tensor(3.0))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
    pyro.sample("mu", dist.Normal(loc, scale))


def run(pair, steps=10_000, optimiser=None, batch_size=None, report=None):
    options = TrainingOptions(steps, optimiser or Optimiser(0.05), batching=Batching(batch_size))
    with seeded(0), pair.isolated():
        result = train(pair, options, seed=0, report=report)
        return result, pyro.param("loc").item(), pyro.param("scale").item()


def evidence(y):
    covariance = torch.eye(len(y), dtype=torch.float64) + 100.0
    return torch.distributions.MultivariateNormal(torch.zeros(len(y)).double(), covariance).log_prob(y.double()).item()


def test_converges_to_the_conjugate_posterior_and_says_so():
    result, loc, scale = run(Pair(model, guide, (Y,)))
    precision = len(Y) + 0.01
    assert result.stop is StopReason.CONVERGED
    assert len(result.history) < 10_000
    # Adam at a rate r ends r / (2 c / g r)^(1/2) from the optimum, c being the curvature and g the gradients' standard
    # deviation: precision and its root for the mean, 2 and its root for the log scale
    rate = 0.05 * DECAY ** (PLATEAUS - 1)
    assert loc == pytest.approx((Y.sum() / precision).item(), abs=4 * (rate / 2 / precision**0.5) ** 0.5)
    assert scale == pytest.approx(precision**-0.5, rel=4 * (rate / 2 / 2**0.5) ** 0.5)
    # the bound is the evidence less the guide's divergence from the posterior, which is normal too
    variance, off = precision * scale**2, precision * (loc - Y.sum().item() / precision) ** 2
    divergence = (variance + off - 1 - math.log(variance)) / 2
    assert result.elbo == pytest.approx(evidence(Y) - divergence, abs=1e-3 + 4 * result.elbo_error)


def test_steps_run_out():
    result, *_ = run(Pair(model, guide, (Y,)), steps=30)
    assert result.stop is StopReason.STEPS
    assert len(result.history) == 30


def test_an_interrupt_keeps_the_fit_so_far():
    def interrupt(step, elbo, rate):
        if step >= 60:
            raise KeyboardInterrupt

    result, loc, _ = run(Pair(model, guide, (Y,)), report=interrupt)
    assert result.stop is StopReason.INTERRUPTED
    assert len(result.history) == 60
    assert loc < 3.0, "sixty steps moved it"
    assert math.isfinite(result.elbo)


def test_minibatches_find_the_same_posterior():
    result, loc, scale = run(Pair(model, guide, (Y,)), batch_size=10)
    precision = len(Y) + 0.01
    # the gradient is noisier: to 40 its variance adds 92, that of 40 times the mean of 10 of the 40 rows, so that
    # Adam's last rate of .0045 ends .16 posterior standard deviations from the optimum
    assert loc == pytest.approx((Y.sum() / precision).item(), abs=4 * 0.16 * precision**-0.5)
    assert scale == pytest.approx(precision**-0.5, rel=0.2)
    assert result.elbo == pytest.approx(evidence(Y), abs=0.5 + 4 * result.elbo_error)


def broken_model(*fails_at):
    """The model, but for a NaN in its density at the given runs of it."""
    calls = {"count": 0}

    def broken(y):
        calls["count"] += 1
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        factor = math.nan if calls["count"] in fails_at else 0.0
        pyro.factor("defect", torch.tensor(factor))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    return broken


def test_nan_goes_back_to_the_last_good_state():
    with pytest.warns(DataWarning, match="continued from step 100 with learning rate 0.005 "):
        result, loc, _ = run(Pair(broken_model(150), guide, (Y,)), steps=400)
    assert result.stop is StopReason.STEPS
    assert len(result.faults) == 1
    assert "but is finite when the step is repeated" in result.faults[0], "it counts its runs"
    assert len(result.history) == 400 - 49, "what was taken since step 100 is no part of it"
    assert np.isfinite(result.history).all()
    assert loc == pytest.approx((Y.sum() / (len(Y) + 0.01)).item(), abs=0.1)


def test_nan_before_any_good_state_is_an_error():
    with pytest.warns(DataWarning), pytest.raises(InputError, match=r"not finite by step \d+, before any good state"):
        run(Pair(broken_model(*range(20, 24), *range(40, 70)), guide, (Y,)), steps=60)


def test_batch_sizes_that_cannot_be():
    pair = Pair(model, guide, (Y,))
    with pytest.raises(InputError, match="batch_size=41: expected between 1 and the 40 rows"):
        run(pair, batch_size=41)

    def plateless(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        pyro.sample("y", dist.Normal(mu, 1.0).expand([len(y)]).to_event(1), obs=y)

    with pytest.raises(InputError, match=r"batch_size=10: the model has no full plate"):
        run(Pair(plateless, guide, (Y,)), batch_size=10)


def test_a_finite_loss_with_a_gradient_that_is_not_goes_back_too():
    """The square root of zero has an infinite gradient, which leaves the loss finite and the parameters NaN."""
    calls = {"count": 0}

    def poisoned(y):
        calls["count"] += 1
        loc = pyro.param("loc", torch.tensor(3.0))
        if calls["count"] == 2 * WINDOW + 1:  # the last step, after the first run that looks at the sites
            loc = loc + 0 * (loc - loc.detach()).sqrt()
        scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        pyro.sample("mu", dist.Normal(loc, scale))

    with pytest.warns(DataWarning, match="continued from step 100 with"):
        result, loc, _ = run(Pair(model, poisoned, (Y,)), steps=2 * WINDOW)
    assert result.stop is StopReason.STEPS
    assert len(result.history) == WINDOW
    assert math.isfinite(loc)
    assert math.isfinite(result.elbo)


def test_an_interrupt_before_the_first_step_is_passed_on():
    def stopped(y):
        raise KeyboardInterrupt

    pair = Pair(model, guide, (Y,))
    pair.model = stopped
    with pytest.raises(KeyboardInterrupt):
        run(pair)


def test_a_guide_with_parameters_per_row_is_not_given_minibatches():
    def rows(y):
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    for batch_size in (1, 10):
        with pytest.raises(InputError, match="from separate parameters for each training row"):
            run(Pair(rows, None, (Y,)), batch_size=batch_size)


def test_plateaus_are_judged_by_the_noise():
    rng = np.random.default_rng(0)
    watch = PlateauWatch()
    # a climb of .3 standard deviations of the noise per window: the slope of four windows is 6.7 of its standard errors
    climbing = [watch.plateau(list(0.3 * i + rng.normal(size=WINDOW))) for i in range(30)]
    assert not any(climbing)
    patient = PlateauWatch(5 * WINDOW)
    again = [patient.plateau(list(rng.normal(size=WINDOW))) for _ in range(5 * PATIENCE)]
    assert not any(again[:-1])  # nothing is judged before four of its longer windows
    assert len(patient.means) + PATIENCE * sum(again) == PATIENCE
    # a slope above two standard errors comes by chance about once in forty windows
    flat = [watch.plateau(list(9.0 + rng.normal(size=WINDOW))) for _ in range((PLATEAUS + 2) * PATIENCE)]
    assert sum(flat) >= PLATEAUS


def test_a_plateau_is_not_counted_while_a_parameter_drifts():
    rate, steps = 0.01, 400
    path = rate * torch.arange(1, steps + 1)[:, None] * torch.tensor([1.0, 0.0])
    assert relative_drift(path[-1], path.mean(0), rate, steps) == pytest.approx(1, abs=0.01)  # as fast as Adam moves
    noise = rate * torch.randn(steps, 50, generator=torch.Generator().manual_seed(0)).cumsum(0) * 0.2
    # a random walk of sd s ends .58 s from its mean, in sd: 2 * .2 * .58 / sqrt(400) of the rate, and 4 sd of that
    assert relative_drift(noise[-1], noise.mean(0), rate, steps) < 0.06
    watch = PlateauWatch()
    assert watch.count(1.0)  # before the first plateau a drift may be slow, and Adam starts again
    assert [watch.count(1.0) for _ in range(MAX_IGNORED + 1)] == [False] * MAX_IGNORED + [True]
    assert watch.count(0.1)
    assert watch.plateaus == PLATEAUS


def test_adam_alone_finds_the_scale_of_a_posterior_far_from_its_start():
    """While the location travels, Adam's second moment of the scale's gradient grows; it is forgotten at a plateau."""
    y = 10 + torch.randn(1000, generator=torch.Generator().manual_seed(0))
    fit = pplgen.fit(model, y, optimiser="adam", compile="graph", progress=False)
    mu = fit.to_datatree(draws=2000)["posterior"]["mu"].to_numpy()
    # 1.6 % of Monte Carlo error, and the noise of Adam's last steps; 1.48 times too wide if the moment is not forgotten
    assert mu.std() == pytest.approx(1000.01**-0.5, rel=0.15)


@pytest.mark.parametrize(
    ("history", "elbo", "error", "diverged"),
    [
        ([-100.0] * 300, -100.0, 1.0, False),
        ([-100.0] * 300, -99.0, 30.0, True),  # an error of the ELBO's magnitude
        ([-100.0] * 300, -5.9e96, 5.8e96, True),
        ([-500.0] * 100 + [-100.0] * 200, -400.0, 1.0, True),  # below where it was
        ([-500.0] * 100 + [-100.0] * 200, -120.0, 1.0, False),
        ([], -3.0, 0.5, False),
    ],
)
def test_what_diverged_has_not_converged(history, elbo, error, diverged):
    assert has_diverged(history, elbo, error) is diverged
    values = elbo + error * np.array([-1.0, 1.0])  # their standard error is error
    for stop, expected in ((StopReason.CONVERGED, StopReason.DIVERGED), (StopReason.STEPS, StopReason.STEPS)):
        run = Training.from_evaluations(0, history, values, stop, torch.zeros(0), torch.zeros(0))
        assert run.stop is (expected if diverged else stop)


def test_a_fit_that_diverged_warns():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 50.0))
        pyro.sample("y", dist.Normal(mu.exp(), 1.0), obs=y)

    def guide(y):
        # e^(2 mu) under a normal of sd 6 has moments that no number of draws finds
        pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 6.0))

    options = {"learning_rate": 1e-9, "optimiser": "adam", "progress": False}
    with pytest.warns(DataWarning, match="the run diverged"):
        fit = pplgen.fit(model, torch.tensor(0.0), guide, **options)
    assert fit.stop is StopReason.DIVERGED
    with fit.pair.isolated():
        check = elbo_change(CheckInputs(fit.pair, None, fit.runs))
    assert check.verdict == "fail"
