"""A simpler graph computes the same, with less."""

import collections

import pytest
import torch

from pplgen.compiler import functionalisation as rewrite
from pplgen.compiler.functionalisation import canonicalise, lift_constants
from pplgen.compiler.recording import record_operations
from pplgen.compiler.sum_factoring import factor_sums

aten = torch.ops.aten
ROWS = torch.linspace(-1.0, 2.0, 6)[:, None]
PARAMETERS = torch.tensor([0.5, 1.5, 2.5])


def counted(graph):
    """How often each operation occurs."""
    return collections.Counter(node.target for node in graph.graph.nodes if node.op == "call_function")


def largest(graph, *targets):
    """Entries of the largest result of the named operations."""
    nodes = [node for node in graph.graph.nodes if node.target in targets]
    return max((node.meta["val"].numel() for node in nodes), default=0)


CASES = {
    # name: function, operations that must be gone
    "adding zeros": (lambda x, p: x + torch.zeros(3) + p, ()),
    "a neutral factor": (lambda x, p: (x * torch.ones(()) / 1.0) ** 1 - p, (aten.pow.Tensor_Scalar, aten.div.Tensor)),
    "a mask that is always true": (lambda x, p: torch.where(torch.ones(3) > 0, x * p, -p), (aten.where.self,)),
    "constants of constants": (lambda x, p: x + torch.arange(3).float().cumsum(0).log1p() * p, (aten.cumsum.default,)),
    "all places by index": (lambda x, p: p[torch.arange(3)] * x, (aten.index.Tensor,)),
    "a scalar product with ones": (lambda x, p: torch.dot(p, torch.ones(3)) * x, (aten.dot.default,)),
    "equal to itself": (lambda x, p: (p == p).float().log() + x, (aten.log.default,)),
    "the same twice": (lambda x, p: p.exp() + x.sin() + p.exp(), ()),
    "reshaped to what it is": (lambda x, p: x.view(6, 1).reshape(6, 1).squeeze(0) * p, (aten.view.default,)),
    "columns by lines": (
        lambda x, p: torch.bmm(x[None], p[None, None]) + torch.bmm(p[None, None], p[None, :, None]),
        (aten.bmm.default,),
    ),
    "triangular matrices of one entry": (
        lambda x, p: torch.linalg.solve_triangular(p[:, None, None], x.expand(3, 6, 1).mT, upper=False),
        (aten.linalg_solve_triangular.default,),
    ),
    "index of a largest entry": (
        lambda x, p: torch.zeros(3).scatter(0, p.argmax(0, keepdim=True), 1.0) * p + x,
        (aten.scatter.value,),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_same_with_less(name):
    function, gone = CASES[name]
    graph = canonicalise(record_operations(function, ROWS, PARAMETERS), [ROWS, PARAMETERS])
    torch.testing.assert_close(graph(ROWS, PARAMETERS), function(ROWS, PARAMETERS))
    new = (ROWS.flip(0) * 2, PARAMETERS + 1)
    torch.testing.assert_close(graph(*new), function(*new))
    assert not set(gone) & set(counted(graph))


def test_repetitions_are_computed_before_they_are_repeated():
    def function(x, p):
        return x / p.expand(6, 3).exp().log1p().sum(0, keepdim=True).expand(6, 3)

    graph = canonicalise(record_operations(function, ROWS, PARAMETERS), [ROWS, PARAMETERS])
    torch.testing.assert_close(graph(ROWS, PARAMETERS), function(ROWS, PARAMETERS))
    assert largest(graph, aten.exp.default, aten.log1p.default, aten.reciprocal.default) == 3


IN_PLACE = {
    "a fresh result": (lambda x, p: (x * p).add_(1.0) * (x * p > 0).logical_and_(x > 0), True),
    "a view of one": (lambda x, p: _changed(x * p, lambda y: y[:, 0].add_(p[0])), False),
    "one that is read before": (lambda x, p: _read_before(x * p), True),
    "of a wider type": (lambda x, p: (x * p).add_(p.double()), False),
}


def _changed(value, change):
    change(value)
    return value


def _read_before(value):
    double = value * 2
    return value.sin_() + double


@pytest.mark.parametrize("name", IN_PLACE)
def test_in_place_operations_are_functions(name, monkeypatch):
    """Where they change fresh results alone, without the longer way round."""
    function, short = IN_PLACE[name]
    longer = []
    functional = rewrite._functionalise
    monkeypatch.setattr(rewrite, "_functionalise", lambda *given: longer.append(1) or functional(*given))
    graph = canonicalise(record_operations(function, ROWS, PARAMETERS), [ROWS, PARAMETERS])
    assert bool(longer) != short
    assert not any(
        getattr(node.target, "_schema", None) and node.target._schema.is_mutable for node in graph.graph.nodes
    )
    for x in (ROWS, -ROWS):
        assert torch.equal(graph(x, PARAMETERS), function(x, PARAMETERS))


def test_an_operation_in_place_may_read_a_lifted_constant():
    graph = record_operations(lambda x: (x + torch.ones(3)).sub_(PARAMETERS), ROWS)
    lift_constants(graph, [PARAMETERS])
    graph = canonicalise(graph, [PARAMETERS, ROWS])
    torch.testing.assert_close(graph(2 * PARAMETERS, ROWS), ROWS + 1 - 2 * PARAMETERS)


def test_equal_operations_are_one():
    graph = canonicalise(record_operations(CASES["the same twice"][0], ROWS, PARAMETERS), [ROWS, PARAMETERS])
    assert counted(graph)[aten.exp.default] == 1


def test_random_numbers_are_drawn_as_often_and_in_the_same_order():
    def function(x):
        torch.rand(2)
        return x * torch.randn(3) + torch.randn(3)

    graph = canonicalise(record_operations(function, ROWS), [ROWS])
    torch.manual_seed(1)
    expected = function(ROWS)
    torch.manual_seed(1)
    torch.testing.assert_close(graph(ROWS), expected)


SUMS = {
    "a factor": lambda x, p: (x * p.exp()).sum(0),
    "a divisor and a sign": lambda x, p: -(x / p).sum(0),
    "a term": lambda x, p: (x.sin() * torch.ones(3) - p.log() - 0.9).sum(0),
    "terms of products": lambda x, p: (x * p + x.square() * p / p.exp() * 2).sum(0, keepdim=True),
    "along the last axis": lambda x, p: (x.exp() * p - 2.0).sum(-1),
    "along both": lambda x, p: (x * p).sum((0, 1)),
    "a mask of the parameters": lambda x, p: torch.where(p > 1, x * p, torch.zeros(())).sum(0),
    "nothing to take out": lambda x, p: (x - p).square().sum(0),
    "nothing inside": lambda x, p: (p.expand(6, 3) * 2).sum(0),
    "a cube": lambda x, p: (x[:, None] * p[None, :, None] / p).sum((0, 2)),
}


@pytest.mark.parametrize("name", SUMS)
def test_factors_come_out_of_sums(name):
    """In double precision, for another order of summation; and what was taken out is not computed for every row."""
    x, p = ROWS.double(), PARAMETERS.double()
    graph = canonicalise(record_operations(SUMS[name], x, p), [x, p])
    torch.testing.assert_close(graph(x, p), SUMS[name](x, p), rtol=1e-12, atol=1e-12)
    assert largest(graph, aten.mul.Tensor, aten.div.Tensor) <= 18
    if name in ("a factor", "a divisor and a sign"):
        assert largest(graph, aten.mul.Tensor, aten.div.Tensor) <= 3


def test_what_others_read_is_not_taken_apart():
    def function(x, p):
        product = x * p
        return product.sum(0), product.sin()

    graph = record_operations(function, ROWS, PARAMETERS)
    before = counted(graph)
    factor_sums(graph)
    assert counted(graph) == before
