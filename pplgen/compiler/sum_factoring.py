"""Factor sums of a graph: move factors and terms that do not vary along the summed axes out of the sum.

A log density per row contains terms of the parameters alone, and its gradient is a sum over rows of products in which
half of the factors depend on the parameters alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

__all__ = ["factor_sums"]

aten = torch.ops.aten

_PRODUCTS = (aten.mul.Tensor, aten.mul.Scalar)
_QUOTIENTS = (aten.div.Tensor, aten.div.Scalar)
_TERMS = (aten.add.Tensor, aten.sub.Tensor)


def factor_sums(module: fx.GraphModule) -> None:
    """Move factors and terms that are invariant along the summed axes out of sums."""
    nodes: list[Any] = list(module.graph.nodes)
    for node in nodes:
        if node.target is not aten.sum.dim_IntList or node.kwargs or not node.args[1]:
            continue
        summed, dims, *keep = node.args
        like = summed.meta["val"]
        if not like.dtype.is_floating_point:
            continue
        sums = _Sums(module, node, tuple(like.shape), frozenset(dim % like.ndim for dim in dims))
        if sums.can_factor(summed):
            total = sums.of(summed)
            keepdim = bool(keep and keep[0])
            shape = [
                1 if d in sums.dims else size for d, size in enumerate(like.shape) if keepdim or d not in sums.dims
            ]
            total = sums.expanded(total)
            same = tuple(total.meta["val"].shape) == tuple(shape)
            node.replace_all_uses_with(total if same else sums.call(aten.reshape.default, total, shape))
            module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    module.recompile()


@dataclass
class _Product:
    """A product: factors of the numerator and the denominator, and a number."""

    numerator: list[Any] = field(default_factory=list)
    denominator: list[Any] = field(default_factory=list)
    number: float = 1.0

    def take(self, node: Any, *, inverted: bool = False, whole: bool = True) -> None:
        """Multiply by a node, split into its factors if it has no other user."""
        if isinstance(node, int | float):
            self.number = self.number / node if inverted else self.number * node
            return
        descend = whole or len(node.users) == 1
        if descend and not node.kwargs and node.target is aten.neg.default:
            self.number = -self.number
            self.take(node.args[0], inverted=inverted, whole=False)
        elif descend and not node.kwargs and node.target in _PRODUCTS:
            for factor in node.args:
                self.take(factor, inverted=inverted, whole=False)
        elif descend and not node.kwargs and node.target in _QUOTIENTS:
            self.take(node.args[0], inverted=inverted, whole=False)
            self.take(node.args[1], inverted=not inverted, whole=False)
        else:
            (self.denominator if inverted else self.numerator).append(node)


@dataclass
class _Sums:
    """Emits sums over the axes ``dims`` of expressions of one shape, before a node of the graph."""

    module: fx.GraphModule
    before: Any
    shape: tuple[int, ...]
    dims: frozenset[int]

    def can_factor(self, node: Any) -> bool:
        """Whether any factor or term can be moved out of the sum."""
        if isinstance(node, int | float) or self._is_invariant(node):
            return True
        if len(node.users) > 1:
            return False
        if node.target in _TERMS and not node.kwargs:
            return self._should_split(node)
        if self._is_masked(node):
            return True
        product = _Product()
        product.take(node)
        return product.number != 1.0 or any(self._is_invariant(f) for f in product.numerator + product.denominator)

    def of(self, node: Any) -> Any:
        """Emit the sum of an expression, with ``keepdim``."""
        if isinstance(node, int | float):
            return node * math.prod(self.shape[dim] for dim in self.dims)
        if node.target in _TERMS and not node.kwargs and len(node.users) == 1 and self._should_split(node):
            return self.call(node.target, *(self.of(term) for term in node.args))
        if len(node.users) == 1 and self._is_masked(node):
            mask, masked, zero = node.args
            return self.call(aten.where.self, _base(mask), self.of(masked), zero)
        product = _Product()
        product.take(node, whole=len(node.users) == 1)
        outside = _Product(number=product.number)
        inside = _Product()
        for factors, varying, invariant in (
            (product.numerator, inside.numerator, outside.numerator),
            (product.denominator, inside.denominator, outside.denominator),
        ):
            for factor in factors:
                (invariant if self._is_invariant(factor) else varying).append(factor)
        emitted = self._emit(inside)
        if emitted is None:
            outside.number *= math.prod(self.shape[dim] for dim in self.dims)
        else:
            shape = (1,) * (len(self.shape) - emitted.meta["val"].ndim) + tuple(emitted.meta["val"].shape)
            outside.number *= math.prod(self.shape[dim] for dim in self.dims if shape[dim] == 1)
            if emitted.meta["val"].ndim != len(shape):
                emitted = self.call(aten.reshape.default, emitted, list(shape))
            outside.numerator.insert(0, self.call(aten.sum.dim_IntList, emitted, sorted(self.dims), True))
        return self._emit(outside)

    def expanded(self, total: Any) -> Any:
        """Expand a sum along the axes that are not summed."""
        shape = [1 if dim in self.dims else size for dim, size in enumerate(self.shape)]
        return total if tuple(total.meta["val"].shape) == tuple(shape) else self.call(aten.expand.default, total, shape)

    def call(self, target: Any, *args: Any) -> Any:
        """Add an operation to the graph, with the shape of its result."""
        like = [_like(arg) for arg in args]
        with self.module.graph.inserting_before(self.before):
            node = self.module.graph.call_function(target, args)
        node.meta["val"] = _elementwise_result(*like) if torch.Tag.pointwise in target.tags else target(*like)
        return node

    def _should_split(self, node: Any) -> bool:
        """Whether the sum of two terms is cheaper as two sums."""
        smaller = [isinstance(term, int | float) or self._is_smaller(term) for term in node.args]
        return any(smaller) or all(self.can_factor(term) for term in node.args)

    def _is_masked(self, node: Any) -> bool:
        """Whether an expression is zeroed by a mask that is invariant along the summed axes."""
        if node.target is not aten.where.self:
            return False
        mask, masked, other = node.args
        if not self._is_invariant(mask) or self._is_invariant(masked) or other.op != "get_attr":
            return False
        zero = getattr(self.module, other.target)
        return zero.ndim == 0 and float(zero) == 0.0

    def _is_smaller(self, node: Any) -> bool:
        return _base(node).meta["val"].numel() < math.prod(self.shape)

    def _is_invariant(self, node: Any) -> bool:
        """Whether an expression is invariant along the summed axes, of which one is longer than 1."""
        shape = _base(node).meta["val"].shape
        aligned = (1,) * (len(self.shape) - len(shape)) + tuple(shape)
        return all(aligned[dim] == 1 for dim in self.dims) and any(self.shape[dim] != 1 for dim in self.dims)

    def _emit(self, product: _Product) -> Any:
        """Emit a product, or return ``None`` if it is one."""
        emitted: Any = None
        for factor in product.numerator:
            base = _base(factor)
            emitted = base if emitted is None else self.call(aten.mul.Tensor, emitted, base)
        for factor in product.denominator:
            base = _base(factor)
            inverse = (aten.reciprocal.default, base) if emitted is None else (aten.div.Tensor, emitted, base)
            emitted = self.call(*inverse)
        if product.number != 1.0 and emitted is not None:
            negated = product.number == -1.0
            emitted = (
                self.call(aten.neg.default, emitted) if negated else self.call(aten.mul.Tensor, emitted, product.number)
            )
        return emitted


def _base(node: Any) -> Any:
    """Return a node before its expansions."""
    while node.target is aten.expand.default:
        node = node.args[0]
    return node


def _elementwise_result(*values: Any) -> Tensor:
    """Return a meta tensor of the shape and dtype of an arithmetic operation's result.

    Torch's own meta functions of such operations import its compiler, which takes seconds.
    """
    shape = torch.broadcast_shapes(*(value.shape for value in values if isinstance(value, Tensor)))
    operands = [value for value in values if getattr(value, "dtype", None) != torch.bool]
    dtype = torch.result_type(*operands) if len(operands) == 2 else operands[0].dtype
    return torch.empty(shape, dtype=dtype, device="meta")


def _like(value: Any) -> Any:
    """Return a meta tensor of an argument's shape and dtype."""
    if not isinstance(value, fx.Node):
        return value
    like: Tensor = value.meta["val"]
    return torch.empty(like.shape, dtype=like.dtype, device="meta")
