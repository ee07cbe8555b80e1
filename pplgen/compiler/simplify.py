"""A functional ATen graph with fewer and smaller operations: constants folded, repetitions computed once.

Pyro computes with shapes in full: plates repeat parameters to every row before their logarithm is taken, Dice
multiplies by probabilities that are all one, enumeration indexes by every value there is, and transforms by the
identity add zeros. None of it changes the result.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate

from pplgen.compiler.constants import Known, Repeated, as_tensors, base_of, device_of, repeated
from pplgen.compiler.peephole import REWRITES, unchanged
from pplgen.compiler.recording import leaves_of, pause_recording

__all__ = ["RANDOM", "Simplified", "eliminate_common_subexpressions"]

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

_UNFILLED = (aten.empty, aten.empty_like, aten.new_empty, aten.empty_strided, aten.new_empty_strided)
_FILLED_LIKE = (
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.new_zeros.default,
    aten.new_ones.default,
    aten.full_like.default,
    aten.new_full.default,
)
"""Operations that read of their tensor only its shape and type."""
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
"""Entries of a folded constant that is not the same everywhere."""


class Simplified(fx.Interpreter):
    """Runs a functional graph with less work; recorded, what it runs is the simpler graph.

    What depends on no input is computed here and now. An operation on values that are all repetitions to one shape is
    done on what is repeated. Adding nothing, multiplying by one and the like are left out. A quotient by something
    smaller than itself becomes a product with its reciprocal.
    """

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Take a constant that the graph holds."""
        value = super().get_attr(target, args, kwargs)
        return Known(value) if isinstance(value, Tensor) else value

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Run one operation with as little work as gives the same."""
        if target in _COPIES:
            return args[0]
        if target is operator.getitem:
            return args[0][args[1]]
        known = self._folded(target, args, kwargs)
        if known is not None:
            return known
        if target is aten.expand.default:
            return repeated(args[0], tuple(args[1]))
        if target in _RESHAPES:
            return self._reshaped(target, args, kwargs)
        if target is aten.permute.default and list(args[1]) == list(range(len(args[1]))):
            return args[0]
        if isinstance(args[0], Repeated) and not kwargs and (done := _of_repeated(target, *args)) is not None:
            return done
        if target in POINTWISE:
            return self._pointwise(target, args, kwargs)
        if target in REWRITES and (rewritten := REWRITES[target](*args)) is not None:
            return rewritten
        args, kwargs = as_tensors((args, kwargs))
        return super().call_function(target, args, kwargs)

    def output(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Return tensors."""
        return super().output(target, *as_tensors((args, kwargs)))

    def _folded(self, target: Any, args: Any, kwargs: Any) -> Known | None:
        """Compute an operation that depends on no input; ``None`` where it does."""
        packet = getattr(target, "overloadpacket", None)
        if packet is None or packet in RANDOM or packet in _UNFILLED:
            return None
        values = [leaf for leaf in leaves_of((args, kwargs)) if _is_value(leaf)]
        if target is aten.eq.Tensor and args[0] is args[1] and not isinstance(args[0], Known):
            # where an entry is not a number, the rest of the loss says so
            return Known(torch.ones((), dtype=torch.bool).expand(args[0].shape))
        if target in _FILLED_LIKE:
            like = args[0]
            args = (torch.empty((), dtype=like.dtype, device=device_of(like)).expand(like.shape), *args[1:])
        elif not all(isinstance(value, Known) for value in values):
            return None
        with pause_recording():
            held, named = map_aggregate(
                (args, kwargs), lambda value: value.value if isinstance(value, Known) else value
            )
            result = target(*held, **named)
        if not isinstance(result, Tensor):
            return None
        folded = Known(result)
        return folded if result.numel() <= _LARGEST_CONSTANT or folded.everywhere is not None else None

    def _reshaped(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Change a shape, where it changes."""
        with pause_recording():
            like = torch.empty((), device="meta").expand(args[0].shape)
            shape = tuple(target(like, *args[1:], **kwargs).shape)
        if shape == tuple(args[0].shape):
            return args[0]
        if isinstance(args[0], Repeated) and (turned := args[0].reshaped(shape)) is not None:
            return turned
        # what is simpler may lie in memory otherwise
        target = aten.reshape.default if target is aten.view.default else target
        return super().call_function(target, *as_tensors((args, kwargs)))

    def _pointwise(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Run an operation that works entry by entry."""
        operands = [value for value in args if _is_value(value)]
        shape = torch.broadcast_shapes(*(value.shape for value in operands))
        if not kwargs and (same := unchanged(target, args, tuple(shape))) is not None:
            return same
        if target is aten.where.self and isinstance(args[0], Known) and args[0].everywhere is not None:
            chosen, other = args[1:] if args[0].everywhere else args[:0:-1]
            if chosen.dtype == other.dtype:
                return repeated(chosen, tuple(shape))
        if target is aten.xlogy.Tensor and isinstance(args[0], Known) and args[0].everywhere == 0:
            return repeated(args[0], tuple(shape))
        if target is aten.div.Tensor and not kwargs and args[0].dtype.is_floating_point:
            divisor = args[1]
            if isinstance(divisor, Tensor | Repeated) and base_of(divisor).numel() < shape.numel():
                inverse = repeated(aten.reciprocal.default(base_of(divisor)), tuple(divisor.shape))
                return self._pointwise(aten.mul.Tensor, (args[0], inverse), {})
        bases = [base_of(value) for value in operands]
        joint = torch.broadcast_shapes(*(base.shape for base in bases))
        if joint.numel() < shape.numel():
            given = [base_of(value) if _is_value(value) else value for value in args]
            return Repeated(target(*given, **kwargs), tuple(shape))
        if any(tuple(value.shape) == tuple(shape) for value in operands if not isinstance(value, Known)):
            args = [base_of(value) if isinstance(value, Known) else value for value in args]
        args, kwargs = as_tensors((args, kwargs))
        return super().call_function(target, args, kwargs)


def _is_value(leaf: Any) -> bool:
    """Whether an argument of an operation is a tensor, however it is held."""
    return isinstance(leaf, Tensor | Repeated | Known)


def _of_repeated(target: Any, value: Repeated, *args: Any) -> Any:
    """Do on what is repeated what can be done there; ``None`` for the rest."""
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
    """Compute once what a graph computes several times."""
    seen: dict[Any, fx.Node] = {}
    for node in list(module.graph.nodes):
        packet = getattr(node.target, "overloadpacket", None)
        if node.op != "call_function" or packet in RANDOM or packet in _UNFILLED:
            continue
        key = (node.target, repr((node.args, node.kwargs)))
        if key in seen:
            node.replace_all_uses_with(seen[key])
            module.graph.erase_node(node)
        else:
            seen[key] = node
    module.recompile()
