"""ATen operations with a cheaper equal for some of their arguments."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pplgen.compiler.constants import Known, Repeated, as_tensors, repeated
from pplgen.compiler.recording import pause_recording

__all__ = ["REWRITES", "unchanged"]

aten = torch.ops.aten

_LEAVES_UNCHANGED: dict[Any, tuple[float, bool]] = {
    aten.add.Tensor: (0, True),
    aten.add.Scalar: (0, True),
    aten.sub.Tensor: (0, False),
    aten.sub.Scalar: (0, False),
    aten.mul.Tensor: (1, True),
    aten.mul.Scalar: (1, True),
    aten.div.Tensor: (1, False),
    aten.div.Scalar: (1, False),
    aten.pow.Tensor_Scalar: (1, False),
}
"""The number with which an operation leaves its other operand as it is, and whether the two may change places."""


def unchanged(target: Any, args: Any, shape: tuple[int, ...]) -> Any:
    """Return the operand that an operation leaves as it is, or ``None``."""
    if target not in _LEAVES_UNCHANGED:
        return None
    neutral, either = _LEAVES_UNCHANGED[target]
    for kept, other in ((args[0], args[1]), (args[1], args[0])) if either else ((args[0], args[1]),):
        if not isinstance(kept, Tensor | Repeated | Known):
            continue
        number = other.everywhere if isinstance(other, Known) else other
        if isinstance(number, float | int) and not isinstance(number, bool) and number == neutral:
            dtype = torch.result_type(*(_typed(value) for value in (kept, other)))
            if dtype == kept.dtype:
                return repeated(kept, shape)
    return None


def _typed(value: Any) -> Any:
    """Return something small of the same type and rank as an operand."""
    if isinstance(value, Tensor | Repeated | Known):
        return torch.empty((1,) * len(value.shape), dtype=value.dtype)
    return value


def _index(source: Any, indices: list[Any]) -> Any:
    """Index an axis by all of its places in their order, as enumeration does: a reshape."""
    axis, index = _only_index(indices)
    if index is None or not _is_all_places(index, source.shape[axis]):
        return None
    tensor = as_tensors(source)
    return aten.reshape.default(tensor, [*source.shape[:axis], *index.shape, *source.shape[axis + 1 :]])


def _index_put(target: Any, indices: list[Any], values: Any, accumulate: bool = False) -> Any:
    """Add to all places of an axis in their order: a sum."""
    axis, index = _only_index(indices)
    if index is None or not accumulate or not _is_all_places(index, target.shape[axis]):
        return None
    full = [*target.shape[:axis], *index.shape, *target.shape[axis + 1 :]]
    added = aten.reshape.default(as_tensors(repeated(values, tuple(full))), list(target.shape))
    same = unchanged(aten.add.Tensor, (added, target), tuple(target.shape))
    return aten.add.Tensor(added, as_tensors(target)) if same is None else same


def _only_index(indices: list[Any]) -> tuple[int, Known | None]:
    """Return the axis that is indexed and its index, ``None`` where there is not just one known index."""
    used = [(axis, index) for axis, index in enumerate(indices) if index is not None]
    return used[0] if len(used) == 1 and isinstance(used[0][1], Known) else (0, None)


def _is_all_places(index: Known, size: int) -> bool:
    with pause_recording():
        flat = index.value.reshape(-1)
        return flat.dtype == torch.long and torch.equal(flat, torch.arange(size, device=flat.device))


def _dot(left: Any, right: Any) -> Any:
    """Take a scalar product with one number in every place: a multiple of the sum."""
    for kept, other in ((left, right), (right, left)):
        if isinstance(other, Known) and other.everywhere is not None and not isinstance(kept, Known):
            total = aten.sum.dim_IntList(as_tensors(kept), [0])
            return total if other.everywhere == 1 else aten.mul.Tensor(total, other.everywhere)
    return None


def _bmm(left: Any, right: Any) -> Any:
    """Multiply columns by lines entry by entry, and lines by columns likewise with a sum."""
    (_, lines, inner), columns = left.shape, right.shape[2]
    if inner == 1:
        return aten.mul.Tensor(as_tensors(left), as_tensors(right))
    if lines == columns == 1:
        turned = aten.transpose.int(as_tensors(right), 1, 2)
        return aten.sum.dim_IntList(aten.mul.Tensor(as_tensors(left), turned), [2], True)
    return None


def _scatter(target: Any, dim: int, index: Any, value: Any) -> Any:
    """Set the places of an index to a number: a choice, for which batches need no loop."""
    axes = range(len(target.shape))
    whole = len(index.shape) == len(target.shape) and all(
        index.shape[axis] == (1 if axis == dim % len(target.shape) else target.shape[axis]) for axis in axes
    )
    if not whole:
        return None
    target, index = as_tensors((target, index))
    shape = [target.shape[axis] if axis == dim % target.ndim else 1 for axis in axes]
    places = aten.reshape.default(aten.arange.default(max(shape), device=index.device), shape)
    number = aten.full.default([], value, dtype=target.dtype, device=target.device)
    return aten.where.self(aten.eq.Tensor(places, index), number, target)


def _log_sigmoid_backward(gradient: Any, value: Any, _: Any) -> Any:
    """Differentiate in terms of the sigmoid, for the operation has no clean rule for batches."""
    gradient, value = as_tensors((gradient, value))
    return aten.mul.Tensor(gradient, aten.sigmoid.default(aten.neg.default(value)))


REWRITES: dict[Any, Any] = {
    aten.index.Tensor: _index,
    aten.index_put.default: _index_put,
    aten.dot.default: _dot,
    aten.bmm.default: _bmm,
    aten.scatter.value: _scatter,
    aten.log_sigmoid_backward.default: _log_sigmoid_backward,
}
"""Operations with a cheaper equal for some arguments; ``None`` for the others."""
