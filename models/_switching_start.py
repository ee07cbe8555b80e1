"""Where a switching model starts: a linear projection of the series, and a switching autoregression fitted to it by EM.

The projection is the principal components of the steps, or of stretches of several steps where there are more states
than features. Regimes start as a random division of time; each of EM's rounds finds the probabilities of regimes given
every regime's autoregression, and then the autoregressions and transitions given those.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from pplgen.models._chain import marginals
from pplgen.models._recognition import responsibilities_chain
from pplgen.models._switching import Dynamics, Emission
from torch import Tensor

TRIES, ROUNDS = 6, 40
MOST_STEPS = 20_000
"""Steps of all series together on which EM runs; further series are left to the fit."""
LEAST_NOISE = 0.05
"""Standard deviation of what is seen given the state, at least, in those of the columns."""
RIDGE = 1e-3
"""Of the regressions, in units of the states' variance and of steps' share."""


class Projection(NamedTuple):
    """Series as states of unit variance."""

    x: Tensor
    """Shape ``(num_series, T, D)``."""
    C: Tensor
    """``y = C x + d``, on the scale of y, shape ``(E, D)``."""
    r: Tensor
    """Standard deviation of what the states leave out, shape ``(E,)``."""


def interpolated(y: Tensor) -> Tensor:
    """Fill missing entries on straight lines between their neighbours in time; ends, with the nearest seen entry."""
    T = y.shape[-2]
    steps = torch.arange(T, device=y.device)[:, None].expand(y.shape)
    seen = ~y.isnan()
    before = torch.where(seen, steps, -1).cummax(-2).values
    after = torch.where(seen, steps, T).flip(-2).cummin(-2).values.flip(-2)
    none = (before < 0) & (after >= T)
    before, after = torch.where(before < 0, after, before), torch.where(after >= T, before, after)
    filled = y.nan_to_num()
    left, right = (torch.gather(filled, -2, place.clamp(0, T - 1)) for place in (before, after))
    share = (steps - before).to(y.dtype) / (after - before).clamp_min(1)
    return torch.where(none, 0.0, left + share * (right - left))


def projected(y: Tensor, num_states: int) -> Projection:
    """Project series without missing entries, of mean 0 and variance 1, shape ``(num_series, T, E)``."""
    N, T, E = y.shape
    lags = min(-(-num_states // E), T)
    ahead = torch.nn.functional.pad(y.mT, (0, lags - 1), mode="replicate").mT
    stretches = torch.cat([ahead[:, lag : lag + T] for lag in range(lags)], -1)
    _, values, vectors = torch.linalg.svd(stretches.reshape(N * T, -1), full_matrices=False)
    values, vectors = values[:num_states], vectors[:num_states]
    x = stretches @ vectors.mT
    scale = (values / (N * T) ** 0.5).clamp_min(1e-3)
    x, C = x / scale, vectors[:, :E].mT * scale
    lacking = num_states - x.shape[-1]
    if lacking > 0:
        x, C = torch.nn.functional.pad(x, (0, lacking)), torch.nn.functional.pad(C, (0, lacking))
    return Projection(x, C, (y - x @ C.mT).flatten(0, 1).std(0, correction=0))


def begin(y: Tensor, inside: Tensor, num_regimes: int, num_states: int) -> tuple[dict[str, Tensor], Tensor]:
    """Find where parameters and soft regimes are to start, from series of mean 0 and variance 1.

    Parameters
    ----------
    y
        NaN where missing, shape ``(num_series, T, E)``.
    inside
        Steps that belong to their series, shape ``(num_series, T)``.
    num_regimes, num_states
        K and D.

    Returns
    -------
    parameters : dict
        By name, on the scale of y.
    probabilities : Tensor
        Of the regimes, shape ``(num_series, T, K)``.
    """
    x, C, r = projected(interpolated(y), num_states)
    moves, regimes = switching_autoregression(x, inside, num_regimes)
    q = moves.L.diagonal(dim1=-2, dim2=-1)
    i, j = torch.tril_indices(num_states, num_states, offset=-1)
    parameters = {
        "pi": moves.log_pi.exp(),
        "P": moves.log_P.exp(),
        "m0": moves.m0,
        "s0": torch.ones_like(moves.m0),
        "A": moves.A,
        "b": moves.b,
        "q": q,
        "l": (moves.L / q.unsqueeze(-2))[:, i, j],
        "W": torch.zeros_like(moves.b),
        "C": C,
        "d": torch.zeros_like(r),
        "r": r.clamp_min(LEAST_NOISE),
    }
    return parameters, regimes


def regimes_under(y: Tensor, inside: Tensor, dynamics: Dynamics, emission: Emission) -> Tensor:
    """Probabilities of the regimes at the path that given dynamics, averaged over regimes, make likely."""
    alike = y.new_zeros(*y.shape[:-1], len(dynamics.log_pi) + 2 + len(dynamics.m0))
    path = responsibilities_chain(alike, y, inside, dynamics, emission).mean
    return _regimes(path, inside, dynamics)[1]


def switching_autoregression(x: Tensor, inside: Tensor, num_regimes: int) -> tuple[Dynamics, Tensor]:
    """Fit by EM from several random starts, and keep the best.

    Parameters
    ----------
    x
        States of unit variance, shape ``(num_series, T, D)``.
    inside
        Steps that belong to their series, shape ``(num_series, T)``.
    num_regimes
        K.

    Returns
    -------
    dynamics : Dynamics
        Regimes numbered by how often they are at work.
    probabilities : Tensor
        Of the regimes, shape ``(num_series, T, K)``.
    """
    kept = max(1, MOST_STEPS // x.shape[1])
    best, score = None, -torch.inf
    for _ in range(TRIES):
        regimes, pairs = _division(x[:kept], num_regimes)
        for _ in range(ROUNDS):
            dynamics = _maximised(x[:kept], inside[:kept], regimes, pairs)
            total, regimes, pairs = _regimes(x[:kept], inside[:kept], dynamics)
        if best is None or total.sum() > score:
            best, score = dynamics, total.sum()
    assert best is not None
    total, regimes, _ = _regimes(x, inside, best)
    order = (regimes * inside.unsqueeze(-1)).sum((0, 1)).argsort(descending=True)
    A, b, L = best.A[order], best.b[order], best.L[order]
    return best._replace(log_pi=best.log_pi[order], log_P=best.log_P[order][:, order], A=A, b=b, L=L), regimes[
        ..., order
    ]


def _division(x: Tensor, num_regimes: int) -> tuple[Tensor, Tensor]:
    """Divide time into stretches of random regimes."""
    N, T, _ = x.shape
    length = max(1, T // (5 * num_regimes))
    stretches = torch.randint(num_regimes, (N, -(-T // length)), device=x.device)
    hard = torch.nn.functional.one_hot(stretches.repeat_interleave(length, 1)[:, :T], num_regimes).to(x.dtype)
    regimes = 0.9 * hard + 0.1 / num_regimes
    return regimes, regimes[:, :-1, :, None] * regimes[:, 1:, None, :]


def _regimes(x: Tensor, inside: Tensor, dynamics: Dynamics) -> tuple[Tensor, Tensor, Tensor]:
    """Find the probabilities of regimes, and of neighbours, given the states."""
    steps = torch.where(inside[:, 1:, None], dynamics.log_steps(x), 0.0)
    return marginals(dynamics.log_pi, dynamics.log_P, torch.nn.functional.pad(steps, (0, 0, 1, 0)))


def _maximised(x: Tensor, inside: Tensor, regimes: Tensor, pairs: Tensor) -> Dynamics:
    """Fit every regime's autoregression and the transitions, given the probabilities of regimes."""
    D = x.shape[-1]
    later = inside[:, 1:, None].to(x.dtype)
    weights = (regimes[:, 1:] * later).flatten(0, 1)
    now, before = x[:, 1:].flatten(0, 1), x[:, :-1].flatten(0, 1)
    design = torch.cat([before, torch.ones_like(before[:, :1])], -1)
    count = weights.sum(0)
    eye = torch.eye(D + 1, dtype=x.dtype, device=x.device)
    gram = torch.einsum("nk,ni,nj->kij", weights, design, design) + RIDGE * (1 + count)[:, None, None] * eye
    cross = torch.einsum("nk,ni,nj->kij", weights, design, now)
    coefficients = torch.linalg.solve(gram, cross)
    residual = now.unsqueeze(1) - torch.einsum("ni,kij->nkj", design, coefficients)
    Q = torch.einsum("nk,nki,nkj->kij", weights, residual, residual) + RIDGE * (D + count)[:, None, None] * eye[1:, 1:]
    Q = Q / (1 + count)[:, None, None]
    moves = (pairs * later.unsqueeze(-1)).sum((0, 1)) + 1
    start = regimes[:, 0].sum(0) + 1
    m0 = x.new_zeros(D)
    return Dynamics(
        (start / start.sum()).log(),
        (moves / moves.sum(-1, keepdim=True)).log(),
        m0,
        torch.eye(D, dtype=x.dtype, device=x.device),
        coefficients[:, :D].mT,
        coefficients[:, D],
        torch.linalg.cholesky(Q),
    )
