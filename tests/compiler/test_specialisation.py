"""Branches, numbers and shapes that depend on the data alone are constants of the graph, where the data are."""

import re

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import pplgen
from pplgen.compiler.graph import trace
from pplgen.compiler.traceable_pyro import NotTraceable
from pplgen.story.pair import Pair

FIT = {"steps": 100, "progress": False, "compile": "graph"}
GENERATOR = torch.Generator().manual_seed(0)
Y = torch.randn(6, 8, generator=GENERATOR)
LENGTHS = torch.tensor([8, 5, 3, 8, 1, 6])
GROUPS = torch.tensor([0, 1, 1, 2, 0, 2, 2, 1])


def asserting(y, lengths):
    """As in Pyro's hidden Markov models: an assertion on lengths, a loop up to the longest, masked steps."""
    assert lengths.max() <= y.shape[1]
    mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("series", len(y)):
        for t in pyro.markov(range(lengths.max())):
            with poutine.mask(mask=t < lengths):
                z = pyro.sample(f"z_{t}", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
                pyro.sample(f"y_{t}", dist.Normal(mu[z.long()], 1.0), obs=y[:, t])


def reversing(y, lengths):
    """As in Pyro's deep Markov model: each series reversed up to its length."""
    flipped = torch.zeros_like(y)
    for row in range(len(y)):
        flipped[row, : lengths[row]] = y[row, torch.arange(lengths[row] - 1, -1, -1)]
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("series", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0).expand([8]).to_event(1), obs=flipped)


def masking(y, lengths):
    """Entries chosen by a mask of the data, and latents by one."""
    mu = pyro.sample("mu", dist.Normal(torch.zeros(6), 1.0).to_event(1))
    chosen = y[:, 0] > 0
    with pyro.plate("chosen", int(chosen.sum())):
        pyro.sample("y", dist.Normal(mu[chosen], 1.0), obs=y[chosen, 1])


def counting(y, lengths):
    """Numbers of groups from the data, by torch and by NumPy."""
    number, largest = len(torch.unique(lengths)), int(np.max(lengths.numpy()))
    mu = pyro.sample("mu", dist.Normal(torch.zeros(number), 1.0).to_event(1))
    with pyro.plate("series", len(y)):
        pyro.sample("y", dist.Normal(mu.mean(), float(largest)), obs=y[:, 0])


def branching(y, lengths):
    if y.mean() > 10 or lengths.tolist()[0] == 7:
        raise ValueError("not these data")
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0 if y.std().item() < 5 else 2.0))
    with pyro.plate("series", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y[:, 0])


MODELS = [asserting, reversing, masking, counting, branching]


@pytest.mark.parametrize(("model", "restarts"), [*((model, 1) for model in MODELS), (asserting, 2)])
def test_the_graph_runs(model, restarts):
    """The proof against Pyro's loss and gradients is part of tracing; restarts are one program."""
    fit = pplgen.fit(model, (Y, LENGTHS), restarts=restarts, **FIT)
    assert fit.path.startswith("the traced graph")


@pytest.mark.parametrize("model", MODELS)
def test_a_graph_for_any_data_has_no_such_constants(model):
    pair = Pair(model, None, (Y, LENGTHS))
    with pair.isolated():
        assert trace(pair, pair.elbo(), pair.data, fixed=True).specialised
        with pytest.raises(NotTraceable):
            trace(pair, pair.elbo(), pair.data)


def test_minibatches_run_in_plain_pyro_with_file_and_line():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        if y.max() > 100:
            mu = mu * 2
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    fit = pplgen.fit(model, Y.reshape(-1), batch_size=10, **FIT)
    line = model.__code__.co_firstlineno + 2
    assert f"converts a tensor to a Python bool (test_specialisation.py, line {line})" in fit.path


def branch_on_site(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        scale = 1.0 if (2 * mu).sum() > 0 else 2.0
        pyro.sample("y", dist.Normal(mu, scale), obs=y)


def branch_on_parameter(y):
    scale = pyro.param("scale", torch.tensor(1.0))
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0 if scale > 0 else 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, scale.abs()), obs=y)


def branch_on_changed_memory(y):
    """Zeros are known until a latent is written into them."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    seen = torch.zeros(3)
    seen[1] = mu
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0 if seen.sum() > 0 else 2.0), obs=y)


def numpy_of_site(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, float(np.exp(mu.detach().numpy()))), obs=y)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (branch_on_site, r"a tensor computed from 'mu' to a Python bool \(test_specialisation.py, line {}\)"),
        (branch_on_parameter, r"a tensor to a Python bool \(test_specialisation.py, line {}\)"),
        (branch_on_changed_memory, r"a tensor to a Python bool"),
        (numpy_of_site, r"a tensor computed from 'mu' to a Python NumPy array"),
    ],
)
def test_what_changes_from_step_to_step_is_not_a_constant(model, reason):
    fit = pplgen.fit(model, Y[:, 0], **FIT)
    lines = model.__code__.co_firstlineno + np.arange(8)
    assert fit.path.startswith("plain Pyro")
    assert any(re.search(reason.format(line), fit.path) for line in lines), fit.path
