"""Operations on gamma and Dirichlet draws that torch lacks, or cannot batch: derivatives and quantiles.

They are registered as ``torch.ops.pplgen``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy import special
from torch import Tensor

aten = torch.ops.aten

RELATIVE_STEP = 1e-5
"""Step of the central difference of a quantile, relative to the concentration: its error is about 1e-10."""
SMALLEST = 1e-300
"""Smallest quantile: those of small concentrations underflow."""


def _batches_elementwise(operation: Any) -> Any:
    """Let ``vmap`` apply an operation to all batch elements at once, arguments broadcast against each other."""

    @operation.register_vmap
    def _(info: object, in_dims: tuple[int | None, ...], *arguments: Tensor) -> tuple[Tensor, int]:
        batched = (
            value.unsqueeze(0) if dim is None else value.movedim(dim, 0)
            for value, dim in zip(arguments, in_dims, strict=True)
        )
        return operation(*torch.broadcast_tensors(*batched)), 0

    return operation


@_batches_elementwise
@torch.library.custom_op("pplgen::standard_gamma_grad", mutates_args=())
def _standard_gamma_grad(concentration: Tensor, sample: Tensor) -> Tensor:
    """Differentiate a standard gamma draw with respect to its concentration, elementwise."""
    return aten._standard_gamma_grad(concentration.contiguous(), sample.contiguous())


@_standard_gamma_grad.register_fake
def _(concentration: Tensor, sample: Tensor) -> Tensor:
    return torch.empty_like(sample, memory_format=torch.contiguous_format)


@_batches_elementwise
@torch.library.custom_op("pplgen::dirichlet_grad", mutates_args=())
def _dirichlet_grad(x: Tensor, concentration: Tensor, total: Tensor) -> Tensor:
    """Differentiate a Dirichlet draw with respect to its concentration; the last axis is the simplex."""
    return aten._dirichlet_grad(x.contiguous(), concentration.contiguous(), total.contiguous())


@_dirichlet_grad.register_fake
def _(x: Tensor, concentration: Tensor, total: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@_batches_elementwise
@torch.library.custom_op("pplgen::gamma_quantile", mutates_args=())
def _gamma_quantile(concentration: Tensor, probability: Tensor) -> Tensor:
    """Compute quantiles of the gamma distribution of rate 1, elementwise, in float64."""
    with np.errstate(all="ignore"):
        quantiles = np.maximum(special.gammaincinv(_array(concentration), _array(probability)), SMALLEST)
    return torch.as_tensor(quantiles, device=concentration.device)


@_batches_elementwise
@torch.library.custom_op("pplgen::gamma_quantile_grad", mutates_args=())
def _gamma_quantile_grad(concentration: Tensor, probability: Tensor) -> Tensor:
    """Differentiate ``gamma_quantile`` with respect to the concentration.

    torch's derivative of a gamma draw has a relative error of up to 5e-4, too large for a quasi-Newton method.
    """
    a, p = _array(concentration), _array(probability)
    with np.errstate(all="ignore"):  # an infinite concentration has no derivative: NaN
        difference = special.gammaincinv(a * (1 + RELATIVE_STEP), p) - special.gammaincinv(a * (1 - RELATIVE_STEP), p)
        derivative = difference / (2 * RELATIVE_STEP * a)
    return torch.as_tensor(derivative, device=concentration.device)


@_gamma_quantile.register_fake
@_gamma_quantile_grad.register_fake
def _(concentration: Tensor, probability: Tensor) -> Tensor:
    return torch.empty_like(probability)


def _array(value: Tensor) -> Any:
    return value.detach().cpu().double().numpy()
