"""Shape checks and operations for state space models: optional time axes, broadcast batch axes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Size, Tensor

from pplgen.errors import InputError

__all__ = ["along_time", "broadcast_batches", "check_dtypes", "check_series", "check_shape", "pick", "stack_steps"]


def check_shape(name: str, tensor: Tensor, *sizes: int) -> None:
    """Raise ``InputError`` unless the last axes of ``tensor`` have these sizes."""
    if tensor.shape[-len(sizes) :] != sizes:
        raise InputError(f"{name} has shape {tuple(tensor.shape)}; expected {sizes}, batch axes in front")


def check_series(y: Tensor) -> None:
    """Raise ``InputError`` unless ``y`` has a time axis of at least one step and an axis of observed dimensions."""
    if y.ndim < 2 or 0 in y.shape[-2:]:
        raise InputError(f"y has shape {tuple(y.shape)}; expected (..., T, E) with at least one step")


def check_dtypes(**tensors: Tensor) -> None:
    """Raise ``InputError`` unless all tensors hold floats of one dtype."""
    dtypes = {tensor.dtype for tensor in tensors.values()}
    if len(dtypes) > 1 or not next(iter(dtypes)).is_floating_point:
        names = ", ".join(f"{name} {str(tensor.dtype).removeprefix('torch.')}" for name, tensor in tensors.items())
        raise InputError(f"dtypes are {names}; expected one floating-point dtype")


def broadcast_batches(**batches: Size) -> Size:
    """Return the shape that the named batch shapes broadcast to, or raise ``InputError``."""
    try:
        return torch.broadcast_shapes(*batches.values())
    except RuntimeError:
        shapes = ", ".join(f"{tuple(batch)} of {name}" for name, batch in batches.items())
        raise InputError(f"batch axes do not broadcast: {shapes}") from None


def along_time(name: str, tensor: Tensor, num_steps: int, *sizes: int) -> Tensor:
    """Expand a parameter along time.

    Parameters
    ----------
    name
        Name for the error message.
    tensor
        Shape ``sizes``, constant; or ``(..., num_steps, *sizes)``, with 1 in place of ``num_steps`` if constant.
    num_steps
        Length of the time axis.
    *sizes
        Shape of the parameter at one step.

    Returns
    -------
    Tensor
        A view of shape ``(..., num_steps, *sizes)``.

    Raises
    ------
    InputError
        If the shape is neither.
    """
    timed = tensor.unsqueeze(0) if tensor.ndim == len(sizes) else tensor
    axes = len(sizes) + 1
    if timed.shape[1 - axes :] != sizes or timed.shape[-axes] not in (1, num_steps):
        expected = f"{sizes} or {(num_steps, *sizes)}, batch axes in front"
        raise InputError(f"{name} has shape {tuple(tensor.shape)}; expected {expected}")
    return timed.expand(*timed.shape[:-axes], num_steps, *sizes)


def stack_steps(steps: Sequence[tuple[Tensor, ...]], *dims: int) -> tuple[Tensor, ...]:
    """Stack a tuple of tensors per step into a tuple of series, each along its own dimension."""
    series = zip(*steps, strict=True)
    return tuple(torch.stack(torch.broadcast_tensors(*part), dim) for part, dim in zip(series, dims, strict=True))


def pick(part: Tensor, index: Int[Tensor, "..."], core: int) -> Tensor:
    """Index the axis before the last ``core`` ones.

    Parameters
    ----------
    part
        Shape ``(..., K, *core)``.
    index
        Integers below K. Its axes broadcast with those of ``part`` before K, which may be fewer or of length 1.

    Returns
    -------
    Tensor
        Shape of ``index``, then the core.
    """
    expanded = part.expand(*index.shape, *part.shape[-core - 1 :])
    full_index = index[(..., *(None,) * (core + 1))].expand(*index.shape, 1, *part.shape[part.ndim - core :])
    return expanded.gather(index.ndim, full_index).squeeze(index.ndim)
