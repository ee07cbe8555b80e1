"""Shapes that state space models share: parameters with or without a time axis, batch axes that broadcast."""

from __future__ import annotations

from collections.abc import Sequence

import torch
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
        given = ", ".join(f"{name} {str(tensor.dtype).removeprefix('torch.')}" for name, tensor in tensors.items())
        raise InputError(f"dtypes are {given}; expected one floating-point dtype")


def broadcast_batches(**batches: Size) -> Size:
    """Return the shape that the named batch shapes broadcast to, or raise ``InputError``."""
    try:
        return torch.broadcast_shapes(*batches.values())
    except RuntimeError:
        given = ", ".join(f"{tuple(batch)} of {name}" for name, batch in batches.items())
        raise InputError(f"batch axes do not broadcast: {given}") from None


def along_time(name: str, tensor: Tensor, num_steps: int, *sizes: int) -> Tensor:
    """Give a parameter its time axis.

    Parameters
    ----------
    name
        Name to put into the error.
    tensor
        Shape ``sizes``, constant; or ``(..., num_steps, *sizes)``, with 1 in place of ``num_steps`` where constant.
    num_steps
        Length of the time axis.
    *sizes
        Sizes of one step's parameter.

    Returns
    -------
    Tensor
        A view of shape ``(..., num_steps, *sizes)``.

    Raises
    ------
    InputError
        Where the shape is neither.
    """
    timed = tensor.unsqueeze(0) if tensor.ndim == len(sizes) else tensor
    axes = len(sizes) + 1
    if timed.shape[1 - axes :] != sizes or timed.shape[-axes] not in (1, num_steps):
        expected = f"{sizes} or {(num_steps, *sizes)}, batch axes in front"
        raise InputError(f"{name} has shape {tuple(tensor.shape)}; expected {expected}")
    return timed.expand(*timed.shape[:-axes], num_steps, *sizes)


def stack_steps(steps: Sequence[tuple[Tensor, ...]], *dims: int) -> tuple[Tensor, ...]:
    """Turn one tuple of tensors per step into a tuple of series, each with its time axis at its own place."""
    series = zip(*steps, strict=True)
    return tuple(torch.stack(torch.broadcast_tensors(*part), dim) for part, dim in zip(series, dims, strict=True))


def pick(part: Tensor, places: Tensor, core: int) -> Tensor:
    """Pick entries of the axis that stands in front of the last ``core`` ones.

    Parameters
    ----------
    part
        Shape ``(..., K, *core)``.
    places
        Integers below K. Its axes broadcast with those of ``part`` in front of K, which may be fewer or of length 1.

    Returns
    -------
    Tensor
        The shape of ``places``, then the core.
    """
    own = part.expand(*places.shape, *part.shape[-core - 1 :])
    index = places[(..., *(None,) * (core + 1))].expand(*places.shape, 1, *part.shape[part.ndim - core :])
    return own.gather(places.ndim, index).squeeze(places.ndim)
