"""The batched step is Adam on Pyro's gradient, compiled or not, and is traced once."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pplgen.models import GaussianMixture
from pyro.infer import config_enumerate

import pplgen
from pplgen.compiler.functionalisation import last_output
from pplgen.compiler.graph import trace
from pplgen.compiler.inductor import why_not_compiled
from pplgen.compiler.traceable_pyro import NotTraceable
from pplgen.errors import DataWarning
from pplgen.inference import engine as engine_module
from pplgen.inference.engine import Engine, State
from pplgen.inference.optimisers import Optimiser, Rule
from pplgen.inference.training_result import StopReason
from pplgen.story.conditioning import RowScale
from pplgen.story.isolation import flush_denormals, seeded
from pplgen.story.pair import Pair

Y = torch.linspace(-1.0, 2.0, 25)

needs_compiler = pytest.mark.skipif(why_not_compiled() is not None, reason=str(why_not_compiled()))


def model(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def guide(y):
    loc = pyro.param("loc", torch.tensor(3.0))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
    pyro.sample("mu", dist.Normal(loc, scale))


def engine_of(pair, restarts, batch_size=None, scale=None, **options):
    with pair.isolated():
        data = pair.data if batch_size is None else tuple(value[:batch_size] for value in pair.data)
        graph = trace(pair, pair.elbo(), data, scale)
        vectors = graph.pack(pair.snapshot())[None].repeat(restarts, 1)
    state = State.start(vectors)
    source = pair.data if batch_size is None else minibatches(pair.data[0], batch_size)
    return Engine(graph, state, source, **options), state, torch.full((restarts, 1), 0.05)


def minibatches(values, batch_size):
    """Random entries along the last axis, without end."""
    while True:
        yield (values[..., torch.randperm(values.shape[-1])[:batch_size]],)


OPTIMISERS = [
    Optimiser(0.05),
    Optimiser(0.05, clip=2.0, decay=0.9),
    Optimiser(0.05, rule=Rule.of({"name": "adamw", "weight_decay": 0.5})),
    Optimiser(0.001, rule=Rule.of({"name": "sgd", "momentum": 0.5})),
    Optimiser({"loc": 0.1, "scale": 0.001}),
    Optimiser(0.05, decay=lambda step: min(1.0, step / 10) / step**0.5),
]


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_steps_are_pyros_own(optimiser):
    """One restart takes the very steps of SVI with torch's optimiser at the same seed."""
    pair = Pair(model, guide, (Y,))
    engine, state, _ = engine_of(pair, 1, optimiser=optimiser)
    rates = torch.full((1, 1), optimiser.base_rate)
    with seeded(0):
        state, losses = engine.run(state, rates, 30)
    with seeded(0), pair.isolated(), pyro.validation_enabled(False):
        svi = pyro.infer.SVI(pair.model, pair.guide, optimiser.for_pyro(), pair.elbo())
        theirs = [svi.step(Y) for _ in range(30)]
        expected = pair.snapshot()
    np.testing.assert_allclose(losses[:, 0], theirs, rtol=1e-4)
    for name, value in engine.graph.unpack(state.vectors[0]).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)


def test_denormal_numbers_are_zero_within_steps_alone():
    tiny, seen = torch.tensor(1e-40), []
    engine, state, rates = engine_of(Pair(model, guide, (Y,)), 1)
    engine.run(state, rates, 1, callback=lambda *_: seen.append(float(tiny * 1)))
    assert seen == [0.0]
    assert tiny * 1 > 0
    with flush_denormals(), flush_denormals():  # where the caller had it so already, it stays so
        pass
    with flush_denormals():
        engine.run(state, rates, 1)
        assert tiny * 1 == 0


def test_losses_alone_are_those_of_steps_of_length_zero():
    """The same random numbers are drawn, so they are equal to the last digit; and no gradient is computed."""
    engine, state, rates = engine_of(Pair(model, guide, (Y,)), 3)
    with seeded(1):
        _, expected = engine.run(state, 0 * rates, 4)
    with seeded(1):
        assert torch.equal(engine.evaluate(state.vectors, 4), expected)
    whole = engine._single.call
    assert len(last_output(whole).graph.nodes) < 0.7 * len(whole.graph.nodes)


@pytest.mark.parametrize("batch_size", [None, 5])
def test_each_vector_can_have_data_of_its_own(batch_size):
    """At a rate of zero the mean loss of each is the mean loss of an engine for its data alone."""
    pair = Pair(model, guide, (Y,))
    scale = None if batch_size is None else RowScale("data", 5.0)
    apart = torch.stack([Y, Y + 1.0, -Y])
    with pair.isolated():
        graph = trace(pair, pair.elbo(), (Y[:batch_size],), scale)
        state = State.start(graph.pack(pair.snapshot())[None].repeat(3, 1))
    source = (apart,) if batch_size is None else minibatches(apart, batch_size)
    engine = Engine(graph, state, source, own_data=True)
    _, losses = engine.run(state, torch.zeros(3, 1), 500)
    for index, own in enumerate(apart):
        alone, single, rates = engine_of(Pair(model, guide, (own,)), 1)
        _, expected = alone.run(single, 0 * rates, 500)
        error = ((losses[:, index].var() + expected.var()) / 500).sqrt().item()
        assert losses[:, index].mean().item() == pytest.approx(expected.mean().item(), abs=4 * error)


def test_restarts_have_random_numbers_and_rates_of_their_own():
    engine, state, rates = engine_of(Pair(model, guide, (Y,)), 3)
    rates[1] = 0.0
    after, losses = engine.run(state, rates, 5)
    assert losses.shape == (5, 3)
    assert len(set(losses[0].tolist())) == 3
    assert torch.equal(after.vectors[1], state.vectors[1]), "a rate of zero leaves a restart where it is"
    assert not torch.equal(after.vectors[0], after.vectors[2])


def test_nothing_is_traced_again():
    engine, state, rates = engine_of(Pair(model, guide, (Y,)), 2)
    for _ in range(3):
        state, _ = engine.run(state, rates * 0.3, 7)
    assert engine.num_traces == 1


def test_minibatches_stand_for_all_rows():
    """The mean of the scaled loss over random batches is the loss on all rows, at rate zero."""
    scaled, state, rates = engine_of(Pair(model, guide, (Y,)), 1, batch_size=5, scale=RowScale("data", 5.0))
    full, _, _ = engine_of(Pair(model, guide, (Y,)), 1)
    _, batches = scaled.run(state, 0 * rates, 800)
    _, whole = full.run(state, 0 * rates, 800)
    error = (batches.var().item() + whole.var().item()) ** 0.5 / 800**0.5
    assert batches.mean().item() == pytest.approx(whole.mean().item(), abs=4 * error)


@needs_compiler
def test_compiled_steps_are_the_graphs(monkeypatch):
    @config_enumerate
    def groups(y):
        with pyro.plate("groups", 2):
            mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])))
            pyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)

    def apart(y):
        loc = pyro.param("loc", torch.tensor([0.0, 1.0]))
        with pyro.plate("groups", 2):
            pyro.sample("mu", dist.Normal(loc, pyro.param("scale", torch.ones(2), dist.constraints.positive)))

    engine, state, rates = engine_of(Pair(groups, apart, (Y,)), 2)
    # two steps a call, sooner compiled than five
    monkeypatch.setattr(engine_module, "NODES_PER_CALL", 2 * len(engine._single.call.graph.nodes))
    with seeded(1):
        expected, losses = engine.run(state, rates, 3)
    engine.compile(rates)
    assert engine.block_size == 2
    with seeded(1):
        given, compiled = engine.run(state, rates, 3)
    torch.testing.assert_close(compiled, losses, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(given.vectors, expected.vectors, rtol=1e-3, atol=1e-4)


def test_a_wrong_compiler_is_found_out(monkeypatch):
    """A compiled step that is off by a thousandth must not be used."""

    def wrong(graph, inputs, *, cudagraphs):
        return lambda *arguments: tuple(1.001 * value for value in graph(*arguments))

    monkeypatch.setattr(engine_module, "compile_graph", wrong)
    monkeypatch.setattr(engine_module, "why_not_compiled", lambda: None)
    engine, _, rates = engine_of(Pair(model, guide, (Y,)), 2)
    with pytest.raises(NotTraceable, match=r"the compiled step's .* differs"):
        engine.compile(rates)
    assert engine.block_size == 1


def test_a_missing_compiler_is_said(monkeypatch):
    monkeypatch.setattr(engine_module, "why_not_compiled", lambda: "no C++ compiler was found")
    fit = pplgen.fit(model, Y, guide, steps=5, compile="inductor", progress=False)
    assert fit.path == "the traced graph: no C++ compiler was found"


@pytest.fixture(scope="module")
def plain():
    """Old Faithful in plain Pyro."""
    return pplgen.fit(GaussianMixture(2, 2), "faithful", steps=300, learning_rate=0.05, compile="off", progress=False)


def test_old_faithful_does_not_depend_on_the_path(plain):
    fit = pplgen.fit(GaussianMixture(2, 2), "faithful", compile="graph", restarts=2, progress=False)
    assert fit.path == "the traced graph, then L-BFGS"
    assert fit.stop is StopReason.CONVERGED
    # where it settles varies by some tenths of a nat with the noise of the last steps
    assert fit.elbo == pytest.approx(plain.elbo, abs=0.5 + 4 * np.hypot(fit.best.elbo_error, plain.best.elbo_error))
    assert fit.spread < 1.0
    means = [f.to_datatree(300, groups=["posterior"])["posterior"]["mu"].mean(("chain", "draw")) for f in (fit, plain)]
    spread = np.array([[0.03, 0.6], [0.03, 0.5]])  # posterior deviations
    assert (np.abs(means[0] - means[1]) < 0.5 * spread).all()


def test_a_pair_without_a_graph_runs_in_plain_pyro_and_says_why():
    def branching(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        scale = 1.0 if mu > 0 else 2.0
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, scale), obs=y)

    fit = pplgen.fit(branching, Y, guide, steps=20, compile="graph", progress=False)
    assert fit.path.startswith(
        "plain Pyro: the pair branches on values: it converts a tensor computed from 'mu' to a Python bool"
    )


def test_few_steps_run_in_plain_pyro():
    fit = pplgen.fit(model, Y, guide, steps=20, progress=False)
    assert fit.path == "plain Pyro: 20 steps are too few to repay tracing"


def test_restarts_run_together_and_the_best_is_kept():
    updates = []

    def scattered(y):
        loc = pyro.param("loc", lambda: 9.0 * torch.randn(()))
        pyro.sample("mu", dist.Normal(loc, pyro.param("scale", torch.tensor(1.0), dist.constraints.positive)))

    options = {"restarts": 3, "steps": 200, "optimiser": "adam"}
    fit = pplgen.fit(model, Y, scattered, progress=updates.append, **options)
    assert fit.path == "the traced graph"
    assert [(u.restart, u.restarts, u.step) for u in updates] == [(3, 3, 100), (3, 3, 200)]
    assert len(fit.runs) == 3
    assert fit.elbo == max(run.elbo for run in fit.runs)
    assert fit.spread > 1.0, "they end apart"
    again = pplgen.fit(model, Y, scattered, progress=False, **options)
    np.testing.assert_array_equal(fit.best.history, again.best.history)
    # the parameters that are kept are those of the best: a fresh estimate agrees
    with fit.pair.isolated():
        values = [-fit.pair.elbo().loss(fit.pair.model, fit.pair.guide, *fit.pair.data) for _ in range(100)]
    error = np.hypot(np.std(values) / 10, fit.best.elbo_error)
    assert np.mean(values) == pytest.approx(fit.elbo, abs=4 * error)


def test_an_interrupt_keeps_every_restart_so_far():
    def stop(update):
        if update.step == 200:
            raise KeyboardInterrupt

    fit = pplgen.fit(model, Y, guide, restarts=4, optimiser="adam", progress=stop)
    assert [run.stop for run in fit.runs] == [StopReason.INTERRUPTED] * 4
    assert all(len(run.history) == 200 for run in fit.runs)


def test_a_restart_without_a_finite_elbo_is_dropped_and_the_others_go_on():
    starts = iter([1.0, float("nan"), 2.0])

    def fragile(y):
        start = pyro.param("start", lambda: torch.tensor(next(starts)))
        pyro.sample("mu", dist.Normal(start, pyro.param("scale", torch.tensor(1.0))))

    named = r"restart 2, step \d+: the guide's draw of 'mu' is NaN"
    with pyro.validation_enabled(False), pytest.warns(DataWarning, match=named):
        fit = pplgen.fit(model, Y, fragile, restarts=3, steps=300, progress=False)
    assert fit.path == "the traced graph, then L-BFGS"
    assert len(fit.runs) == 2
    assert fit.num_failed == 1


def test_minibatches_run_together():
    fit = pplgen.fit(GaussianMixture(2, 2), "faithful", batch_size=64, steps=300, restarts=2, progress=False)
    assert fit.path == "the traced graph"
    # a bound estimated on minibatches; the full one is -1185
    assert fit.elbo == pytest.approx(-1185, abs=10 + 4 * fit.best.elbo_error)
