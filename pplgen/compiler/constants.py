"""Tensors of which more is known than their entries: that they are constants, or repetitions of something smaller."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.fx.node import map_aggregate

from pplgen.compiler.recording import pause_recording

__all__ = ["Known", "Repeated", "as_tensors", "base_of", "device_of", "repeated"]

aten = torch.ops.aten


@dataclass(frozen=True)
class Repeated:
    """A tensor that stands for its repetition to a larger shape."""

    base: Tensor
    shape: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        """Type of its entries."""
        return self.base.dtype

    @property
    def aligned(self) -> Tensor:
        """What is repeated, with one axis for each of the shape's."""
        missing = len(self.shape) - self.base.ndim
        return self.base if not missing else self.base.reshape((1,) * missing + tuple(self.base.shape))

    def tensor(self) -> Tensor:
        """Return the repetition itself."""
        return self.base.expand(self.shape)

    def sum(self, dims: list[int], keepdim: bool = False) -> Any:
        """Sum over axes, those of the repetition by multiplication."""
        dims = [dim % len(self.shape) for dim in dims]
        times = 1
        for dim in dims:
            if self.aligned.shape[dim] != self.shape[dim]:
                times *= self.shape[dim]
        total = aten.sum.dim_IntList(self.aligned, dims, keepdim)
        shape = [1 if dim in dims else size for dim, size in enumerate(self.shape) if keepdim or dim not in dims]
        return repeated(total if times == 1 else aten.mul.Tensor(total, float(times)), tuple(shape))

    def max(self, dim: int, keepdim: bool = False) -> Any:
        """Maximum over an axis that is not one of the repetition, and where it is; ``None`` for the others."""
        dim = dim % len(self.shape)
        if self.aligned.shape[dim] != self.shape[dim]:
            return None
        shape = [1 if d == dim else size for d, size in enumerate(self.shape) if keepdim or d != dim]
        return tuple(repeated(value, tuple(shape)) for value in aten.max.dim(self.aligned, dim, keepdim))

    def permuted(self, axes: list[int]) -> Repeated:
        """Change the order of axes."""
        axes = [axis % len(self.shape) for axis in axes]
        return Repeated(self.aligned.permute(axes), tuple(self.shape[axis] for axis in axes))

    def reshaped(self, shape: tuple[int, ...]) -> Repeated | None:
        """Put in and take out axes of length one; ``None`` where the shape differs in more."""
        if [size for size in shape if size != 1] != [size for size in self.shape if size != 1]:
            return None
        kept = iter([ours for ours, size in zip(self.aligned.shape, self.shape, strict=True) if size != 1])
        return Repeated(self.base.reshape([1 if size == 1 else next(kept) for size in shape]), shape)


@dataclass(frozen=True)
class Known:
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
    def everywhere(self) -> Any:
        """The number that it holds in every place, or ``None``."""
        if not self.value.numel():
            return None
        with pause_recording():
            first = self.value.reshape(-1)[0]
            return first.item() if bool((self.value == first).all()) else None

    def tensor(self) -> Tensor:
        """Return it as an operation of the graph, or as a constant that the graph holds."""
        number = self.everywhere
        if number is None or not self.shape:
            return self.value
        return aten.full.default(self.shape, number, dtype=self.value.dtype, device=self.value.device)


def repeated(value: Any, shape: tuple[int, ...]) -> Any:
    """Repeat a value to a shape, in which -1 keeps a size."""
    ours = (1,) * (len(shape) - len(value.shape)) + tuple(value.shape)
    shape = tuple(own if size == -1 else size for own, size in zip(ours, shape, strict=True))
    if tuple(value.shape) == shape:
        return value
    if isinstance(value, Known):
        with pause_recording():
            return Known(value.value.expand(shape))
    return Repeated(base_of(value), shape)


def base_of(value: Any) -> Tensor:
    """Return what is repeated."""
    if isinstance(value, Known):
        if value.everywhere is None:
            return value.tensor()
        with pause_recording():
            number = value.value.reshape(-1)[0].clone()
        return number
    return value.base if isinstance(value, Repeated) else value


def device_of(value: Any) -> torch.device:
    """Return where a value lives."""
    return value.value.device if isinstance(value, Known) else base_of(value).device


def as_tensors(values: Any) -> Any:
    """Replace repetitions and constants by tensors, however nested."""
    return map_aggregate(values, lambda value: value.tensor() if isinstance(value, Repeated | Known) else value)
