"""Pairs that keep state in Python are not traced, and the state is named."""

import array
import collections
import contextvars
import datetime
import functools
import io
import itertools
import queue
import random
import threading
import time
import types
from functools import partial

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
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
        (a_generator, "draws from a torch.Generator other than the default one"),
        (Annealed(), "changes 'Annealed.n'"),
        (ClassCounter(), "changes 'ClassCounter.n'"),
        (a_list_that_grows, r"changes 'len\(CALLS\)'"),
        (a_global, "changes 'COUNT'"),
        (a_closure(), r'changes "seen\[\'calls\'\]"'),
        (partial(an_argument, calls=[]), r"changes \"len\(partial.keywords\['calls'\]\)\""),
        (an_iterator, "defaults\\[0\\], an iterator"),
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


MODULE = types.ModuleType("settings")
exec("step = 0\ndef beta():\n    global step\n    step += 1\n    return 1 + step / 1000", vars(MODULE))
CONTEXT = contextvars.ContextVar("CONTEXT", default=0)


def a_function_of_a_module(y):
    sites(y, MODULE.beta())


def an_attribute_of_a_module(y):
    MODULE.step += 1
    sites(y, 1 + MODULE.step / 1000)


def a_rare_branch(y):
    sites(y, 1.0 if np.random.rand() > 1e-9 else 0.5)  # noqa: NPY002


def another_rare_branch(y):
    sites(y, 1.0 if random.random() > 1e-9 else 0.5)


def a_clock(y):
    sites(y, 1.0 if time.time() > 1e9 else 0.5)


class AnnealedBound(Trace_ELBO):
    n = 0

    def _get_trace(self, *arguments):
        self.n += 1
        return super()._get_trace(*arguments)


@pytest.mark.parametrize(
    ("model", "options", "place"),
    [
        (a_function_of_a_module, {}, "changes 'step'"),
        (an_attribute_of_a_module, {}, "changes 'MODULE.step'"),
        (a_rare_branch, {}, 'changes "NumPy\'s global random generator"'),
        (another_rare_branch, {}, 'changes "Python\'s global random generator"'),
        (a_clock, {}, "changes 'time.time, a clock'"),
        (sites, {"elbo": AnnealedBound()}, "changes 'AnnealedBound.n'"),
    ],
    ids=["function of a module", "attribute of a module", "numpy", "random", "clock", "elbo"],
)
def test_what_is_around_a_pair_may_change_too(model, options, place):
    fit = pplgen.fit(model, Y, steps=150, compile="graph", progress=False, **options)
    assert fit.path == f"plain Pyro: evaluating the pair {place}, so it is not a pure function"


def test_an_elbo_without_state_is_traced():
    class Same(Trace_ELBO):
        def _get_trace(self, *arguments):
            return super()._get_trace(*arguments)

    fit = pplgen.fit(sites, Y, steps=150, compile="graph", progress=False, elbo=Same())
    assert fit.path.startswith("the traced graph")


class Slotted:
    __slots__ = ("__n", "count")

    def __init__(self):
        self.__n = 0

    def step(self):
        self.__n += 1


class Base:
    number = 0

    @property
    def beta(self):
        Base.number += 1
        return Base.number

    @staticmethod
    def step():
        Base.number += 1


class Derived(Base):
    pass


class Dictionary(dict):
    n = 0


def generated():
    yield from itertools.count()


def numbers():
    n = 0
    while True:
        n += 1
        yield n


def recent():
    table = [0.0] * 3000
    return table, lambda: table.__setitem__(2500, 1.0)


def nested():
    table = {name: list(range(500)) for name in range(500)}
    return table, lambda: table[400].__setitem__(499, -1)


def many_tensors():
    tensors = [torch.zeros(2) for _ in range(2000)]
    return tensors, lambda: tensors[1999].add_(1.0)


def an_entry(values, place=-1):
    return values, lambda: values.__setitem__(place, 1)


def a_strided_view():
    whole = np.zeros(5000)
    return whole[::2], lambda: whole.__setitem__(2, 1.0)


def an_attribute(owner, old, new):
    owner.value = old
    return owner, lambda: setattr(owner, "value", new)


def a_frame():
    frame = pd.DataFrame({"a": [0, 1], "b": ["x", "y"]})
    return frame, lambda: frame.loc.__setitem__((0, "b"), "z")


def a_set():
    members = set(range(60))
    return members, lambda: members.symmetric_difference_update({0, 60})


def behind_a_cache():
    calls = []
    return functools.lru_cache(lambda: len(calls)), lambda: calls.append(1)


def a_hook():
    calls, module = [], nn.Linear(1, 1)
    module.register_forward_pre_hook(lambda *_: calls.append(1))
    return module, lambda: module(torch.ones(1))


def its_own(make, name):
    """An object and a method of it that changes it."""
    return lambda: ((value := make()), getattr(value, name))


def consumed(make):
    return lambda: ((iterator := make()), lambda: next(iterator))


@pytest.mark.parametrize(
    "make",
    [
        lambda: an_attribute(types.SimpleNamespace(), 0, 1),
        lambda: an_attribute(threading.local(), 0, 1),
        lambda: an_attribute(Dictionary(), 0, 1),
        lambda: an_attribute(torch.zeros(1), 0, 1),
        lambda: an_attribute(types.SimpleNamespace(), np.int64(0), np.int64(1)),
        lambda: an_attribute(types.SimpleNamespace(), datetime.date(2000, 1, 1), datetime.date(2000, 1, 2)),
        lambda: an_attribute(types.SimpleNamespace(), Base.step, len),
        lambda: ((part := Derived()), an_attribute(vars(part).setdefault("m", types.ModuleType("m")), 0, 1)[1]),
        its_own(Slotted, "step"),
        its_own(Derived, "step"),
        lambda: ((base := Derived()), lambda: base.beta),
        lambda: (CONTEXT, lambda: CONTEXT.set(CONTEXT.get() + 1)),
        lambda: an_entry(pd.Series([0, 2]), 0),
        a_frame,
        a_set,
        behind_a_cache,
        a_hook,
        recent,
        nested,
        many_tensors,
        a_strided_view,
        lambda: an_entry(np.zeros(5000)),
        lambda: an_entry(np.zeros(2_100_001)),
        lambda: an_entry(np.array([0, None], dtype=object)),
        lambda: an_entry(array.array("i", [0])),
        lambda: an_entry(bytearray(3)),
        lambda: ((tensor := torch.zeros(2, requires_grad=True)), lambda: tensor.data.add_(1.0)),
        its_own(lambda: random.Random(0), "random"),
        its_own(lambda: np.random.default_rng(0), "random"),
        its_own(lambda: np.random.RandomState(0), "rand"),
        lambda: ((method := np.random.default_rng(0).random), method),
        lambda: ((queued := queue.Queue()), lambda: queued.put(1)),
        lambda: ((counts := collections.Counter(a=1)), lambda: counts.update("a")),
        its_own(lambda: io.StringIO("1\n2\n"), "readline"),
        consumed(generated),
        consumed(numbers),
        consumed(lambda: (n for n in itertools.count())),
        consumed(lambda: itertools.chain([1], [2])),
        consumed(lambda: itertools.cycle([1, 2])),
        consumed(lambda: iter([1, 2])),
        consumed(lambda: map(str, [1, 2])),
        lambda: ((tick := itertools.count().__next__), tick),
    ],
)
def test_changes_are_seen(make):
    value, change = make()

    def function():
        return value

    before = reachable_state(function)
    change()
    assert changed_state(before, reachable_state(function)) is not None


def test_what_only_looks_like_state_is_none():
    column, cached = types.SimpleNamespace(time=1), functools.lru_cache(abs)
    frame, generator = pd.DataFrame({"a": [0, 1]}), numbers()
    normal = dist.TransformedDistribution(dist.Normal(torch.zeros(1), 1.0), [dist.transforms.Spline(1)])

    def function():
        return column.time, cached(1), frame["a"].mean(), next(iter([1])), normal.rsample(), print("", end="")

    before = reachable_state(function, lambda: generator)
    function()
    assert changed_state(before, reachable_state(function, lambda: generator)) is None
