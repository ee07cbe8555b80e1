"""A pair whose posterior is known: the record of one, and sums over a grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pplgen.story.isolation import seeded
from pplgen.verification.data_sources import Sources

__all__ = ["GRID", "KnownPosterior", "Moments", "drawn", "fixed", "log_normal", "on_grid"]

GRID = "sum over a grid"

Moments = dict[str, tuple[Tensor, Tensor]]
"""Posterior mean and standard deviation of each site."""


@dataclass(frozen=True)
class KnownPosterior:
    """A model with data, and its posterior moments.

    Attributes
    ----------
    what
        Description of model, data and guide.
    model, guide
        The pair; a guide of ``None`` is fit's default, ``AutoNormal``.
    data
        Returns the arguments of both.
    moments
        Returns mean and standard deviation of each site that all rows share, given the same arguments.
    exact
        Whether the guide's family contains the posterior; otherwise linear-response standard deviations are compared.
    source
        How the moments are computed.
    allowed
        Allowed errors of means, in posterior sd, and of sds, relative, where they are wider than usual.
    """

    what: str
    model: Callable[..., Any]
    guide: Callable[..., Any] | None
    data: Callable[[Sources], tuple[Tensor, ...]]
    moments: Callable[..., Moments]
    exact: bool = False
    source: str = "closed form"
    allowed: tuple[float, float] | None = None


def fixed(*data: Tensor) -> Callable[[Sources], tuple[Tensor, ...]]:
    """Return these data, whatever the sources."""
    return lambda sources: data


def drawn(seed: int, draw: Callable[[], Any]) -> Any:
    """Draw data with their own seed."""
    with seeded(seed):
        return draw()


def on_grid(log_density: Callable[..., Tensor], axes: dict[str, tuple[float, float]], size: int = 200) -> Moments:
    """Sum a log density over a grid; ``axes`` has the interval of each scalar site."""
    lines = [torch.linspace(low, high, size, dtype=torch.float64) for low, high in axes.values()]
    points = torch.meshgrid(*lines, indexing="ij")
    weights = log_density(*points).flatten().softmax(0)
    mean = {name: weights @ point.flatten() for name, point in zip(axes, points, strict=True)}
    square = {name: weights @ (point.flatten() - mean[name]).square() for name, point in zip(axes, points, strict=True)}
    return {name: (mean[name], square[name].sqrt()) for name in axes}


def log_normal(x: Tensor, mean: Any, sd: Any) -> Tensor:
    """Log density of a normal in nats, up to a constant."""
    sd = torch.as_tensor(sd, dtype=torch.float64)
    return -0.5 * ((x - mean) / sd).square() - sd.log()
