"""The operations of a function as a graph: against the function itself, elsewhere, and against ``make_fx``."""

from typing import Any, NamedTuple

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from pplgen.compiler.recording import pause_recording, record_operations
from pplgen.story.isolation import seeded


class Pair(NamedTuple):
    first: Any
    second: Any


HELD = torch.arange(6.0).reshape(2, 3)


def in_place(x, p):
    total = torch.zeros(3)
    total += x.sum(0)
    total[1] = p[0]
    return total.exp_(), [x * 2]


def several_results(x, p):
    values, places = x.max(0)
    first, second = p.split([1, 2])
    return values * places, first + second


def gradient(x, p):
    with torch.enable_grad():
        p = p.detach().requires_grad_()
        loss = (torch.tanh(x * p).exp() / x.logsumexp(0)).sum()
        return loss.detach(), torch.autograd.grad(loss, p)[0]


def many(x, p):
    def one(row):
        return torch.linalg.cholesky(torch.outer(row, row) + 10 * torch.eye(3)) @ p + torch.randn(3)

    return torch.func.vmap(one, randomness="different")(x)


CASES = {
    "in place": in_place,
    "several results": several_results,
    "gradient": gradient,
    "many": many,
    "from elsewhere": lambda x, p: (HELD @ p, torch.tensor([1.0, 2.0]) * x[:, 0], HELD),
    "random": lambda x, p: (
        torch.distributions.Gamma(x.exp(), p.exp(), validate_args=False).rsample() + torch.randint(9, (2, 1))
    ),
    "named tuples": lambda x, p: {"both": Pair(Pair(x * 2, [p]), p + 1)},
    "a number that is always the same": lambda x, p: x * (torch.tensor(2.0) + 1).item() + p,
}


@pytest.mark.parametrize("name", CASES)
def test_does_elsewhere_what_the_function_does(name):
    torch.manual_seed(0)
    x, p = torch.randn(2, 3), torch.randn(3)
    function = CASES[name]
    graph, other = record_operations(function, x, p), make_fx(function)(x, p)
    x, p = torch.randn(2, 3), torch.randn(3)
    with seeded(1):
        expected = function(x, p)
    for each in (graph, other):
        with seeded(1):
            torch.testing.assert_close(each(x, p), expected)
    calls = [[node for node in each.graph.nodes if node.op == "call_function"] for each in (graph, other)]
    assert len(calls[0]) == len(calls[1])
    for node in calls[0]:
        theirs = [each for each in calls[1] if each.target is node.target]
        if "val" in node.meta:
            assert node.meta["val"].shape in [each.meta["val"].shape for each in theirs], node


def test_constants_are_not_changed_by_the_graph():
    def function(x):
        fresh = torch.tensor([1.0, 2.0])
        fresh += x
        return fresh

    graph = record_operations(function, torch.ones(2))
    for _ in range(2):
        assert graph(torch.tensor([3.0, 4.0])).tolist() == [4.0, 6.0]


def test_what_depends_on_the_inputs_is_no_number():
    for function in (lambda x: x * x.sum().item(), lambda x: x if torch.equal(x, x + 1) else -x):
        with pytest.raises(RuntimeError, match="depends on values of the inputs"):
            record_operations(function, torch.ones(2))


def test_unrecorded_results_are_constants():
    def function(x):
        with pause_recording():
            table = torch.arange(4.0).cumsum(0)
        return x + table

    graph = record_operations(function, torch.zeros(4))
    assert [node.op for node in graph.graph.nodes] == ["placeholder", "get_attr", "call_function", "output"]
    assert graph(torch.ones(4)).tolist() == [1.0, 2.0, 4.0, 7.0]


def test_each_operation_is_looked_up_once():
    graph = record_operations(lambda x: (x.exp() + 1).exp() + x.exp(), torch.ones(2))
    assert sum(node.target is torch.ops.aten.exp.default for node in graph.graph.nodes) == 3
    assert graph.code.count("torch.ops.aten.exp.default") == 1
