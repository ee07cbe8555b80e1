"""Rewrites of an ATen graph: functional, batchable, and safe to compile."""

from __future__ import annotations

import copy
import math
import operator
from typing import Any

import torch
from torch import Tensor, fx

from pplgen.compiler.recording import record_operations
from pplgen.compiler.simplify import RANDOM, Simplified, eliminate_common_subexpressions
from pplgen.compiler.sum_factoring import factor_sums

__all__ = ["canonicalise", "last_output", "lift_constants"]

aten = torch.ops.aten


def canonicalise(module: fx.GraphModule, inputs: list[Tensor]) -> fx.GraphModule:
    """Return the graph without in-place operations, without what only autograd needs, and fit for batches.

    Parameters
    ----------
    module
        A graph of ATen operations, such as ``record_operations`` returns.
    inputs
        Example inputs.
    """
    values = [value.detach() for value in inputs]
    _spoil_what_failed(module)
    with torch.no_grad():
        functional = module if _in_place_on_fresh(module) else _functional(module, values)
        eliminate_common_subexpressions(functional)
        simple = record_operations(Simplified(functional).run, *values)
    for node in list(simple.graph.nodes):
        if node.target in _BATCHABLE:
            node.target = _BATCHABLE[node.target]
        elif node.target is aten.index_put.default:
            _scatter_by_product(simple, node)
    factor_sums(simple)
    eliminate_common_subexpressions(simple)
    simple.graph.eliminate_dead_code(_must_stay)
    simple.recompile()
    return simple


def lift_constants(module: fx.GraphModule, held: list[Tensor]) -> None:
    """Turn tensors that a graph holds as constants into its first inputs."""
    first = next(iter(module.graph.nodes))
    taken = sum(node.op == "placeholder" for node in module.graph.nodes)
    inputs = {}
    with module.graph.inserting_before(first):
        for index, value in enumerate(held, start=taken):
            inputs[id(value)] = module.graph.placeholder(f"held_{index}")
    for node in list(module.graph.nodes):
        if node.op == "get_attr" and id(getattr(module, node.target)) in inputs:
            node.replace_all_uses_with(inputs[id(getattr(module, node.target))])
            module.graph.erase_node(node)
    module.recompile()


def last_output(module: fx.GraphModule) -> fx.GraphModule:
    """Return a graph of the last output alone, which draws the same random numbers."""
    alone = copy.deepcopy(module)
    output: Any = alone.graph.output_node()
    output.args = (output.args[0][-1],)
    alone.graph.eliminate_dead_code(_must_stay)
    alone.recompile()
    return alone


def _spoil_what_failed(module: fx.GraphModule) -> None:
    """Make a factorisation NaN where it has failed: one of a batch must not stop the others, nor pass for finite."""
    for check in list(module.graph.find_nodes(op="call_function", target=aten._linalg_check_errors.default)):
        info: Any = check.args[0]
        made = info.args[0]
        factor = next((node for node in made.users if node.target is operator.getitem and node.args[1] == 0), None)
        module.graph.erase_node(check)
        if factor is None:
            continue
        call = module.graph.call_function
        with module.graph.inserting_before(made.next):
            done = call(aten.eq.Scalar, (call(operator.getitem, (made, info.args[1])), 0))
            for _ in range(factor.meta["val"].ndim - info.meta["val"].ndim):
                done = call(aten.unsqueeze.default, (done, -1))
            whole = call(aten.where.ScalarOther, (done, call(operator.getitem, (made, 0)), math.nan))
        factor.replace_all_uses_with(whole)
    module.recompile()


def _in_place_on_fresh(module: fx.GraphModule) -> bool:
    """Write in-place operations as functions where they change a fresh result that nothing else reads; whether all did.

    Most graphs have no others, and are spared the longer way by ``_functional``.
    """
    functional = {}
    changing: list[Any] = [node for node in module.graph.nodes if getattr(_schema(node), "is_mutable", False)]
    for node in changing:
        changed: Any = node.args[0]
        schema = _schema(node)
        made = _schema(changed)
        fresh = made is not None and not any(result.alias_info for result in made.returns) and len(changed.users) == 1
        packet = getattr(aten, schema.name.removeprefix("aten::").removesuffix("_"), None)
        types = {each.meta["val"].dtype for each in node.all_input_nodes}
        if not fresh or len(types) > 1 or not hasattr(packet, node.target._overloadname):
            return False
        functional[node] = getattr(packet, node.target._overloadname)
    for node, target in functional.items():
        node.target = target
    module.recompile()
    return True


def _schema(node: Any) -> Any:
    """Return the schema of a node's operation, ``None`` where it is none of torch's."""
    return getattr(node.target, "_schema", None)


def _functional(module: fx.GraphModule, values: list[Tensor]) -> fx.GraphModule:
    """Replace in-place operations; constants are inputs meanwhile, for else what is made of them cannot be replaced."""
    held = [getattr(module, node.target) for node in module.graph.nodes if node.op == "get_attr"]
    held = list({id(value): value for value in held if isinstance(value, Tensor)}.values())
    lift_constants(module, held)
    constants = [value.detach() for value in held]
    functional = record_operations(torch.func.functionalize(module), *constants, *values)
    for index, (node, value) in enumerate(zip(list(functional.graph.nodes), constants, strict=False)):
        functional.register_buffer(f"constant_{index}", value)
        with functional.graph.inserting_before(node):
            held_again = functional.graph.get_attr(f"constant_{index}")
        node.replace_all_uses_with(held_again)
        functional.graph.erase_node(node)
    functional.recompile()
    return functional


def _must_stay(node: fx.Node) -> bool:
    """Whether a node is kept though nothing reads it."""
    if node.op in ("placeholder", "output"):
        return True
    return node.op == "call_function" and getattr(node.target, "overloadpacket", None) in RANDOM


def _scatter_by_product(module: fx.GraphModule, node: Any) -> None:
    """Write ``base[..., index, ...] += values`` as a product with the indicator matrix of the index.

    This is the backward pass of ``A[z]``, for which torch 2.13 compiles wrong code on the CPU, and which has no rule
    for batches; with few places to add to, the product is also faster.
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
        column, line = call(aten.unsqueeze.default, (places, 1)), call(aten.unsqueeze.default, (flat, 0))
        indicator = call(aten.to.dtype, (call(aten.eq.Tensor, (column, line)), like.dtype))
        # values have the axes of the index where the base has the indexed axis
        spread = call(aten.expand.default, (values, [*shape[:axis], *index_shape, *shape[axis + 1 :]]))
        around = [shape[:axis].numel(), index_shape.numel(), shape[axis + 1 :].numel()]
        product = call(aten.matmul.default, (indicator, call(aten.reshape.default, (spread, around))))
        added = call(aten.add.Tensor, (base, call(aten.reshape.default, (product, list(shape)))))
    node.replace_all_uses_with(added)
    module.graph.erase_node(node)


@torch.library.custom_op("pplgen::standard_gamma_grad", mutates_args=())
def _standard_gamma_grad(concentration: Tensor, sample: Tensor) -> Tensor:
    """Differentiate a standard gamma draw with respect to its concentration, elementwise."""
    return aten._standard_gamma_grad(concentration.contiguous(), sample.contiguous())


@_standard_gamma_grad.register_fake
def _(concentration: Tensor, sample: Tensor) -> Tensor:
    return torch.empty_like(sample, memory_format=torch.contiguous_format)


@_standard_gamma_grad.register_vmap
def _(info: object, in_dims: tuple[int | None, ...], concentration: Tensor, sample: Tensor) -> tuple[Tensor, int]:
    arguments = _batch_first(info, in_dims, concentration, sample)
    return _standard_gamma_grad(*torch.broadcast_tensors(*arguments)), 0


@torch.library.custom_op("pplgen::dirichlet_grad", mutates_args=())
def _dirichlet_grad(x: Tensor, concentration: Tensor, total: Tensor) -> Tensor:
    """Differentiate a Dirichlet draw with respect to its concentration; the last axis is the simplex."""
    return aten._dirichlet_grad(x.contiguous(), concentration.contiguous(), total.contiguous())


@_dirichlet_grad.register_fake
def _(x: Tensor, concentration: Tensor, total: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@_dirichlet_grad.register_vmap
def _(
    info: object, in_dims: tuple[int | None, ...], x: Tensor, concentration: Tensor, total: Tensor
) -> tuple[Tensor, int]:
    arguments = _batch_first(info, in_dims, x, concentration, total)
    return _dirichlet_grad(*torch.broadcast_tensors(*arguments)), 0


def _batch_first(info: object, in_dims: tuple[int | None, ...], *arguments: Tensor) -> list[Tensor]:
    """Move the batch to the front, giving one of length one to what has none."""
    return [
        value.unsqueeze(0) if dim is None else value.movedim(dim, 0)
        for value, dim in zip(arguments, in_dims, strict=True)
    ]


_BATCHABLE = {
    aten.view.default: aten.reshape.default,
    aten._standard_gamma_grad.default: torch.ops.pplgen.standard_gamma_grad.default,
    aten._dirichlet_grad.default: torch.ops.pplgen.dirichlet_grad.default,
}
"""Operations without a rule for batches, or with one for some layouts only, and the same with one for all."""
