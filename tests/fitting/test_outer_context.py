"""What surrounds a call of fit does not change it: torch's modes, Pyro's handlers, generators, threads."""

import multiprocessing
import os
import sys
import threading

import pyro
import pyro.distributions as dist
import pytest
import torch
from pplgen.models import VAE
from pyro import poutine

import pplgen

Y = torch.linspace(2.0, 6.0, 50)


def model(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def fitted(path="graph", **options):
    return pplgen.fit(model, torch.linspace(2.0, 6.0, 50), steps=300, compile=path, **({"progress": False} | options))


@pytest.fixture(scope="module")
def expected():
    return {path: fitted(path).elbo for path in ("graph", "off")}


@pytest.mark.parametrize("path", ["graph", "off"])
@pytest.mark.parametrize(
    "context",
    [
        torch.inference_mode,
        torch.no_grad,
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        lambda: poutine.scale(scale=10.0),
        lambda: poutine.mask(mask=False),
        lambda: pyro.plate("outer", 2),
        lambda: poutine.condition(data={"mu": torch.zeros(())}),
    ],
    ids=["inference mode", "no_grad", "autocast", "scale", "mask", "plate", "condition"],
)
def test_surroundings_change_nothing(expected, context, path):
    with context():
        fit = fitted(path)
        mu = fit.to_datatree(draws=200, groups=["posterior"])["posterior"]["mu"]
    assert fit.elbo == expected[path]
    assert float(mu.mean()) == pytest.approx(4.0, abs=0.2)


def test_handlers_are_put_back():
    with poutine.trace() as trace, pyro.plate("outer", 2):
        fitted()
        after = pyro.sample("after", dist.Normal(0.0, 1.0))
    assert set(trace.trace.nodes) == {"outer", "after"}
    assert after.shape == (2,)


def test_a_callback_may_draw(expected):
    assert fitted(progress=lambda update: torch.randn(3)).elbo == expected["graph"]


def test_stories_do_not_advance_the_generator():
    torch.manual_seed(5)
    VAE(3, 1)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))


def test_threads_wait_for_each_other(expected):
    elbos = {}

    def run(number):
        elbos[number] = fitted().elbo

    threads = [threading.Thread(target=run, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(elbos.values()) == {expected["graph"]}
    assert not len(pyro.get_param_store())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked")
def test_a_process_that_is_forked_during_a_fit_may_fit(expected):
    """Where a thread fits, the child has its lock, but not the thread."""

    def progress(_):
        started.set()
        forked.wait(60)

    started, forked, context = threading.Event(), threading.Event(), multiprocessing.get_context("fork")
    thread = threading.Thread(target=fitted, kwargs={"progress": progress})
    thread.start()
    started.wait(60)
    child = context.Process(target=lambda: sys.exit(fitted().elbo != expected["graph"]))
    child.start()
    forked.set()
    thread.join()
    child.join(60)
    child.kill()
    assert child.exitcode == 0


@pytest.mark.parametrize("path", ["graph", "off"])
def test_statistics_of_a_module_in_a_closure_are_kept(path):
    norm = torch.nn.BatchNorm1d(1)

    def standardised(y):
        z = norm(y[:, None])[:, 0]
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(mu, 1.0), obs=z.detach())

    before = {name: buffer.clone() for name, buffer in norm.named_buffers()}
    fit = pplgen.fit(standardised, Y, steps=120, compile=path, progress=False)
    fit.to_datatree(10)
    assert all(torch.equal(buffer, before[name]) for name, buffer in norm.named_buffers())
    assert fit.path.startswith("plain Pyro")
