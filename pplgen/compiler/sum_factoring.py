"""Sums of a graph with less inside: what does not vary along the summed axes comes out of them.

A log density of every row holds terms of the parameters alone, and its gradient is a sum over rows of products in which
half of the factors belong to the parameters. By hand one writes those outside of the sum; so does this.
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
    """Take out of sums the factors and terms that are the same along the summed axes."""
    nodes: list[Any] = list(module.graph.nodes)
    for node in nodes:
        if node.target is not aten.sum.dim_IntList or node.kwargs or not node.args[1]:
            continue
        summed, dims, *keep = node.args
        like = summed.meta["val"]
        if not like.dtype.is_floating_point:
            continue
        sums = _Sums(module, node, tuple(like.shape), frozenset(dim % like.ndim for dim in dims))
        if sums.gains(summed):
            total = sums.of(summed)
            kept = bool(keep and keep[0])
            shape = [1 if d in sums.dims else size for d, size in enumerate(like.shape) if kept or d not in sums.dims]
            total = sums.expanded(total)
            same = tuple(total.meta["val"].shape) == tuple(shape)
            node.replace_all_uses_with(total if same else sums.call(aten.reshape.default, total, shape))
            module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    module.recompile()


@dataclass
class _Product:
    """Factors of a product; those below the line; a number."""

    above: list[Any] = field(default_factory=list)
    below: list[Any] = field(default_factory=list)
    number: float = 1.0

    def take(self, node: Any, *, inverted: bool = False, whole: bool = True) -> None:
        """Multiply by a node, in its own factors where nothing else reads it."""
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
            (self.below if inverted else self.above).append(node)


@dataclass
class _Sums:
    """Writes sums over the axes ``dims`` of expressions of one shape, before a node of the graph."""

    module: fx.GraphModule
    before: Any
    shape: tuple[int, ...]
    dims: frozenset[int]

    def gains(self, node: Any) -> bool:
        """Whether anything comes out of the sum."""
        if isinstance(node, int | float) or self._varies_nowhere(node):
            return True
        if len(node.users) > 1:
            return False
        if node.target in _TERMS and not node.kwargs:
            return self._splits(node)
        if self._is_masked(node):
            return True
        product = _Product()
        product.take(node)
        return product.number != 1.0 or any(self._varies_nowhere(f) for f in product.above + product.below)

    def of(self, node: Any) -> Any:
        """Write the sum of an expression, axes kept with length one."""
        if isinstance(node, int | float):
            return node * math.prod(self.shape[dim] for dim in self.dims)
        if node.target in _TERMS and not node.kwargs and len(node.users) == 1 and self._splits(node):
            return self.call(node.target, *(self.of(term) for term in node.args))
        if len(node.users) == 1 and self._is_masked(node):
            mask, masked, zero = node.args
            return self.call(aten.where.self, _base(mask), self.of(masked), zero)
        product = _Product()
        product.take(node, whole=len(node.users) == 1)
        outside = _Product(number=product.number)
        inside = _Product()
        for factors, kept, out in (
            (product.above, inside.above, outside.above),
            (product.below, inside.below, outside.below),
        ):
            for factor in factors:
                (out if self._varies_nowhere(factor) else kept).append(factor)
        written = self._written(inside)
        if written is None:
            outside.number *= math.prod(self.shape[dim] for dim in self.dims)
        else:
            shape = (1,) * (len(self.shape) - written.meta["val"].ndim) + tuple(written.meta["val"].shape)
            outside.number *= math.prod(self.shape[dim] for dim in self.dims if shape[dim] == 1)
            if written.meta["val"].ndim != len(shape):
                written = self.call(aten.reshape.default, written, list(shape))
            outside.above.insert(0, self.call(aten.sum.dim_IntList, written, sorted(self.dims), True))
        return self._written(outside)

    def expanded(self, total: Any) -> Any:
        """Repeat a sum along the axes that it does not vary along."""
        shape = [1 if dim in self.dims else size for dim, size in enumerate(self.shape)]
        return total if tuple(total.meta["val"].shape) == tuple(shape) else self.call(aten.expand.default, total, shape)

    def call(self, target: Any, *args: Any) -> Any:
        """Add an operation to the graph, knowing the shape of its result."""
        like = [_like(arg) for arg in args]
        with self.module.graph.inserting_before(self.before):
            node = self.module.graph.call_function(target, args)
        node.meta["val"] = target(*like)
        return node

    def _splits(self, node: Any) -> bool:
        """Whether the sum of two terms is better written as two sums."""
        smaller = [isinstance(term, int | float) or self._is_smaller(term) for term in node.args]
        return any(smaller) or all(self.gains(term) for term in node.args)

    def _is_masked(self, node: Any) -> bool:
        """Whether an expression is zero where a mask says so that is the same along all summed axes."""
        if node.target is not aten.where.self:
            return False
        mask, masked, other = node.args
        if not self._varies_nowhere(mask) or self._varies_nowhere(masked) or other.op != "get_attr":
            return False
        zero = getattr(self.module, other.target)
        return zero.ndim == 0 and float(zero) == 0.0

    def _is_smaller(self, node: Any) -> bool:
        return _base(node).meta["val"].numel() < math.prod(self.shape)

    def _varies_nowhere(self, node: Any) -> bool:
        """Whether an expression is the same along all summed axes, and is summed over more than one place."""
        shape = _base(node).meta["val"].shape
        aligned = (1,) * (len(self.shape) - len(shape)) + tuple(shape)
        return all(aligned[dim] == 1 for dim in self.dims) and any(self.shape[dim] != 1 for dim in self.dims)

    def _written(self, product: _Product) -> Any:
        """Write a product, or nothing where it is one."""
        written: Any = None
        for factor in product.above:
            base = _base(factor)
            written = base if written is None else self.call(aten.mul.Tensor, written, base)
        for factor in product.below:
            base = _base(factor)
            inverse = (aten.reciprocal.default, base) if written is None else (aten.div.Tensor, written, base)
            written = self.call(*inverse)
        if product.number != 1.0 and written is not None:
            negated = product.number == -1.0
            written = (
                self.call(aten.neg.default, written) if negated else self.call(aten.mul.Tensor, written, product.number)
            )
        return written


def _base(node: Any) -> Any:
    """Return what is repeated."""
    while node.target is aten.expand.default:
        node = node.args[0]
    return node


def _like(value: Any) -> Any:
    """Return a tensor without entries, of an argument's shape."""
    if not isinstance(value, fx.Node):
        return value
    like: Tensor = value.meta["val"]
    return torch.empty(like.shape, dtype=like.dtype, device="meta")
