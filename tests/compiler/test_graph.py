"""The traced graph is Pyro's loss and gradient, or there is none."""

import functools
import importlib.util
from pathlib import Path

import pyro
import pytest
import torch

from pplgen.compiler.graph import trace
from pplgen.compiler.traceable_pyro import NotTraceable
from pplgen.inference.engine import Engine, State
from pplgen.story.isolation import seeded
from pplgen.story.pair import Pair

_SPEC = importlib.util.spec_from_file_location("constructs", Path(__file__).parent / "constructs.py")
constructs = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(constructs)
FAITHFUL, REFUSED = constructs.faithful(), constructs.refused()


@functools.cache
def traced(name):
    """A construct's pair and its graph, traced once for all tests."""
    model, guide, data, bound = FAITHFUL[name]
    pair = Pair(model, guide, data)
    with pair.isolated():
        return pair, trace(pair, bound, data)


def test_the_table_is_long():
    assert len(FAITHFUL) + len(REFUSED) >= 30


@pytest.mark.parametrize("name", FAITHFUL)
def test_loss_and_gradients_are_pyros(name):
    *_, data, bound = FAITHFUL[name]
    pair, graph = traced(name)
    with pair.isolated():
        parameters = dict(sorted(pyro.get_param_store().named_parameters()))
        for parameter in parameters.values():
            parameter.data.add_(0.05 * torch.randn_like(parameter))
        with seeded(7), pyro.validation_enabled(False):
            loss = bound.loss_and_grads(pair.model, pair.guide, *data)
        vector = graph.pack(pair.snapshot())
        with seeded(7), torch.no_grad():
            ours, gradient = graph.loss_and_gradient(vector, *graph.buffers, *data)
        theirs = torch.cat(
            [(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in parameters.values()]
        )
    # the same operations in float32, some in another order
    assert ours.item() == pytest.approx(loss, rel=1e-5)
    assert (gradient - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("name", constructs.UNBATCHED)
def test_what_cannot_be_batched_is_said(name):
    data = FAITHFUL[name][2]
    pair, graph = traced(name)
    with pair.isolated():
        vectors = graph.pack(pair.snapshot())[None].repeat(2, 1)
    with pytest.raises(NotTraceable, match="a batch of restarts cannot be traced"):
        Engine(graph, State.start(vectors), data)
    assert Engine(graph, State.start(vectors[:1]), data).num_traces == 1


@pytest.mark.parametrize("name", sorted(set(FAITHFUL) - constructs.UNBATCHED))
def test_a_batch_of_parameter_sets_is_each_of_them(name):
    """A batch of one draws the same random numbers as none, and so must give the same; a larger one stays finite."""
    data = FAITHFUL[name][2]
    pair, graph = traced(name)
    with pair.isolated(), torch.no_grad():
        vector = graph.pack(pair.snapshot())
        inputs = (*graph.buffers, *data)
        along = (0, *(None for _ in inputs))
        mapped = torch.func.vmap(graph.loss_and_gradient, in_dims=along, randomness="different")
        with seeded(3):
            losses, gradients = mapped(vector[None], *inputs)
        with seeded(3):
            loss, gradient = graph.loss_and_gradient(vector, *inputs)
        torch.testing.assert_close(losses[0], loss, rtol=1e-5, atol=1e-5)
        assert (gradients[0] - gradient).abs().max() <= 1e-5 * gradient.abs().max()
        losses, gradients = mapped(vector + 0.01 * torch.randn(3, 1), *inputs)
        assert losses.shape == (3,)
        assert losses.isfinite().all()
        assert gradients.isfinite().all()


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_traced_is_refused_and_left_as_it_was(name):
    model, guide, data, bound, reason = REFUSED[name]
    pair = Pair(model, guide, data)
    with pair.isolated():
        before = pair.snapshot()
        with pytest.raises(NotTraceable, match=reason) as refusal:
            trace(pair, bound, data)
        assert "\n" not in str(refusal.value)
        after = pair.snapshot()
    for parameter in before:
        assert torch.equal(before[parameter], after[parameter])


def test_pyro_is_put_back_after_a_trace():
    from pyro.infer import trace_elbo
    from pyro.infer.util import Dice

    warn, expectation = trace_elbo.warn_if_nan, Dice.compute_expectation
    model, guide, data, bound = FAITHFUL["functional parameters"]
    pair = Pair(model, guide, data)
    with pair.isolated():
        trace(pair, bound, data)
    assert trace_elbo.warn_if_nan is warn
    assert Dice.compute_expectation is expectation
    assert not pyro.get_param_store().keys()
