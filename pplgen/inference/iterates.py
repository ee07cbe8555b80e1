"""Parameter iterates along a run, thinned to a bounded number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["Iterates", "flatten", "tracked_indices", "unflatten"]

STRIDE = 10
"""Initial number of steps between iterates; doubled whenever too many are stored."""
MIN_STORED = 200
"""Minimum number of stored iterates of a long run; the maximum is twice as many."""
MAX_TRACKED = 128
"""Maximum number of tracked parameters."""
MAX_FINAL_SIZE = 20_000
"""Maximum number of parameters for which every restart's final values are stored, to compare restarts."""


def tracked_indices(num_parameters: int) -> Tensor:
    """Return the indices of tracked entries of the flat parameters: all, or ``MAX_TRACKED`` evenly spaced ones."""
    return torch.linspace(0, num_parameters - 1, min(num_parameters, MAX_TRACKED)).round().long()


def flatten(values: Mapping[str, Tensor]) -> Tensor:
    """Concatenate named parameters to one vector, sorted by name."""
    return torch.cat([values[name].reshape(-1) for name in sorted(values)]) if values else torch.zeros(0)


def unflatten(vector: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Split a vector into parameters with the names and shapes of ``like``."""
    names = sorted(like)
    parts = vector.split([like[name].numel() for name in names])
    return {name: part.reshape(like[name].shape).to(like[name]) for name, part in zip(names, parts, strict=True)}


class Iterates:
    """Values of tracked parameters along a run, which stay on their device."""

    def __init__(self, stored: list[Tensor] | None = None, stride: int = STRIDE) -> None:
        self.stored, self.stride = stored or [], stride
        self.mark()

    def due(self, step: int) -> bool:
        """Whether the values after this step are to be stored."""
        return step >= self.stride * (len(self.stored) + 1)

    def record(self, step: int, values: Tensor) -> None:
        """Store the flat parameters after a step, shape ``(..., P)``, if one is due."""
        if not self.due(step):
            return
        self.stored.append(values.detach()[..., tracked_indices(values.shape[-1]).to(values.device)].clone())
        if len(self.stored) == 2 * MIN_STORED:
            self.stored, self.stride = self.stored[1::2], 2 * self.stride

    def mark(self) -> None:
        """Mark the current position."""
        self._marked = len(self.stored), self.stride

    def overwrite_since_mark(self, values: Tensor, which: Any = ...) -> None:
        """Overwrite the iterates since the mark, of ``which`` restarts, by parameters of shape ``(..., P)``."""
        number, stride = self._marked
        for value in self.stored[number * stride // self.stride :]:
            value[which] = values.detach()[..., tracked_indices(values.shape[-1]).to(values.device)]

    def discard_since_mark(self) -> None:
        """Discard the iterates since the mark."""
        number, stride = self._marked
        del self.stored[number * stride // self.stride :]

    def stacked(self) -> Tensor:
        """Return the stored iterates, shape ``(num_stored, ..., num_tracked)``."""
        return torch.stack(self.stored) if self.stored else torch.zeros(0)
