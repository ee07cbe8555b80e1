"""Pairs that keep state in Python are not traced, and the state is named."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

import pplgen
from pplgen.story.python_state import changed_state, reachable_state

Y = torch.linspace(2.0, 6.0, 50)
CALLS, COUNT = [], 0


def sites(y, scale=1.0):
    with poutine.scale(scale=scale):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


class Annealed(nn.Module):
    def __init__(self):
        super().__init__()
        self.n = 0

    def forward(self, y):
        self.n += 1
        sites(y, min(1.0, self.n / 500))


class ClassCounter:
    n = 0

    def __call__(self, y):
        type(self).n += 1
        sites(y)


def a_list_that_grows(y):
    CALLS.append(1)
    sites(y)


def a_global(y):
    global COUNT
    COUNT += 1
    sites(y)


def a_closure():
    seen = {"calls": 0}

    def model(y):
        seen["calls"] += 1
        sites(y)

    return model


def an_iterator(y, numbers=iter(range(10**6))):  # noqa: B008
    sites(y, 1 + next(numbers) / 1000)


def an_argument(y, calls):
    calls.append(1)
    sites(y)


def a_generator(y, generator=torch.Generator()):  # noqa: B008
    sites(y, 1 + torch.rand((), generator=generator) / 1000)


@pytest.mark.parametrize(
    ("model", "place"),
    [
        (a_generator, "draws from a generator of its own"),
        (Annealed(), "changes 'Annealed.n'"),
        (ClassCounter(), "changes 'ClassCounter.n'"),
        (a_list_that_grows, r"changes 'len\(CALLS\)'"),
        (a_global, "changes 'COUNT'"),
        (a_closure(), r'changes "seen\[\'calls\'\]"'),
        (partial(an_argument, calls=[]), r"changes \"len\(partial.keywords\['calls'\]\)\""),
        (an_iterator, "two evaluations at the same parameters and seed differ"),
    ],
    ids=["generator", "attribute", "class", "list", "global", "closure", "partial", "iterator"],
)
def test_a_pair_that_keeps_state_runs_in_plain_pyro(model, place):
    fit = pplgen.fit(model, Y, steps=150, compile="graph", progress=False)
    assert fit.path.startswith("plain Pyro: ")
    with pytest.raises(AssertionError, match=place):
        raise AssertionError(fit.path)


def test_an_annealed_weight_reaches_the_elbo():
    """The weight of the latent is 1 after 500 evaluations, so the ELBO is that of the model without it."""
    fit = pplgen.fit(Annealed(), Y, steps=700, progress=False)
    plain = pplgen.fit(sites, Y, compile="graph", progress=False)
    assert fit.elbo == pytest.approx(plain.elbo, abs=0.05 + 4 * (fit.best.elbo_error + plain.best.elbo_error))


def test_reachable_state_has_readable_names_and_ends_in_cycles():
    loop = {"a": [1, 2.5]}
    loop["itself"] = loop

    def function():
        return loop, Y

    state = reachable_state(function)
    assert state["loop['a'][1]"] == "2.5"
    assert changed_state(state, reachable_state(function)) is None
    loop["a"].append(3)
    assert changed_state(state, reachable_state(function)) == "len(loop['a'])"


def test_variables_of_the_same_name_are_told_apart():
    def counter():
        n = [0]
        return (lambda: n), n

    (first, own), (second, _) = counter(), counter()
    before = reachable_state(first, second)
    own[0] += 1
    assert changed_state(before, reachable_state(first, second)) == "n[0]"
