"""Symbolic tensors for graph simplification: constants, and expansions of smaller tensors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.fx.node import map_aggregate

from pplgen.compiler.recording import pause_recording

__all__ = ["Constant", "Expanded", "device_of", "expand", "materialise", "unexpanded"]

aten = torch.ops.aten


@dataclass(frozen=True)
class Expanded:
    """A tensor that represents its expansion to a larger shape."""

    base: Tensor
    shape: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        """Type of its entries."""
        return self.base.dtype

    @property
    def aligned(self) -> Tensor:
        """The base, with leading axes of length one up to the rank of the shape."""
        missing = len(self.shape) - self.base.ndim
        return self.base if not missing else self.base.reshape((1,) * missing + tuple(self.base.shape))

    def tensor(self) -> Tensor:
        """Return the expanded tensor."""
        return self.base.expand(self.shape)

    def sum(self, dims: list[int], keepdim: bool = False) -> Any:
        """Sum over axes, expanded ones by multiplication."""
        dims = [dim % len(self.shape) for dim in dims]
        times = 1
        for dim in dims:
            if self.aligned.shape[dim] != self.shape[dim]:
                times *= self.shape[dim]
        total = aten.sum.dim_IntList(self.aligned, dims, keepdim)
        shape = [1 if dim in dims else size for dim, size in enumerate(self.shape) if keepdim or dim not in dims]
        return expand(total if times == 1 else aten.mul.Tensor(total, float(times)), tuple(shape))

    def max(self, dim: int, keepdim: bool = False) -> Any:
        """Return maximum and argmax over an axis; ``None`` for an expanded axis."""
        dim = dim % len(self.shape)
        if self.aligned.shape[dim] != self.shape[dim]:
            return None
        shape = [1 if d == dim else size for d, size in enumerate(self.shape) if keepdim or d != dim]
        return tuple(expand(value, tuple(shape)) for value in aten.max.dim(self.aligned, dim, keepdim))

    def permuted(self, axes: list[int]) -> Expanded:
        """Permute the axes."""
        axes = [axis % len(self.shape) for axis in axes]
        return Expanded(self.aligned.permute(axes), tuple(self.shape[axis] for axis in axes))

    def reshaped(self, shape: tuple[int, ...]) -> Expanded | None:
        """Insert and remove axes of length one; ``None`` for any other change of shape."""
        if [size for size in shape if size != 1] != [size for size in self.shape if size != 1]:
            return None
        sizes = iter([ours for ours, size in zip(self.aligned.shape, self.shape, strict=True) if size != 1])
        return Expanded(self.base.reshape([1 if size == 1 else next(sizes) for size in shape]), shape)


@dataclass(frozen=True)
class Constant:
    """A tensor that depends on no input."""

    value: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(self.value.shape)

    @property
    def dtype(self) -> torch.dtype:
        """Type of its entries."""
        return self.value.dtype

    @cached_property
    def fill_value(self) -> Any:
        """The value of all entries if they are equal, else ``None``."""
        if not self.value.numel():
            return None
        with pause_recording():
            first = self.value.reshape(-1)[0]
            return first.item() if bool((self.value == first).all()) else None

    def tensor(self) -> Tensor:
        """Return the constant as a ``full`` operation, or as a constant of the graph."""
        number = self.fill_value
        if number is None or not self.shape:
            return self.value
        return aten.full.default(self.shape, number, dtype=self.value.dtype, device=self.value.device)


def expand(value: Any, shape: tuple[int, ...]) -> Any:
    """Expand a value to a shape, where -1 keeps a size."""
    ours = (1,) * (len(shape) - len(value.shape)) + tuple(value.shape)
    shape = tuple(own if size == -1 else size for own, size in zip(ours, shape, strict=True))
    if tuple(value.shape) == shape:
        return value
    if isinstance(value, Constant):
        with pause_recording():
            return Constant(value.value.expand(shape))
    return Expanded(unexpanded(value), shape)


def unexpanded(value: Any) -> Tensor:
    """Return the tensor before its expansion."""
    if isinstance(value, Constant):
        if value.fill_value is None:
            return value.tensor()
        with pause_recording():
            number = value.value.reshape(-1)[0].clone()
        return number
    return value.base if isinstance(value, Expanded) else value


def device_of(value: Any) -> torch.device:
    """Return the device of a value."""
    return value.value.device if isinstance(value, Constant) else unexpanded(value).device


def materialise(values: Any) -> Any:
    """Replace expansions and constants by tensors, in any nesting."""
    return map_aggregate(values, lambda value: value.tensor() if isinstance(value, Expanded | Constant) else value)
