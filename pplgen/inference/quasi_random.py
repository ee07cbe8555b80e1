"""Base draws by randomised quasi-Monte Carlo, in independent blocks whose spread gives the Monte Carlo error.

A block is a scrambled Sobol' sequence and its mirror image (antithetic draws), with normal draws rescaled to unit
variance, or linearly transformed to unit covariance if the block is large enough: Gaussian expectations of linear and
separable quadratic functions are then exact.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["BaseDraws", "draw_blocks"]

MAX_SOBOL = 1024
"""Maximum dimension of Sobol' sequences: with a block's few points they are no better in more, and slow."""
CLOSEST = 1e-12
"""Minimum distance of uniform draws from 0 and 1."""


class BaseDraws:
    """Normal and uniform base draws, shape ``(num_draws, num_normals)`` and ``(num_draws, num_uniforms)``."""

    def __init__(self, normals: Tensor, uniforms: Tensor, num_blocks: int) -> None:
        self.normals, self.uniforms, self.num_blocks = normals, uniforms, num_blocks

    def __len__(self) -> int:
        return len(self.normals)

    def first(self, num_normals: int, num_uniforms: int) -> BaseDraws:
        """Return the first base draws of each kind."""
        return BaseDraws(self.normals[:, :num_normals], self.uniforms[:, :num_uniforms], self.num_blocks)

    def blocks(self, first: int, last: int) -> BaseDraws:
        """Return the blocks from ``first`` to before ``last``."""
        size = len(self) // self.num_blocks
        rows = slice(first * size, last * size)
        return BaseDraws(self.normals[rows], self.uniforms[rows], last - first)


def draw_blocks(
    num_blocks: int, block_size: int, num_normals: int, num_uniforms: int, *, seed: int, device: torch.device
) -> BaseDraws:
    """Draw ``num_blocks`` independent blocks of ``block_size`` base draws, an even number."""
    num_entries, half = num_normals + num_uniforms, block_size // 2
    normals, uniforms = [], []
    for generator in torch.arange(num_blocks) + seed * num_blocks:
        points = _uniform(half, num_entries, int(generator)).clamp(CLOSEST, 1 - CLOSEST)
        normal = torch.special.ndtri(points[:, :num_normals])
        normals.append(_standardised(torch.cat([normal, -normal])))
        uniforms.append(torch.cat([points[:, num_normals:], 1 - points[:, num_normals:]]))
    return BaseDraws(torch.cat(normals).to(device), torch.cat(uniforms).to(device), num_blocks)


def _uniform(num_points: int, num_entries: int, seed: int) -> Tensor:
    """Draw points in the unit cube; beyond ``MAX_SOBOL`` dimensions independent ones."""
    if 0 < num_entries <= MAX_SOBOL:
        return torch.quasirandom.SobolEngine(num_entries, scramble=True, seed=seed).draw(
            num_points, dtype=torch.float64
        )
    return torch.rand(num_points, num_entries, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _standardised(normals: Tensor) -> Tensor:
    """Transform mirrored draws to unit covariance if they are four times as many as their dimensions, else variance."""
    size, num_entries = normals.shape
    if size < 4 * num_entries:
        return normals / normals.square().mean(0).sqrt()
    factor = torch.linalg.cholesky(normals.mT @ normals / size)
    return torch.linalg.solve_triangular(factor, normals.mT, upper=False).mT
