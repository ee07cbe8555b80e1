"""Simplify a functional ATen graph: fold constants, and compute on tensors before they are expanded.

Pyro computes with full shapes: plates expand parameters to every row before their logarithm is taken, Dice multiplies
by probabilities of one, enumeration indexes by all values, and identity transforms add zeros.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate

from pplgen.compiler import random_fills  # noqa: F401
from pplgen.compiler.constant_folding import Constant, Expanded, device_of, expand, materialise, unexpanded
from pplgen.compiler.peephole_rules import PEEPHOLE_RULES, identity_operand
from pplgen.compiler.recording import flatten_arguments, pause_recording

__all__ = ["RANDOM", "Simplifier", "eliminate_common_subexpressions"]

aten = torch.ops.aten

POINTWISE = frozenset(
    {
        aten.abs.default,
        aten.add.Tensor,
        aten.add.Scalar,
        aten.bitwise_and.Tensor,
        aten.bitwise_not.default,
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
        aten.rsub.Scalar,
        aten.sigmoid.default,
        aten.sqrt.default,
        aten.sub.Tensor,
        aten.sub.Scalar,
        aten.where.self,
        aten.xlogy.Tensor,
    }
)
"""Elementwise operations, which commute with expansion."""

RANDOM = (
    aten.randn,
    aten.rand,
    aten.randn_like,
    aten.rand_like,
    aten.randint,
    aten.randperm,
    aten.normal,
    torch.ops.pplgen.exponential,
    torch.ops.pplgen.cauchy,
    aten.bernoulli,
    aten.multinomial,
    aten.poisson,
    aten.binomial,
    aten._standard_gamma,
    aten._sample_dirichlet,
)
"""Operations that draw random numbers: never eliminated, to preserve the order of Pyro's draws."""

_UNINITIALISED = (aten.empty, aten.empty_like, aten.new_empty, aten.empty_strided, aten.new_empty_strided)
_FILLED_LIKE = (
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.new_zeros.default,
    aten.new_ones.default,
    aten.full_like.default,
    aten.new_full.default,
)
"""Operations that depend only on the shape and dtype of their tensor."""
_COPIES = (aten.detach.default, aten.alias.default, aten.lift_fresh_copy.default)
_RESHAPES = (
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unsqueeze.default,
)
_LARGEST_CONSTANT = 100_000
"""Maximum number of entries of a folded constant whose entries differ."""


class Simplifier(fx.Interpreter):
    """Interpreter that simplifies a functional graph as it runs; recording its run gives the simplified graph.

    Operations on constants are folded. An elementwise operation on expanded values is computed before the expansion.
    Additions of zero, multiplications by one and other identities are eliminated. A quotient with a smaller divisor
    becomes a product with its reciprocal.
    """

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Return a constant of the graph."""
        value = super().get_attr(target, args, kwargs)
        return Constant(value) if isinstance(value, Tensor) else value

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Run one operation, simplified."""
        if target in _COPIES:
            return args[0]
        if target is operator.getitem:
            return args[0][args[1]]
        constant = self._fold(target, args, kwargs)
        if constant is not None:
            return constant
        if target is aten.expand.default:
            return expand(args[0], tuple(args[1]))
        if target in _RESHAPES:
            return self._reshape(target, args, kwargs)
        if target is aten.permute.default and list(args[1]) == list(range(len(args[1]))):
            return args[0]
        if isinstance(args[0], Expanded) and not kwargs and (result := _on_expanded(target, *args)) is not None:
            return result
        if target in POINTWISE:
            return self._pointwise(target, args, kwargs)
        if target in PEEPHOLE_RULES and (rewritten := PEEPHOLE_RULES[target](*args, **kwargs)) is not None:
            return rewritten
        args, kwargs = materialise((args, kwargs))
        return super().call_function(target, args, kwargs)

    def output(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Return tensors."""
        return super().output(target, *materialise((args, kwargs)))

    def _fold(self, target: Any, args: Any, kwargs: Any) -> Constant | None:
        """Fold an operation on constants; return ``None`` if it depends on an input."""
        packet = getattr(target, "overloadpacket", None)
        if packet is None or packet in RANDOM or packet in _UNINITIALISED:
            return None
        values = [leaf for leaf in flatten_arguments((args, kwargs)) if _is_tensor(leaf)]
        if target is aten.eq.Tensor and args[0] is args[1] and not isinstance(args[0], Constant):
            # NaN still propagates through the rest of the loss
            return Constant(torch.ones((), dtype=torch.bool).expand(args[0].shape))
        if target in _FILLED_LIKE:
            like = args[0]
            args = (torch.empty((), dtype=like.dtype, device=device_of(like)).expand(like.shape), *args[1:])
        elif not all(isinstance(value, Constant) for value in values):
            return None
        with pause_recording():
            constant_args, constant_kwargs = map_aggregate(
                (args, kwargs), lambda value: value.value if isinstance(value, Constant) else value
            )
            result = target(*constant_args, **constant_kwargs)
        if not isinstance(result, Tensor):
            return None
        folded = Constant(result)
        return folded if result.numel() <= _LARGEST_CONSTANT or folded.fill_value is not None else None

    def _reshape(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Reshape, unless the shape is unchanged."""
        with pause_recording():
            like = torch.empty((), device="meta").expand(args[0].shape)
            shape = tuple(target(like, *args[1:], **kwargs).shape)
        if shape == tuple(args[0].shape):
            return args[0]
        if isinstance(args[0], Expanded) and (reshaped := args[0].reshaped(shape)) is not None:
            return reshaped
        # a simplified operand may have another memory layout
        target = aten.reshape.default if target is aten.view.default else target
        return super().call_function(target, *materialise((args, kwargs)))

    def _pointwise(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Run an elementwise operation."""
        operands = [value for value in args if _is_tensor(value)]
        shape = torch.broadcast_shapes(*(value.shape for value in operands))
        if not kwargs and (same := identity_operand(target, args, tuple(shape))) is not None:
            return same
        if target is aten.where.self and isinstance(args[0], Constant) and args[0].fill_value is not None:
            chosen, other = args[1:] if args[0].fill_value else args[:0:-1]
            if chosen.dtype == other.dtype:
                return expand(chosen, tuple(shape))
        if target is aten.xlogy.Tensor and isinstance(args[0], Constant) and args[0].fill_value == 0:
            return expand(args[0], tuple(shape))
        if target is aten.div.Tensor and not kwargs and args[0].dtype.is_floating_point:
            divisor = args[1]
            if isinstance(divisor, Tensor | Expanded) and unexpanded(divisor).numel() < shape.numel():
                inverse = expand(aten.reciprocal.default(unexpanded(divisor)), tuple(divisor.shape))
                return self._pointwise(aten.mul.Tensor, (args[0], inverse), {})
        bases = [unexpanded(value) for value in operands]
        joint = torch.broadcast_shapes(*(base.shape for base in bases))
        if joint.numel() < shape.numel():
            base_args = [unexpanded(value) if _is_tensor(value) else value for value in args]
            return Expanded(target(*base_args, **kwargs), tuple(shape))
        if any(tuple(value.shape) == tuple(shape) for value in operands if not isinstance(value, Constant)):
            args = [unexpanded(value) if isinstance(value, Constant) else value for value in args]
        args, kwargs = materialise((args, kwargs))
        return super().call_function(target, args, kwargs)


def _is_tensor(leaf: Any) -> bool:
    """Whether an argument of an operation is a tensor, symbolic or not."""
    return isinstance(leaf, Tensor | Expanded | Constant)


def _on_expanded(target: Any, value: Expanded, *args: Any) -> Any:
    """Apply an operation before the expansion; return ``None`` if it cannot be."""
    if target is aten.sum.dim_IntList and args[0]:
        return value.sum(*args)
    if target is aten.max.dim:
        return value.max(*args)
    if target is aten.permute.default:
        return value.permuted(list(args[0]))
    if target is aten.transpose.int:
        axes = list(range(len(value.shape)))
        axes[args[0]], axes[args[1]] = axes[args[1]], axes[args[0]]
        return value.permuted(axes)
    return None


def eliminate_common_subexpressions(module: fx.GraphModule) -> None:
    """Compute each repeated operation of a graph once."""
    first: dict[Any, fx.Node] = {}
    for node in list(module.graph.nodes):
        packet = getattr(node.target, "overloadpacket", None)
        if node.op != "call_function" or packet in RANDOM or packet in _UNINITIALISED:
            continue
        key = (node.target, repr((node.args, node.kwargs)))
        if key in first:
            node.replace_all_uses_with(first[key])
            module.graph.erase_node(node)
        else:
            first[key] = node
    module.recompile()
