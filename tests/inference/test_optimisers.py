"""Update rules, learning rates by parameter, schedules, and optimisers that the user brings."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import pplgen
from pplgen.errors import InputError
from pplgen.inference.optimisers import CONSTRUCTORS, Optimiser, Rule

Y = torch.linspace(-1.0, 2.0, 25)
FIT = {"progress": False, "compile": "graph"}
OPTIONS = [
    "adam",
    {"name": "adam", "betas": (0.8, 0.99), "eps": 1e-4, "weight_decay": 0.3},
    "adamw",
    {"name": "adamw", "weight_decay": 0.5},
    {"name": "sgd"},
    {"name": "sgd", "momentum": 0.9, "weight_decay": 0.1},
    {"name": "sgd", "momentum": 0.9, "nesterov": True},
]


def model(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def guide(y):
    loc = pyro.param("loc", torch.tensor(3.0))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
    pyro.sample("mu", dist.Normal(loc, scale))


def parameters(fit):
    with fit.pair.isolated():
        return fit.pair.snapshot()


def history(fit):
    return np.array(fit.best.history)


@pytest.mark.parametrize("given", OPTIONS, ids=str)
def test_rules_are_torchs(given):
    """Twenty steps on random gradients, in float64 to rounding."""
    rule = Rule.of(given)
    gradients = torch.randn(20, 1, 6, dtype=torch.float64)
    start = torch.randn(1, 6, dtype=torch.float64)
    theirs = start.clone().requires_grad_()
    optimiser = CONSTRUCTORS[rule.name]([theirs], lr=0.05, **rule.options)
    ours, mean, square = start, torch.zeros_like(start), torch.zeros_like(start)
    for step, gradient in enumerate(gradients, start=1):
        theirs.grad = gradient.clone()
        optimiser.step()
        since = torch.tensor(float(step), dtype=torch.float64)
        ours, mean, square = rule.moved(ours, gradient, 0.05 * torch.ones_like(since), (mean, square, since))
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-12, atol=1e-14)


def test_learning_rates_by_parameter():
    """A rate of zero leaves a parameter where it is; names without a rate have the default one."""
    fit = pplgen.fit(model, Y, guide, steps=300, learning_rate={"scale": 0}, **FIT)
    assert parameters(fit)["scale"] == 0  # on the log scale
    assert parameters(fit)["loc"] < 2.0
    again = pplgen.fit(model, Y, guide, steps=300, learning_rate=lambda name: 0.02 * (name == "loc"), **FIT)
    np.testing.assert_array_equal(history(fit), history(again))
    assert "L-BFGS" not in fit.path


def test_a_schedule_that_ends_at_zero_stops_the_parameters():
    fit = pplgen.fit(model, Y, guide, steps=200, optimiser="adam", decay=lambda step: float(step <= 100), **FIT)
    first = pplgen.fit(model, Y, guide, steps=100, optimiser="adam", **FIT)
    assert parameters(fit) == parameters(first)


@pytest.mark.parametrize(
    "given",
    [
        lambda: pyro.optim.RMSprop({"lr": 0.03}),
        lambda: torch.optim.RMSprop([torch.zeros(1, requires_grad=True)], lr=0.03),
        lambda: torch.optim.RMSprop([{"params": [torch.zeros(1, requires_grad=True)], "lr": 0.03}], lr=1.0),
        lambda: pyro.optim.StepLR(
            {"optimizer": torch.optim.RMSprop, "optim_args": {"lr": 0.03}, "step_size": 10**6, "gamma": 0.5}
        ),
    ],
    ids=["pyro", "torch", "group", "scheduler"],
)
def test_an_optimiser_of_the_users_runs_in_plain_pyro(given):
    """The losses are those of Pyro's SVI with torch's RMSprop; the object itself is not changed."""
    optimiser = given()
    fit = pplgen.fit(model, Y, guide, steps=60, optimiser=optimiser, **FIT)
    assert fit.path.startswith("plain Pyro: the optimiser is an object")
    other = pplgen.fit(model, Y, guide, steps=60, optimiser=pyro.optim.RMSprop({"lr": 0.03}), **FIT)
    np.testing.assert_array_equal(history(fit), history(other))
    assert not getattr(optimiser, "optim_objs", {})
    adam = pplgen.fit(model, Y, guide, steps=60, optimiser=pyro.optim.Adam({"lr": 0.02}), **FIT)
    plain = pplgen.fit(model, Y, guide, steps=60, compile="off", progress=False)
    np.testing.assert_allclose(history(adam), history(plain), rtol=1e-5)
    assert history(adam)[-1] != history(fit)[-1]


@pytest.mark.parametrize("rule", [torch.optim.AdamW, torch.optim.NAdam, torch.optim.Adafactor])
def test_options_that_torch_keeps_for_itself_are_left_out(rule):
    optimiser = rule([torch.zeros(1, requires_grad=True)], lr=0.03)
    fit = pplgen.fit(model, Y, guide, steps=5, optimiser=optimiser, **FIT)
    assert parameters(fit)["loc"] != 3


def test_a_scheduler_of_the_users_makes_a_step_per_epoch():
    """With a factor of 0 at the first epoch's end parameters stay there: five steps of minibatches, one of all rows."""

    def scheduler():
        return pyro.optim.ExponentialLR({"optimizer": torch.optim.SGD, "optim_args": {"lr": 1e-3}, "gamma": 0.0})

    for batch_size, epoch in ((5, 5), (None, 1)):
        whole = pplgen.fit(model, Y, guide, steps=20, batch_size=batch_size, optimiser=scheduler(), progress=False)
        begun = pplgen.fit(model, Y, guide, steps=epoch, batch_size=batch_size, optimiser=scheduler(), progress=False)
        assert parameters(whole) == parameters(begun)
        assert parameters(whole)["loc"] != 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimiser": "lion"}, "optimiser='lion': expected one of auto, adam, adamw, sgd"),
        ({"optimiser": {"weight_decay": 1.0}}, "optimiser's name=None: expected one of adam, adamw, sgd"),
        ({"optimiser": {"name": "sgd", "betas": (0.9, 0.9)}}, "optimiser: sgd has no option 'betas'; expected among"),
        ({"optimiser": {"name": "adam", "betas": (2.0, 0.9)}}, "optimiser: adam with .*Invalid beta parameter"),
        (
            {"learning_rate": {"lok": 0.1}},
            r"'lok' is not a parameter; expected among \['loc', 'scale'\]",
        ),
        ({"learning_rate": {"loc": -0.1}}, "learning_rate of 'loc'"),
        (
            {"learning_rate": lambda name: None},
            "learning_rate of 'loc' is None; expected a finite number",
        ),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"decay": lambda step: -1.0}, "decay: at step 1 the schedule is -1.0; expected a finite number of at least 0"),
        (
            {"optimiser": torch.optim.Adam},
            "optimiser: expected a name, a mapping with the name and options",
        ),
        ({"decay": 1.5}, "decay=1.5: expected a number above 0 and at most 1, or a function of the step"),
        ({"optimiser": pyro.optim.Adam({"lr": 0.1}), "clip": 1.0}, "clip: optimiser is an object with options"),
        ({"optimiser": torch.optim.LBFGS([torch.zeros(1)])}, "optimiser: L-BFGS needs a loss without noise"),
        (
            {"optimiser": torch.optim.Adam([{"params": [torch.zeros(1)]}, {"params": [torch.zeros(1)], "lr": 1.0}])},
            "optimiser: Adam has 2 groups of parameters",
        ),
    ],
)
def test_mistakes_are_refused_in_a_sentence(options, message):
    with pytest.raises(InputError, match=message):
        pplgen.fit(model, Y, guide, steps=5, **FIT, **options)


def test_a_checkpoint_is_of_one_optimiser(tmp_path):
    """A fit resumes to the bit with its schedule and rule; with others it is another fit."""
    options = {"optimiser": "adamw", "decay": lambda step: 1 / step**0.5, "checkpoint": tmp_path / "c", **FIT}
    pplgen.fit(model, Y, guide, steps=100, **options)
    resumed = pplgen.fit(model, Y, guide, steps=200, **options)
    whole = pplgen.fit(model, Y, guide, steps=200, **{**options, "checkpoint": None})
    np.testing.assert_array_equal(history(resumed), history(whole))
    assert parameters(resumed) == parameters(whole)
    with pytest.raises(InputError, match="checkpoint"):
        pplgen.fit(model, Y, guide, steps=300, **{**options, "decay": lambda step: 1 / step})


def test_relative_rates_of_names_in_modules():
    """Names are those of ``nn.Module.named_parameters``, as for Pyro's optimisers."""
    assert Optimiser({"net.weight": 0.1}).relative_rate("net$$$weight") == pytest.approx(5.0)
