"""Checks at the first evaluation: supports, shapes, sites of the guide alone; and of draws at the fitted parameters."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal

import pplgen
from pplgen.errors import InputError
from pplgen.story.site_checks import invalid_draw

X = torch.linspace(-1.0, 1.0, 40)[:, None]
Y = 2 * X[:, 0]
PATHS = ("graph", "off", "auto")


def regression(x, y):
    w = pyro.sample("w", dist.Normal(0.0, 5.0))
    with pyro.plate("data", 40):
        pyro.sample("y", dist.Normal(w * x, 1.0), obs=y)


def no_event(x):
    mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu.sum(), 1.0), obs=x[:, 0])


def counts(y):
    rate = pyro.sample("rate", dist.Gamma(1.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Poisson(rate), obs=y)


def vectors(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu.exp(), 1.0).expand([2]).to_event(1), obs=x)


def mean(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def with_extra_site(y):
    loc = pyro.param("loc", torch.zeros(()))
    pyro.sample("mu", dist.Normal(loc, 1.0))
    pyro.sample("extra", dist.Normal(loc, 1.0))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("model", "data", "guide", "message"),
    [
        (regression, (X, Y), None, r"site 'y': its log density has shape \(40, 40\), expected \(40,\) from its plates"),
        (no_event, X, None, r"site 'mu': its log density has shape \(2,\), expected \(\) from no plate"),
        (counts, torch.tensor([1.0, 2.5]), None, r"observed site 'y', entry 1, is 2.5, outside the support .* Poisson"),
        (vectors, torch.tensor([[1.0, 2.0], [1.0, torch.nan]]), None, r"site 'x', entry 1, is \[1.0, nan\], outside"),
        (mean, Y, with_extra_site, "site 'extra' is in the guide but not in the model"),
    ],
    ids=["forgotten squeeze", "no to_event", "support", "missing value", "guide alone"],
)
def test_what_pyro_refuses_is_refused_on_every_path(model, data, guide, message, path):
    with pytest.raises(InputError, match=message):
        pplgen.fit(model, data, guide, steps=20, compile=path, progress=False)


def test_masked_values_need_no_support():
    y = torch.tensor([1.0, 2.0, 0.0])

    def masked(y):
        rate = pyro.sample("rate", dist.Gamma(1.0, 1.0))
        with pyro.plate("data", len(y)), pyro.poutine.mask(mask=y > 0):
            pyro.sample("y", dist.LogNormal(rate, 1.0).mask(y > 0), obs=y.clamp(min=0.5))

    assert pplgen.fit(masked, y, steps=20, progress=False).elbo < 0


def twice(y):
    pyro.sample("mu", dist.Normal(0.0, 1.0))
    mean(y)


def colliding(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("a", len(y), dim=-1), pyro.plate("b", 3, dim=-1):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def wide(y):
    pyro.sample("mu", dist.Normal(pyro.param("loc", torch.zeros(3)), 1.0).to_event(1))


CANNOT = r"model and guide cannot be evaluated on the data, of shape \(40,\): "


@pytest.mark.parametrize("path", ["graph", "off"])
@pytest.mark.parametrize(
    ("model", "data", "guide", "options", "message"),
    [
        (twice, Y, None, {}, CANNOT + "Multiple sample sites named 'mu'"),
        (colliding, Y, None, {}, CANNOT + 'at plates "b" and "a", collide at dim=-1'),
        (mean, Y, wide, {}, r"site 'mu': the guide draws a value of shape \(3,\); expected \(\), the shape of the"),
        (mean, torch.zeros(0), None, {}, r"on the data, of shape \(0,\): size cannot be zero"),
        (mean, Y, AutoNormal, {}, r"guide: expected a function or an object, such as AutoNormal\(...\), not the class"),
        (AutoNormal, Y, None, {}, r"model: expected a function or an object, such as AutoNormal\(...\), not the class"),
        (mean, Y, None, {"elbo": Trace_ELBO(max_plate_nesting=0)}, "elbo: max_plate_nesting=0; expected at least 1"),
    ],
    ids=["name twice", "plates collide", "shape of a draw", "no data", "guide class", "model class", "plate nesting"],
)
def test_what_fails_at_the_first_evaluation_is_one_sentence(model, data, guide, options, message, path):
    with pytest.raises(InputError, match=message):
        pplgen.fit(model, data, guide, steps=20, compile=path, progress=False, **options)


def positive(y):
    rate = pyro.sample("rate", dist.Exponential(1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(rate, 1.0), obs=y)


def normal_rate(y):
    pyro.sample("rate", dist.Normal(pyro.param("loc", torch.tensor(1.0)), 0.1))


def coins(y):
    p = pyro.param("p", torch.tensor(0.9))
    pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Bernoulli(p), obs=y)


def standard(y):
    pyro.sample("mu", dist.Normal(pyro.param("loc", torch.zeros(())), 1.0))


LATER = [
    (
        positive,
        Y - 1.0,
        normal_rate,
        "at the fitted parameters, site 'rate' is -.*, outside the support .* Exponential",
    ),
    (
        coins,
        torch.ones(40),
        standard,
        "at the fitted parameters, site 'y': 'probs' of its distribution Bernoulli is 1.",
    ),
]


@pytest.mark.parametrize("options", [{"compile": "graph"}, {"compile": "off"}, {"restarts": 2}])
@pytest.mark.parametrize(("model", "data", "guide", "message"), LATER, ids=["value", "parameter"])
def test_a_fit_that_leaves_a_support_is_refused(model, data, guide, message, options):
    """Pyro refuses it during the steps, of which only the first is validated here."""
    with pytest.raises(InputError, match=message):
        pplgen.fit(model, data, guide, steps=300, optimiser="adam", progress=False, **options)


@pytest.mark.parametrize(("model", "data", "guide"), [case[:3] for case in LATER], ids=["value", "parameter"])
def test_without_validation_pyro_refuses_nothing(model, data, guide):
    with pyro.validation_enabled(False):
        assert pplgen.fit(model, data, guide, steps=300, optimiser="adam", progress=False).elbo > -1000


def test_rounding_of_probabilities_is_no_mistake():
    """Sums of many probabilities in single precision are further from one than validation allows."""
    value = torch.tensor([0.5, 0.50001])
    assert not dist.Dirichlet(torch.ones(2)).support.check(value)

    def model():
        p = pyro.sample("p", dist.Dirichlet(torch.ones(2)))
        pyro.sample("z", dist.Categorical(p), obs=torch.tensor(0))

    assert invalid_draw(model, lambda: pyro.sample("p", dist.Delta(value, event_dim=1)), ()) is None
