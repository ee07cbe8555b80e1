"""Random fills as functions that ``vmap`` draws separately for each batch element, with the same random numbers.

torch has no batching rules for ``exponential_`` and ``cauchy_``, and ``vmap`` gives every batch element the same draw
where their argument is not batched. They are registered as ``torch.ops.pplgen``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["FILLS"]

aten = torch.ops.aten


def _register(name: str, parameters: str, function: Callable[..., Tensor]) -> None:
    """Register a random function of a tensor's shape and of numbers, elementwise."""
    torch.library.define(f"pplgen::{name}", f"(Tensor x, {parameters}) -> Tensor")
    torch.library.impl(f"pplgen::{name}", "CompositeExplicitAutograd")(function)

    @torch.library.register_fake(f"pplgen::{name}")
    def _(x: Tensor, *numbers: float) -> Tensor:
        return torch.empty_like(x)

    @torch.library.register_vmap(f"pplgen::{name}")
    def _(info: Any, in_dims: tuple[int | None, ...], x: Tensor, *numbers: float) -> tuple[Tensor, int]:
        return getattr(torch.ops.pplgen, name)(x.movedim(in_dims[0] or 0, 0), *numbers), 0


_register("exponential", "float rate", lambda x, rate: aten.exponential(x, rate))
_register("cauchy", "float median, float sigma", lambda x, median, sigma: aten.cauchy(x, median, sigma))


def _batched(x: Tensor) -> Tensor:
    """Add an empty sum of random numbers, which is batched in ``vmap``, and draws none."""
    return x + torch.rand(0, dtype=x.dtype, device=x.device).sum()


FILLS: dict[Any, Callable[..., Tensor]] = {
    Tensor.normal_: lambda x, mean=0.0, std=1.0, **_: torch.randn_like(x) * std + mean,
    Tensor.uniform_: lambda x, low=0.0, high=1.0, **_: torch.rand_like(x) * (high - low) + low,
    Tensor.exponential_: lambda x, rate=1.0, **_: torch.ops.pplgen.exponential(_batched(x), rate),
    Tensor.bernoulli_: lambda x, p=0.5, **_: aten.bernoulli.p(x, p),
    Tensor.cauchy_: lambda x, median=0.0, sigma=1.0, **_: torch.ops.pplgen.cauchy(_batched(x), median, sigma),
}
"""In-place random fills, and equivalent functions."""
