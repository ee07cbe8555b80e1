"""Functionalise an ATen graph and make it batchable and safe to compile."""

from __future__ import annotations

import copy
import math
import operator
from typing import Any

import torch
from torch import Tensor, fx

from pplgen.compiler import gamma_operations  # noqa: F401
from pplgen.compiler.recording import description, record_operations
from pplgen.compiler.simplify import RANDOM, Simplifier, eliminate_common_subexpressions
from pplgen.compiler.sum_factoring import factor_sums

__all__ = ["canonicalise", "last_output", "lift_constants"]

aten = torch.ops.aten


def canonicalise(module: fx.GraphModule, inputs: list[Tensor]) -> fx.GraphModule:
    """Return a functional, simplified graph that ``vmap`` can batch, without autograd's bookkeeping.

    Parameters
    ----------
    module
        A graph of ATen operations, as ``record_operations`` returns.
    inputs
        Example inputs.
    """
    values = [value.detach() for value in inputs]
    _propagate_factorisation_failures(module)
    with torch.no_grad():
        functional = module if _functionalise_fresh(module) else _functionalise(module, values)
        eliminate_common_subexpressions(functional)
        simple = record_operations(Simplifier(functional).run, *values)
    for node in list(simple.graph.nodes):
        if node.target in _BATCHABLE:
            node.target = _BATCHABLE[node.target]
        elif node.target is aten.index_put.default:
            _index_put_as_matmul(simple, node)
    factor_sums(simple)
    eliminate_common_subexpressions(simple)
    simple.graph.eliminate_dead_code(_is_live)
    simple.recompile()
    return simple


def lift_constants(module: fx.GraphModule, constants: list[Tensor]) -> None:
    """Turn constants of a graph into inputs, which precede its operations."""
    first = next(iter(module.graph.nodes))
    num_inputs = sum(node.op == "placeholder" for node in module.graph.nodes)
    inputs = {}
    with module.graph.inserting_before(first):
        for index, value in enumerate(constants, start=num_inputs):
            inputs[id(value)] = module.graph.placeholder(f"lifted_{index}")
            inputs[id(value)].meta |= description(value)
    for node in list(module.graph.nodes):
        if node.op == "get_attr" and id(getattr(module, node.target)) in inputs:
            node.replace_all_uses_with(inputs[id(getattr(module, node.target))])
            module.graph.erase_node(node)
    module.recompile()


def last_output(module: fx.GraphModule) -> fx.GraphModule:
    """Return a graph of only the last output, which draws the same random numbers."""
    last = copy.deepcopy(module)
    output: Any = last.graph.output_node()
    output.args = (output.args[0][-1],)
    last.graph.eliminate_dead_code(_is_live)
    last.recompile()
    return last


def _propagate_factorisation_failures(module: fx.GraphModule) -> None:
    """Return NaN for failed factorisations instead of raising, so that one failure does not stop a batch."""
    for check in list(module.graph.find_nodes(op="call_function", target=aten._linalg_check_errors.default)):
        info: Any = check.args[0]
        factorisation = info.args[0]
        factor = next(
            (node for node in factorisation.users if node.target is operator.getitem and node.args[1] == 0), None
        )
        module.graph.erase_node(check)
        if factor is None:
            continue
        call = module.graph.call_function
        with module.graph.inserting_before(factorisation.next):
            succeeded = call(aten.eq.Scalar, (call(operator.getitem, (factorisation, info.args[1])), 0))
            for _ in range(factor.meta["val"].ndim - info.meta["val"].ndim):
                succeeded = call(aten.unsqueeze.default, (succeeded, -1))
            value = call(operator.getitem, (factorisation, 0))
            guarded = call(aten.where.ScalarOther, (succeeded, value, math.nan))
        factor.replace_all_uses_with(guarded)
    module.recompile()


def _functionalise_fresh(module: fx.GraphModule) -> bool:
    """Replace in-place operations on fresh results that no view reads; return whether no others remain.

    This suffices for most graphs, which then skip the slower ``_functionalise``.
    """
    order = {node: place for place, node in enumerate(module.graph.nodes)}
    functional: dict[Any, Any] = {}
    same: dict[Any, list[Any]] = {}
    for node in (each for each in order if getattr(_schema(each), "is_mutable", False)):
        same[node] = _same_memory(node)
        schema = _schema(node)
        packet = getattr(aten, schema.name.removeprefix("aten::").removesuffix("_"), None)
        elementwise = torch.Tag.pointwise in node.target.tags  # whose result has the promoted type
        promotes = elementwise and len({each.meta["val"].dtype for each in node.all_input_nodes}) > 1
        if not same[node] or promotes or not hasattr(packet, node.target._overloadname):
            return False
        functional[node] = getattr(packet, node.target._overloadname)
    for node, target in functional.items():
        node.target = target
        for member in same[node]:
            for user in [each for each in member.users if order[each] > order[node]]:
                user.replace_input_with(member, node)
    module.recompile()
    return True


def _same_memory(mutation: Any) -> list[Any]:
    """Return the nodes whose entries an in-place operation changes; empty if these are unknown.

    They are a fresh result and its detached aliases, if nothing else views or changes them.
    """
    fresh = mutation.args[0]
    while fresh.target in _ALIASES:
        fresh = fresh.args[0]
    if _schema(fresh) is None or _returns_alias(fresh):
        return []
    members = [fresh]
    for member in members:
        members += [user for user in member.users if user.target in _ALIASES]
    users = {user for member in members for user in member.users} - {mutation, *members}
    return [] if any(map(_returns_alias, users)) else members


def _returns_alias(node: Any) -> bool:
    """Whether the result of an operation shares memory with an argument."""
    schema = _schema(node)
    return node.op != "output" and (schema is None or any(each.alias_info for each in schema.returns))


def _schema(node: Any) -> Any:
    """Return the schema of a node's operation, ``None`` if it is not one of torch's."""
    return getattr(node.target, "_schema", None)


def _functionalise(module: fx.GraphModule, values: list[Tensor]) -> fx.GraphModule:
    """Replace in-place operations, with constants lifted to inputs so that their views are functionalised too."""
    attributes = [getattr(module, node.target) for node in module.graph.nodes if node.op == "get_attr"]
    attributes = list({id(value): value for value in attributes if isinstance(value, Tensor)}.values())
    lift_constants(module, attributes)
    constants = [value.detach() for value in attributes]
    functional = record_operations(torch.func.functionalize(module), *constants, *values)
    for index, (node, value) in enumerate(zip(list(functional.graph.nodes), constants, strict=False)):
        functional.register_buffer(f"constant_{index}", value)
        with functional.graph.inserting_before(node):
            constant = functional.graph.get_attr(f"constant_{index}")
        node.replace_all_uses_with(constant)
        functional.graph.erase_node(node)
    functional.recompile()
    return functional


def _is_live(node: fx.Node) -> bool:
    """Whether dead-code elimination must keep a node."""
    if node.op in ("placeholder", "output"):
        return True
    return node.op == "call_function" and getattr(node.target, "overloadpacket", None) in RANDOM


def _index_put_as_matmul(module: fx.GraphModule, node: Any) -> None:
    """Write ``base[..., index, ...] += values`` as a product with the indicator matrix of the index.

    This is the backward pass of ``A[z]``, which torch 2.13 miscompiles on the CPU and which has no batching rule; for
    a short axis the product is also faster.
    """
    base, indices, values, *rest = node.args
    used = [(axis, index) for axis, index in enumerate(indices) if index is not None]
    if not (rest and rest[0]) or len(used) != 1 or used[0][1].meta["val"].dtype == torch.bool:
        return
    axis, index = used[0]
    like, index_shape = base.meta["val"], index.meta["val"].shape
    shape = like.shape
    with module.graph.inserting_before(node):
        call = module.graph.call_function
        places = call(aten.arange.default, (shape[axis],), {"device": base.meta["device"]})
        flat = call(aten.reshape.default, (index, [-1]))
        column, row = call(aten.unsqueeze.default, (places, 1)), call(aten.unsqueeze.default, (flat, 0))
        indicator = call(aten.to.dtype, (call(aten.eq.Tensor, (column, row)), like.dtype))
        # values have the axes of the index where the base has the indexed axis
        expanded = call(aten.expand.default, (values, [*shape[:axis], *index_shape, *shape[axis + 1 :]]))
        flat_shape = [shape[:axis].numel(), index_shape.numel(), shape[axis + 1 :].numel()]
        product = call(aten.matmul.default, (indicator, call(aten.reshape.default, (expanded, flat_shape))))
        added = call(aten.add.Tensor, (base, call(aten.reshape.default, (product, list(shape)))))
    node.replace_all_uses_with(added)
    module.graph.erase_node(node)


_ALIASES = (aten.detach.default, aten.alias.default)
_BATCHABLE = {
    aten.view.default: aten.reshape.default,
    aten._standard_gamma_grad.default: torch.ops.pplgen.standard_gamma_grad.default,
    aten._dirichlet_grad.default: torch.ops.pplgen.dirichlet_grad.default,
}
"""Operations without a batching rule for all layouts, and their equivalents with one."""
