"""Whole models of Pyro's examples and tutorials: traced, trained, described, saved and loaded."""

import functools
import importlib.util
import re
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import pplgen
from pplgen.compiler.graph import trace
from pplgen.compiler.traceable_pyro import NotTraceable
from pplgen.inference import batched_restarts
from pplgen.inference.engine import Engine, State
from pplgen.inference.optimisers import Optimiser
from pplgen.story.isolation import seeded


def _load(name):
    specification = importlib.util.spec_from_file_location(f"pairs_{name}", Path(__file__).parent / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


MODULES = [_load(path.stem) for path in sorted(Path(__file__).parent.glob("*.py")) if path.stem != Path(__file__).stem]
FAITHFUL = {name: build for module in MODULES for name, build in module.PAIRS.items()}
REFUSED = {name: build for module in MODULES for name, build in module.REFUSED.items()}
"""Names of pairs that run in plain Pyro, with the expected reason."""
REPORTED = set(list(FAITHFUL)[5::16])
"""Every sixteenth pair has its report written, which takes longer than all else."""
UNBATCHED = {"deep Markov model", "ordinal regression", "stable reparam"}
"""Some operation has no rule for batches: several restarts run in plain Pyro."""
FIT = {"steps": 20, "compile": "graph", "optimiser": "adam", "progress": False}


@functools.cache
def fitted(name):
    """A short fit, what it was made of, and the pair, bound and graph that were trained: traced once for all tests."""
    traced = []

    def trace_and_keep(pair, bound, *arguments, **options):
        traced.append((pair, bound, trace(pair, bound, *arguments, **options)))
        return traced[-1][-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batched_restarts, "trace", trace_and_keep)
        fit, parts = fit_of(FAITHFUL[name])
    return fit, parts, *traced[-1]


def fit_of(build):
    """A short fit, and what it was made of."""
    with seeded(0):
        model, guide, data, bound, *_ = parts = build()
    return pplgen.fit(model, data, guide, elbo=bound or "sampled", **FIT), parts


def built(name):
    """A pair, its bound and its graph."""
    _, _, *trained = fitted(name)
    return trained


def test_there_are_enough_and_names_are_distinct():
    assert len(FAITHFUL) + len(REFUSED) == sum(len(module.PAIRS) + len(module.REFUSED) for module in MODULES)
    assert len(FAITHFUL) + len(REFUSED) >= 40


@pytest.mark.parametrize("name", FAITHFUL)
def test_loss_and_gradients_are_pyros(name):
    pair, bound, graph = built(name)
    with pair.isolated():
        start = pair.snapshot()
        parameters = dict(sorted(pyro.get_param_store().named_parameters()))
        for parameter in parameters.values():
            parameter.data.add_(0.02 * torch.randn_like(parameter))
        with seeded(7), pyro.validation_enabled(False):
            loss = bound.loss_and_grads(pair.model, pair.guide, *pair.data)
        vector = graph.pack(pair.snapshot())
        with seeded(7), torch.no_grad():
            tensors = [value for value in pair.data if isinstance(value, torch.Tensor)]
            ours, gradient = graph.loss_and_gradient(vector, *graph.buffers, *tensors)
        theirs = torch.cat(
            [(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in parameters.values()]
        )
        pair.restore(start)
        for parameter in parameters.values():
            parameter.grad = None
    # the same operations in float32, some in another order
    assert ours.item() == pytest.approx(float(loss), rel=1e-5)
    assert (gradient - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("name", FAITHFUL)
def test_steps_are_pyros_own(name):
    pair, bound, graph = built(name)
    optimiser = Optimiser(0.01)
    with pair.isolated():
        start = pair.snapshot()
    state = State.start(graph.pack(start)[None])
    tensors = tuple(value for value in pair.data if isinstance(value, torch.Tensor))
    engine = Engine(graph, state, tensors, optimiser=optimiser)
    with seeded(0):
        state, losses = engine.run(state, torch.full((1, 1), optimiser.base_rate), 20)
    with seeded(0), pair.isolated(), pyro.validation_enabled(False):
        svi = pyro.infer.SVI(pair.model, pair.guide, optimiser.for_pyro(), bound)
        theirs = [svi.step(*pair.data) for _ in range(20)]
        expected = pair.snapshot()
        pair.restore(start)
    # Adam divides by the gradient's size, which magnifies the rounding of gradients near zero
    np.testing.assert_allclose(losses[:, 0], theirs, rtol=1e-3)
    for parameter, value in engine.graph.unpack(state.vectors[0]).items():
        torch.testing.assert_close(value, expected[parameter], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", sorted(UNBATCHED))
def test_what_cannot_be_batched_is_said(name):
    pair, _, graph = built(name)
    with pair.isolated():
        vectors = graph.pack(pair.snapshot())[None].repeat(2, 1)
    tensors = tuple(value for value in pair.data if isinstance(value, torch.Tensor))
    with pytest.raises(NotTraceable, match="a batch of restarts cannot be traced"):
        Engine(graph, State.start(vectors), tensors)


def check_fit(name, fit, parts, folder):
    """Describe, save and load."""
    model, guide, data, bound, *_ = parts
    assert np.isfinite(fit.elbo)
    tree = fit.to_datatree(5)
    assert "posterior" in tree.children
    fit.save(folder / "run")
    again = pplgen.load(folder / "run", data, model=model, guide=guide)
    assert again.elbo == fit.elbo
    values = []
    for each in (fit, again):
        with each.pair.isolated(), seeded(3), torch.no_grad(), pyro.validation_enabled(False):
            values.append((bound or each.pair.elbo()).loss(each.pair.model, each.pair.guide, *each.pair.data))
    assert values[0] == values[1]
    if name in REPORTED:
        assert Path(fit.report(folder / "report")).stat().st_size > 1000


@pytest.mark.filterwarnings("ignore:log_likelihood of .* is left out:pplgen.errors.DataWarning")
@pytest.mark.parametrize("name", FAITHFUL)
def test_a_fit_is_described_saved_and_loaded(name, tmp_path):
    fit, parts, *_ = fitted(name)
    assert fit.path == "the traced graph"
    check_fit(name, fit, parts, tmp_path)


@pytest.mark.filterwarnings("ignore:log_likelihood of .* is left out:pplgen.errors.DataWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_graph_is_fitted_all_the_same(name, tmp_path):
    build, reason = REFUSED[name]
    fit, parts = fit_of(build)
    assert fit.path.startswith("plain Pyro: ")
    assert re.search(reason, fit.path)
    check_fit(name, fit, parts, tmp_path)


@pytest.mark.parametrize("mean", [0.3, 2.0])
def test_latents_that_come_and_go_are_said(mean):
    def jumps(y):
        steps = int(pyro.sample("steps", dist.Poisson(2.0)))
        level = sum((pyro.sample(f"jump_{i}", dist.Normal(0.0, 1.0)) for i in range(steps)), torch.tensor(0.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(level, 1.0), obs=y)

    def guide(y):
        steps = int(pyro.sample("steps", dist.Poisson(pyro.param("rate", torch.tensor(mean)))))
        for i in range(steps):
            pyro.sample(f"jump_{i}", dist.Normal(0.1, 0.5))

    fit = pplgen.fit(jumps, torch.ones(4), guide, **FIT)
    assert "branches on values" in fit.path
    with pytest.raises(pplgen.InputError, match=r"'jump_\d' is not a site of every run"):
        fit.to_datatree(40)
