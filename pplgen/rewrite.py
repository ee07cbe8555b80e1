"""Rewrites of an ATen graph: functional, batchable, and safe to compile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_map

__all__ = ["clean"]

aten = torch.ops.aten

POINTWISE = frozenset(
    {
        aten.abs.default,
        aten.add.Tensor,
        aten.add.Scalar,
        aten.bitwise_and.Tensor,
        aten.clamp.default,
        aten.digamma.default,
        aten.div.Tensor,
        aten.div.Scalar,
        aten.eq.Scalar,
        aten.exp.default,
        aten.expm1.default,
        aten.ge.Scalar,
        aten.gt.Scalar,
        aten.le.Scalar,
        aten.lgamma.default,
        aten.log.default,
        aten.log1p.default,
        aten.logical_and.default,
        aten.lt.Scalar,
        aten.mul.Tensor,
        aten.mul.Scalar,
        aten.neg.default,
        aten.pow.Tensor_Scalar,
        aten.reciprocal.default,
        aten.rsqrt.default,
        aten.sigmoid.default,
        aten.sqrt.default,
        aten.sub.Tensor,
        aten.sub.Scalar,
        aten.where.self,
        aten.xlogy.Tensor,
    }
)
"""Operations that work entry by entry, and so may come before or after a repetition."""

RANDOM = (
    aten.randn,
    aten.rand,
    aten.randn_like,
    aten.rand_like,
    aten.randint,
    aten.randperm,
    aten.normal,
    aten.exponential,
    aten.cauchy,
    aten.bernoulli,
    aten.multinomial,
    aten.poisson,
    aten.binomial,
    aten._standard_gamma,
    aten._sample_dirichlet,
)
"""Operations that draw random numbers: they stay even where nothing reads them, to keep the order of Pyro's draws."""


def clean(module: fx.GraphModule, inputs: list[Tensor]) -> fx.GraphModule:
    """Return the graph without in-place operations, without what only autograd needs, and fit for batches.

    Parameters
    ----------
    module
        A graph of ``(loss, gradients)``.
    inputs
        Example inputs.
    """
    values = [value.detach() for value in inputs]
    with torch.no_grad():
        functional = make_fx(torch.func.functionalize(module))(*values)
        functional = make_fx(_BeforeExpansion(functional).run)(*values)
    nodes: list[Any] = list(functional.graph.nodes)
    for node in nodes:
        if node.op != "call_function":
            continue
        if node.target in (aten.detach.default, aten.alias.default, aten.lift_fresh_copy.default):
            node.replace_all_uses_with(node.args[0])
            functional.graph.erase_node(node)
        elif node.target in _ELEMENTWISE:
            node.target = _ELEMENTWISE[node.target]
        elif node.target is aten.index_put.default:
            _scatter_by_product(functional, node)
    functional.graph.eliminate_dead_code(_must_stay)
    functional.recompile()
    return functional


@dataclass(frozen=True)
class _Expanded:
    """A tensor that stands for its repetition to a larger shape."""

    base: Tensor
    shape: tuple[int, ...]

    def tensor(self) -> Tensor:
        """Return the repetition itself."""
        return self.base.expand(self.shape)


class _BeforeExpansion(fx.Interpreter):
    """Computes before expanding: Pyro's plates repeat parameters to every row before their logarithm is taken.

    An operation on values that are all repetitions to one shape is done on what is repeated. A quotient by a repetition
    becomes a product with the repeated reciprocal.
    """

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Run one operation, on bases where that is the same."""
        if target is aten.expand.default and not kwargs:
            held = args[0].base if isinstance(args[0], _Expanded) else args[0]
            shape = tuple(args[1])
            ours = (1,) * (len(shape) - held.ndim) + tuple(held.shape)
            return _Expanded(held, tuple(b if size == -1 else size for b, size in zip(ours, shape, strict=True)))
        if target is aten.view.default and isinstance(args[0], _Expanded) and tuple(args[1]) == args[0].shape:
            return args[0]
        tensors = [value for value in args if isinstance(value, (_Expanded, Tensor))]
        shapes = {value.shape for value in tensors if isinstance(value, _Expanded)}
        if len(shapes) == 1 and target in POINTWISE and all(_is_repeated(value) for value in tensors):
            bases = [value.base if isinstance(value, _Expanded) else value for value in args]
            return _Expanded(target(*bases, **kwargs), *shapes)
        if target is aten.div.Tensor and isinstance(args[1], _Expanded) and not isinstance(args[0], _Expanded):
            return aten.mul.Tensor(args[0], args[1].base.reciprocal().expand(args[1].shape))
        args, kwargs = _materialised((args, kwargs))
        return super().call_function(target, args, kwargs)

    def output(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Return tensors."""
        return super().output(target, *_materialised((args, kwargs)))


def _is_repeated(value: Any) -> bool:
    """Whether a value is the same wherever it is repeated to."""
    return isinstance(value, _Expanded) or value.ndim == 0


def _materialised(values: Any) -> Any:
    """Replace repetitions by tensors, however nested."""
    return tree_map(lambda value: value.tensor() if isinstance(value, _Expanded) else value, values)


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
        places = call(aten.arange.default, (shape[axis],), {"device": like.device})
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


_ELEMENTWISE = {
    aten._standard_gamma_grad.default: torch.ops.pplgen.standard_gamma_grad.default,
    aten._dirichlet_grad.default: torch.ops.pplgen.dirichlet_grad.default,
}
"""Operations without a rule for batches, and the same with one."""
