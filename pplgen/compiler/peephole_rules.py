"""Peephole rules: cheaper equivalents of ATen operations for some of their arguments."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pplgen.compiler.constant_folding import Constant, Expanded, expand, materialise
from pplgen.compiler.recording import pause_recording

__all__ = ["PEEPHOLE_RULES", "identity_operand"]

aten = torch.ops.aten

_IDENTITIES: dict[Any, tuple[float, bool]] = {
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
"""The identity element of an operation, and whether it may be either operand."""


def identity_operand(target: Any, args: Any, shape: tuple[int, ...]) -> Any:
    """Return the operand that an operation with its identity element returns, or ``None``."""
    if target not in _IDENTITIES:
        return None
    neutral, either = _IDENTITIES[target]
    for operand, other in ((args[0], args[1]), (args[1], args[0])) if either else ((args[0], args[1]),):
        if not isinstance(operand, Tensor | Expanded | Constant):
            continue
        number = other.fill_value if isinstance(other, Constant) else other
        if isinstance(number, float | int) and not isinstance(number, bool) and number == neutral:
            dtype = torch.result_type(*(_like_operand(value) for value in (operand, other)))
            if dtype == operand.dtype:
                return expand(operand, shape)
    return None


def _like_operand(value: Any) -> Any:
    """Return a one-entry tensor of the dtype and rank of an operand."""
    if isinstance(value, Tensor | Expanded | Constant):
        return torch.empty((1,) * len(value.shape), dtype=value.dtype)
    return value


def _index(source: Any, indices: list[Any]) -> Any:
    """Index an axis by ``arange``, as enumeration does: a reshape."""
    axis, index = _single_constant_index(indices)
    if index is None or not _is_arange(index, source.shape[axis]):
        return None
    tensor = materialise(source)
    return aten.reshape.default(tensor, [*source.shape[:axis], *index.shape, *source.shape[axis + 1 :]])


def _index_put(target: Any, indices: list[Any], values: Any, accumulate: bool = False) -> Any:
    """Accumulate along an axis indexed by ``arange``: a sum."""
    axis, index = _single_constant_index(indices)
    if index is None or not accumulate or not _is_arange(index, target.shape[axis]):
        return None
    full = [*target.shape[:axis], *index.shape, *target.shape[axis + 1 :]]
    added = aten.reshape.default(materialise(expand(values, tuple(full))), list(target.shape))
    same = identity_operand(aten.add.Tensor, (added, target), tuple(target.shape))
    return aten.add.Tensor(added, materialise(target)) if same is None else same


def _single_constant_index(indices: list[Any]) -> tuple[int, Constant | None]:
    """Return the indexed axis and its index, ``None`` unless there is exactly one and it is constant."""
    used = [(axis, index) for axis, index in enumerate(indices) if index is not None]
    return used[0] if len(used) == 1 and isinstance(used[0][1], Constant) else (0, None)


def _is_arange(index: Constant, size: int) -> bool:
    with pause_recording():
        flat = index.value.reshape(-1)
        return flat.dtype == torch.long and torch.equal(flat, torch.arange(size, device=flat.device))


def _dot(left: Any, right: Any) -> Any:
    """Take the dot product with a constant vector of equal entries: a multiple of the sum."""
    for operand, other in ((left, right), (right, left)):
        if isinstance(other, Constant) and other.fill_value is not None and not isinstance(operand, Constant):
            total = aten.sum.dim_IntList(materialise(operand), [0])
            return total if other.fill_value == 1 else aten.mul.Tensor(total, other.fill_value)
    return None


def _bmm(left: Any, right: Any) -> Any:
    """Write an outer product as a broadcast product, and an inner product as a product and a sum."""
    (_, rows, inner), columns = left.shape, right.shape[2]
    if inner == 1:
        return aten.mul.Tensor(materialise(left), materialise(right))
    if rows == columns == 1:
        transposed = aten.transpose.int(materialise(right), 1, 2)
        return aten.sum.dim_IntList(aten.mul.Tensor(materialise(left), transposed), [2], True)
    return None


def _solve_triangular(triangular: Any, right: Any, *, unitriangular: bool = False, **_: Any) -> Any:
    """Divide by matrices of one entry, for which LAPACK takes a call each."""
    if triangular.shape[-1] != 1 or unitriangular:
        return None
    return aten.div.Tensor(materialise(right), materialise(triangular))


def _scatter(target: Any, dim: int, index: Any, value: Any) -> Any:
    """Scatter a number along an axis: a ``where``, which batches without a loop."""
    axes = range(len(target.shape))
    whole = len(index.shape) == len(target.shape) and all(
        index.shape[axis] == (1 if axis == dim % len(target.shape) else target.shape[axis]) for axis in axes
    )
    if not whole:
        return None
    target, index = materialise((target, index))
    shape = [target.shape[axis] if axis == dim % target.ndim else 1 for axis in axes]
    places = aten.reshape.default(aten.arange.default(max(shape), device=index.device), shape)
    number = aten.full.default([], value, dtype=target.dtype, device=target.device)
    return aten.where.self(aten.eq.Tensor(places, index), number, target)


def _log_sigmoid_backward(gradient: Any, value: Any, _: Any) -> Any:
    """Differentiate in terms of the sigmoid, since the operation has no usable batching rule."""
    gradient, value = materialise((gradient, value))
    return aten.mul.Tensor(gradient, aten.sigmoid.default(aten.neg.default(value)))


PEEPHOLE_RULES: dict[Any, Any] = {
    aten.index.Tensor: _index,
    aten.index_put.default: _index_put,
    aten.dot.default: _dot,
    aten.bmm.default: _bmm,
    aten.linalg_solve_triangular.default: _solve_triangular,
    aten.scatter.value: _scatter,
    aten.log_sigmoid_backward.default: _log_sigmoid_backward,
}
"""Rules by operation; each returns ``None`` for arguments to which it does not apply."""
