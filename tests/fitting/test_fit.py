"""``fit``: what it leaves alone, what it repeats, what it refuses."""

import copy

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pplgen.models import VAE, GaussianMixture
from pyro.infer import EnergyDistance, ReweightedWakeSleep, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal
from torch import nn

import pplgen
from pplgen.errors import DataWarning, InputError
from pplgen.fitting import fit_options as options
from pplgen.inference.training_result import Progress, StopReason

Y = torch.linspace(-1.0, 2.0, 25)


def model(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def quick(story_or_model, data, guide=None, **options):
    return pplgen.fit(story_or_model, data, guide, **{"steps": 40, "progress": False, "compile": "off", **options})


def test_nothing_given_is_changed():
    story = GaussianMixture(2, 2)
    before = copy.deepcopy(story.state_dict())
    pyro.param("mine", torch.tensor(1.0))
    generator = torch.get_rng_state()
    fit = quick(story, "faithful")
    for name, value in story.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert list(pyro.get_param_store().keys()) == ["mine"]
    assert torch.equal(torch.get_rng_state(), generator)
    assert fit.story is not story
    assert pyro.settings.get("validate_poutine"), "validation is back on"


def test_the_same_seed_gives_the_same_numbers():
    story = GaussianMixture(2, 2)
    first, again, other = (quick(story, "faithful", seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.best.history, again.best.history)
    assert first.elbo == again.elbo
    assert not np.array_equal(first.best.history, other.best.history)


def test_restarts_keep_the_best_final_elbo():
    story = GaussianMixture(4, 2)
    fit = quick(story, "faithful", restarts=3)
    assert len(fit.runs) == 3
    assert fit.elbo == max(run.elbo for run in fit.runs)
    assert fit.spread == pytest.approx(fit.elbo - min(run.elbo for run in fit.runs))
    assert len({run.seed for run in fit.runs}) == 3
    # the first restart is the single run of the same seed
    assert quick(story, "faithful").elbo == fit.runs[0].elbo
    # the parameters that are kept are those of the best: a fresh estimate agrees
    with fit.pair.isolated():
        values = [-fit.pair.elbo().loss(fit.pair.model, fit.pair.guide, *fit.pair.data) for _ in range(100)]
    error = np.hypot(np.std(values) / 10, fit.best.elbo_error)
    assert np.mean(values) == pytest.approx(fit.elbo, abs=4 * error)


def test_progress_is_told():
    updates = []
    quick(model, Y, restarts=2, progress=updates.append)
    assert all(isinstance(update, Progress) for update in updates)
    assert [(u.restart, u.step) for u in updates] == [(r, s) for r in (1, 2) for s in (1, 20, 40)]
    assert {(u.restarts, u.doing) for u in updates} == {(2, "plain Pyro")}


def test_an_interrupt_returns_the_fit_so_far():
    def stop(update):
        if update.step == 20:
            raise KeyboardInterrupt

    fit = quick(model, Y, restarts=5, progress=stop)
    assert fit.stop is StopReason.INTERRUPTED
    assert len(fit.runs) == 1
    assert fit.log_likelihood().shape == (25,)


def test_bare_pair_with_a_guide_of_its_own_and_its_own_bound():
    guide = AutoMultivariateNormal(model)
    fit = pplgen.fit(model, Y, guide, progress=False, elbo=TraceMeanField_ELBO())
    precision = len(Y) + 0.01
    draws = fit.to_datatree(2000, groups=["posterior"])["posterior"]["mu"].values
    # the posterior is Normal(sum / precision, 1 / precision); four standard errors of 2,000 draws, plus optimisation
    assert draws.mean() == pytest.approx((Y.sum() / precision).item(), abs=0.2 * precision**-0.5)
    assert draws.std() == pytest.approx(precision**-0.5, rel=0.1)
    assert not list(guide.parameters()), "the caller's guide is untouched"
    assert fit.name == "model"


def regression(x, y):
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(b * x, 1.0), obs=y)


class OfOne(nn.Module):
    def forward(self, x):
        pyro.sample("b", dist.Normal(0.0, 1.0))


@pytest.mark.parametrize(
    ("data", "guide", "sentence"),
    [
        ({"x": Y, "z": Y}, None, r"the model's arguments \(x, y\), not a dict of 'x', 'z'$"),
        (Y, AutoMultivariateNormal(regression), r"the model's arguments \(x, y\), not a single tensor$"),
        ([Y, Y], None, r"the model's arguments \(x, y\), not a single list$"),
        ((Y, Y, Y), None, r"the model's arguments \(x, y\), not one of 3$"),
        ((Y, Y), OfOne(), r"the guide's arguments \(x\), not one of 2$"),
    ],
)
def test_data_that_are_not_the_arguments_of_a_bare_pair(data, guide, sentence):
    with pytest.raises(InputError, match=sentence):
        quick(regression, data, guide)


def test_a_dict_is_the_data_of_a_model_that_takes_one():
    fit = quick(lambda both: regression(both["x"], both["y"]), {"x": Y, "y": Y})
    assert fit.name == "<lambda>"


def test_bare_pair_with_a_borrowed_module():
    encoder = nn.Linear(1, 2)
    before = copy.deepcopy(encoder.state_dict())

    def rows(y):
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 0.5), obs=y)

    def amortised(y):
        pyro.module("encoder", encoder)
        loc, log_scale = encoder(y[:, None]).unbind(-1)
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()))

    fit = pplgen.fit(rows, Y, amortised, progress=False, restarts=2, learning_rate=0.05)
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, before[name]), "the caller's module is untouched"
    latents = fit.latents(torch.tensor([0.0, 1.0]), draws=2000)
    assert latents["z"].dims == ("row",)
    # z | y ~ Normal(.8 y, .2): the exact posterior is a linear function of y, in the guide's family
    np.testing.assert_allclose(latents["z"], [0.0, 0.8], atol=0.1)
    np.testing.assert_allclose(latents["z_sd"], [0.2**0.5] * 2, rtol=0.1)
    new = torch.tensor([0.0, 1.0, -2.0])
    exact = torch.distributions.Normal(0.0, 1.25**0.5).log_prob(new)
    torch.testing.assert_close(fit.log_likelihood(new, draws=2000), exact, atol=0.05, rtol=0)


def test_an_interrupt_in_a_later_restart_keeps_what_is_done():
    def stop(update):
        if update.restart == 2:
            raise KeyboardInterrupt

    fit = quick(model, Y, restarts=3, progress=stop)
    assert [run.stop for run in fit.runs] == [StopReason.STEPS, StopReason.INTERRUPTED]


def test_restarts_of_an_automatic_guide_differ():
    fit = quick(model, Y, restarts=3, steps=2)
    assert len({run.history[0] for run in fit.runs}) == 3


def test_restarts_that_break_down_are_dropped_and_counted():
    starts = iter([1.0, float("nan"), 2.0])

    def fragile(y):
        start = pyro.param("start", lambda: torch.tensor(next(starts)))
        pyro.sample("mu", dist.Normal(start, pyro.param("scale", torch.tensor(1.0))))

    with pyro.validation_enabled(False), pytest.warns(DataWarning, match="the guide's draw of 'mu' is NaN"):
        fit = quick(model, Y, fragile, restarts=3)
    assert len(fit.runs) == 2
    assert fit.num_failed == 1


def test_a_guide_of_ones_own_for_a_storys_model(faithful):
    story = GaussianMixture(2, 2)
    story.initialise(faithful.values.float())
    fit = quick(story.model, faithful.values.float(), story.guide, steps=3)
    assert fit.story is None, "a bare pair, whatever its model is bound to"
    assert fit.log_likelihood().shape == (272,)
    assert set(fit.to_datatree(2).children) >= {"posterior", "log_likelihood"}


def test_tables_arrays_and_frames_are_one():
    frame = pd.DataFrame(pplgen.load_data("faithful").values.numpy(), columns=["eruptions", "waiting"])
    story = GaussianMixture(2, 2)
    fits = [quick(story, data, steps=3) for data in ("faithful", frame, frame.to_numpy())]
    assert {fit.elbo for fit in fits} == {fits[0].elbo}
    assert fits[2].columns == ("x0", "x1")


def test_double_precision_is_kept(faithful):
    fit = quick(GaussianMixture(2, 2), faithful, steps=3)
    assert fit.log_likelihood().dtype == torch.float64


def test_minibatches_leave_no_parameters_behind():
    """Whether a guide of row latents takes fewer rows is tried out with the pair's own parameters."""
    net = nn.Linear(2, 2)

    def codes_model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def codes_guide(x):
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(net(x), 1.0).to_event(1))

    quick(codes_model, torch.randn(20, 2), codes_guide, batch_size=5, compile="graph", steps=100)
    assert list(pyro.get_param_store().keys()) == []


def test_minibatches():
    fit = quick(GaussianMixture(2, 2), "faithful", batch_size=64, steps=150)
    # a bound estimated on minibatches; the full one is -1185
    assert fit.elbo == pytest.approx(-1185, abs=10 + 4 * fit.best.elbo_error)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"steps": 0}, "steps=0: expected a whole number"),
        ({"seed": -1}, "seed=-1: expected a whole number of at least 0"),
        ({"restarts": 1.5}, "restarts=1.5"),
        ({"learning_rate": 0}, "learning_rate=0: expected a positive"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 273}, "batch_size=273: expected between 1 and the 272 rows"),
        ({"device": "nonsense"}, "device='nonsense' is not available here"),
        ({"device": "meta"}, "device='meta' is not available here"),
        ({"compile": "jit"}, "compile='jit': expected one of auto, inductor, graph, off"),
        ({"guide": model}, "GaussianMixture has its own guide"),
    ],
)
def test_bad_options(options, sentence):
    with pytest.raises(InputError, match=sentence):
        quick(GaussianMixture(2, 2), "faithful", **options)


def test_many_rows_with_codes_come_in_batches(monkeypatch):
    monkeypatch.setattr(options, "MANY_ROWS", 30)
    monkeypatch.setattr(options, "NETWORK_ROWS", 10)
    seen = []
    for rows in (30, 31):
        pplgen.fit(VAE(4, 1, hidden=()), torch.rand(rows, 4), steps=2, progress=seen.append)
        assert seen[-1].rows_per_second / seen[-1].steps_per_second == pytest.approx({30: 30, 31: 10}[rows])
    assert options.default_batch_size(VAE(4), 20, streamed=True) == 10
    assert options.default_batch_size(GaussianMixture(2, 4), 20, streamed=True) == 20


def test_a_dictionary_with_the_names_of_the_arguments_is_passed_by_name():
    def regression(x, y, scale=1.0):
        w = pyro.sample("w", dist.Normal(0.0, 5.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(w * x, scale), obs=y)

    def of_batch(batch):
        regression(batch["x"], batch["y"])

    x = torch.linspace(-1.0, 1.0, 40)
    data = {"y": 2 * x, "x": x}
    named, positional, nested = (
        pplgen.fit(model, rows, steps=120, progress=False)
        for model, rows in ((regression, data), (regression, (x, 2 * x)), (of_batch, data))
    )
    assert named.elbo == positional.elbo == pytest.approx(nested.elbo, abs=1e-3)  # rounding of constants folded
    assert named.log_likelihood(data, draws=10).shape == (40,)
    with pytest.raises(InputError, match="the model's argument 'x' is missing among 'y'"):
        pplgen.fit(regression, {"y": 2 * x}, progress=False)


def test_an_improper_prior_is_fitted_and_its_draws_are_left_out():
    def improper(y):
        mu = pyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
        scale = pyro.sample("scale", dist.ImproperUniform(dist.constraints.positive, (), (2,)))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, scale[0]), obs=y)
        pyro.sample("other", dist.LogNormal(scale.log(), 0.1).to_event(1), obs=torch.ones(2))

    y = torch.linspace(-1.0, 1.0, 40) + 5
    fit = pplgen.fit(improper, y, progress=False)
    with pytest.warns(DataWarning, match="prior, prior_predictive: left out of the tree: ImproperUniform"):
        tree = fit.to_datatree(2000)
    assert {"prior", "prior_predictive"}.isdisjoint(tree.children)
    mu = tree["posterior"]["mu"].values[0]
    # a flat prior: the mean of y, with standard deviation near scale / sqrt(40); four standard errors of 2,000 draws
    assert abs(mu.mean() - 5.0) < 4 * mu.std() / 2000**0.5 + 0.05 * mu.std()


@pytest.mark.parametrize("bound", [ReweightedWakeSleep(), EnergyDistance()])
def test_an_objective_of_several_losses_is_refused(bound):
    with pytest.raises(InputError, match=f"elbo: {type(bound).__name__} is not one ELBO"):
        pplgen.fit(regression, (Y, Y), elbo=bound, progress=False)


def test_a_conditioned_model_has_no_density_of_other_rows():
    def simulator(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0))

    y = torch.linspace(2.0, 6.0, 50)
    fit = pplgen.fit(pyro.condition(simulator, data={"y": y}), y, steps=120, progress=False)
    assert fit.log_likelihood(draws=10).shape == (50,)
    with pytest.raises(InputError, match="conditioned on its training data"):
        fit.log_likelihood(y[:10], draws=10)
