"""Where the parameters of a fit have been: values along the run, thinned to a bounded number, and where they ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["Iterates", "flat", "followed", "unflat"]

STRIDE = 10
"""Steps between two values at first; it doubles whenever too many are kept."""
KEPT = 200
"""Values that are kept at least, once the run is long enough, and half of those that are kept at most."""
FOLLOWED = 128
"""Parameters that are followed at most."""
RETURNABLE = 20_000
"""Parameters up to which the end of every restart is kept, for comparing where they went."""


def followed(num_parameters: int) -> Tensor:
    """Return which entries of the flat parameters are followed: all, or ``FOLLOWED`` evenly chosen ones."""
    return torch.linspace(0, num_parameters - 1, min(num_parameters, FOLLOWED)).round().long()


def flat(values: Mapping[str, Tensor]) -> Tensor:
    """Lay named parameters out as one vector, in the order of their names."""
    return torch.cat([values[name].reshape(-1) for name in sorted(values)]) if values else torch.zeros(0)


def unflat(vector: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take one vector apart into parameters of the names and shapes of ``like``."""
    names = sorted(like)
    parts = vector.split([like[name].numel() for name in names])
    return {name: part.reshape(like[name].shape).to(like[name]) for name, part in zip(names, parts, strict=True)}


class Iterates:
    """Values of followed parameters along a run; nothing is read back to Python while it lasts."""

    def __init__(self, kept: list[Tensor] | None = None, stride: int = STRIDE) -> None:
        self.kept, self.stride = kept or [], stride
        self.mark()

    def due(self, step: int) -> bool:
        """Whether values after this step are to be kept."""
        return step >= self.stride * (len(self.kept) + 1)

    def notice(self, step: int, values: Tensor) -> None:
        """Keep the flat parameters after a step, shape ``(..., P)``, where it is time to."""
        if not self.due(step):
            return
        self.kept.append(values.detach()[..., followed(values.shape[-1]).to(values.device)].clone())
        if len(self.kept) == 2 * KEPT:
            self.kept, self.stride = self.kept[1::2], 2 * self.stride

    def mark(self) -> None:
        """Remember what is kept by now."""
        self._marked = len(self.kept), self.stride

    def go_back(self, values: Tensor, which: Any = ...) -> None:
        """Put parameters, shape ``(..., P)``, in the place of what was noticed since the mark, of ``which`` alone."""
        number, stride = self._marked
        for value in self.kept[number * stride // self.stride :]:
            value[which] = values.detach()[..., followed(values.shape[-1]).to(values.device)]

    def forget(self) -> None:
        """Leave out what was noticed since the mark."""
        number, stride = self._marked
        del self.kept[number * stride // self.stride :]

    def stacked(self) -> Tensor:
        """Return what is kept, shape ``(num_kept, ..., num_followed)``."""
        return torch.stack(self.kept) if self.kept else torch.zeros(0)
