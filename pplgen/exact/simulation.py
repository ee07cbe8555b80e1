"""Paths of linear Gaussian models drawn from their posterior, and observations drawn along them."""

from __future__ import annotations

import torch
from torch import Tensor

from pplgen.exact.kalman import Filtered, backward_kernels
from pplgen.exact.linear_gaussian import matvec, symmetrise
from pplgen.story.dynamics import LinearGaussian

__all__ = ["draw_categorical", "draw_missing", "draw_normal", "draw_states", "square_root"]


def draw_states(filtered: Filtered, parameters: LinearGaussian) -> Tensor:
    """Draw one path of states from ``p(x_1:T | y_1:T)`` for each series, last state first, with torch's generator.

    Parameters
    ----------
    filtered
        What the filter returned.
    parameters
        Those the filter ran with.

    Returns
    -------
    Tensor
        Shape ``(..., T, D)``.

    Raises
    ------
    torch.linalg.LinAlgError
        Where a predicted covariance after the first is not positive definite.

    References
    ----------
    Frühwirth-Schnatter (1994), Data augmentation and dynamic linear models.
    """
    G, g, L = backward_kernels(filtered, parameters)
    noise = matvec(square_root(L), torch.randn_like(g))
    x = draw_normal(filtered.mean[..., -1, :], filtered.covariance[..., -1, :, :])
    path = [x]
    for t in reversed(range(g.shape[-2])):
        x = matvec(G[..., t, :, :], x) + g[..., t, :] + noise[..., t, :]
        path.append(x)
    return torch.stack(path[::-1], -2)


def draw_missing(y: Tensor, x: Tensor, C: Tensor, d: Tensor, R: Tensor) -> Tensor:
    """Draw the missing entries of ``y = C x + d + N(0, R)`` given the seen ones and x, with torch's generator.

    A draw of all the noise is moved by what its seen entries turned out to be: with e the noise, o the seen and m the
    missing entries, ``e_m + R_mo R_oo^-1 (y - C x - d - e)_o`` has the law of the missing noise given the seen.

    Parameters
    ----------
    y
        NaN where missing, shape ``(..., E)``.
    x
        States, shape ``(..., D)``; batch axes of all broadcast.
    C, d, R
        Shapes ``(..., E, D)``, ``(..., E)`` and ``(..., E, E)``.

    Returns
    -------
    Tensor
        Shape ``(..., E)``, seen entries as they are.
    """
    signal = matvec(C, x) + d
    y = y.expand(torch.broadcast_shapes(y.shape, signal.shape))
    seen = ~y.isnan()
    drawn = signal + matvec(square_root(R), torch.randn_like(y))
    gain = R * seen.unsqueeze(-2)
    alone = torch.diag_embed((~seen).to(R.dtype))
    both = gain * seen.unsqueeze(-1) + alone
    surprise = torch.where(seen, y - drawn, 0)
    moved = torch.cholesky_solve(surprise.unsqueeze(-1), torch.linalg.cholesky(both)).squeeze(-1)
    return torch.where(seen, y, drawn + matvec(gain, moved))


def draw_categorical(log_probabilities: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw places along the last axis, shape of all others; probabilities need not sum to 1.

    Parameters
    ----------
    log_probabilities
        Shape ``(..., K)``.
    generator
        By default torch's own.
    """
    waiting = torch.empty_like(log_probabilities).exponential_(generator=generator)
    return (log_probabilities - waiting.log()).argmax(dim=-1)  # Gumbel noise


def draw_normal(mean: Tensor, covariance: Tensor) -> Tensor:
    """Draw from ``N(mean, covariance)``, shape ``(..., D)``, with torch's generator."""
    return mean + matvec(square_root(covariance), torch.randn_like(mean))


def square_root(covariance: Tensor) -> Tensor:
    """Return a matrix S with ``S S' = covariance``, which may be singular, shape ``(..., D, D)``."""
    covariance = symmetrise(covariance)
    root, failed = torch.linalg.cholesky_ex(covariance)
    if failed.any():
        values, vectors = torch.linalg.eigh(covariance[failed > 0])
        root = root.clone()
        root[failed > 0] = vectors * values.clamp_min(0).sqrt().unsqueeze(-2)
    return root
