"""Checks at the first evaluation: supports, shapes of log densities, sites of the guide alone."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import pplgen
from pplgen.errors import InputError

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
