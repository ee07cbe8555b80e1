"""Posterior simulation of linear Gaussian models: state paths and missing observations."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pplgen.exact.kalman import Filtered, backward_kernels
from pplgen.exact.linear_gaussian import matvec, symmetrise
from pplgen.story.dynamics import LinearGaussian

__all__ = ["draw_categorical", "draw_missing", "draw_normal", "draw_states", "square_root"]


def draw_states(filtered: Filtered, parameters: LinearGaussian) -> Float[Tensor, "... time state"]:
    """Draw a state path from ``p(x_1:T | y_1:T)`` by forward filtering backward sampling, with torch's generator.

    Parameters
    ----------
    filtered
        Result of the filter.
    parameters
        Parameters of the filter.

    Raises
    ------
    torch.linalg.LinAlgError
        If a predicted covariance after the first is not positive definite.

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


def draw_missing(
    y: Float[Tensor, "... observed"],
    x: Float[Tensor, "... state"],
    C: Float[Tensor, "... observed state"],
    d: Float[Tensor, "... observed"],
    R: Float[Tensor, "... observed observed"],
) -> Float[Tensor, "... observed"]:
    """Draw the missing entries of ``y = C x + d + N(0, R)`` given the observed ones and x, with torch's generator.

    A draw of the noise is conditioned on its observed entries (Matheron's rule): with e the noise, o the observed and m
    the missing entries, ``e_m + R_mo R_oo^-1 (y - C x - d - e)_o`` follows the conditional distribution of the missing
    noise.

    Parameters
    ----------
    y
        Observations, NaN if missing.
    x
        States; batch axes of all arguments broadcast.
    C, d, R
        Loadings, mean and covariance of the noise.

    Returns
    -------
    Tensor
        The observations, with observed entries unchanged.
    """
    signal = matvec(C, x) + d
    y = y.expand(torch.broadcast_shapes(y.shape, signal.shape))
    observed = ~y.isnan()
    drawn = signal + matvec(square_root(R), torch.randn_like(y))
    gain = R * observed.unsqueeze(-2)
    unit_noise = torch.diag_embed((~observed).to(R.dtype))
    observed_R = gain * observed.unsqueeze(-1) + unit_noise
    residual = torch.where(observed, y - drawn, 0)
    solved = torch.cholesky_solve(residual.unsqueeze(-1), torch.linalg.cholesky(observed_R)).squeeze(-1)
    return torch.where(observed, y, drawn + matvec(gain, solved))


def draw_categorical(
    log_probabilities: Float[Tensor, "... categories"], generator: torch.Generator | None = None
) -> Int[Tensor, "..."]:
    """Draw one index of the last axis from each vector of probabilities.

    Parameters
    ----------
    log_probabilities
        Log probabilities, up to a constant.
    generator
        Random generator; default: torch's global one.
    """
    exponential = torch.empty_like(log_probabilities).exponential_(generator=generator)
    return (log_probabilities - exponential.log()).argmax(dim=-1)  # Gumbel-max trick


def draw_normal(
    mean: Float[Tensor, "... state"], covariance: Float[Tensor, "... state state"]
) -> Float[Tensor, "... state"]:
    """Draw from ``N(mean, covariance)``, with torch's generator."""
    return mean + matvec(square_root(covariance), torch.randn_like(mean))


def square_root(covariance: Float[Tensor, "... size size"]) -> Float[Tensor, "... size size"]:
    """Return a matrix S with ``S S' = covariance``, which may be singular."""
    covariance = symmetrise(covariance)
    root, failed = torch.linalg.cholesky_ex(covariance)
    if failed.any():
        values, vectors = torch.linalg.eigh(covariance[failed > 0])
        root = root.clone()
        root[failed > 0] = vectors * values.clamp_min(0).sqrt().unsqueeze(-2)
    return root
