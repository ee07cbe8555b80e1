"""Where a switching model starts: a projection of the series, a switching autoregression of it, and EM from there."""

from __future__ import annotations

import torch
from pplgen.models._distributions.switching import Dynamics
from pplgen.models._distributions.switching_emission import Emission
from pplgen.models._guides.recognition import responsibilities_chain
from pplgen.models._starts.projection import interpolated, projected
from pplgen.models._starts.switching_em import LEAST_NOISE, refined, regimes_of, switching_autoregression
from torch import Tensor


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
    x, C, r = projected(interpolated(y), inside, num_states)
    moves, regimes = switching_autoregression(x, inside, num_regimes)
    rough = Emission(C[None], torch.zeros_like(r)[None], r.clamp_min(LEAST_NOISE)[None])
    moves, (C, d, r), regimes = refined(y, inside, moves, rough, regimes)
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
        "C": C[0],
        "d": d[0],
        "r": r[0],
    }
    return parameters, regimes


def regimes_under(y: Tensor, inside: Tensor, dynamics: Dynamics, emission: Emission) -> Tensor:
    """Probabilities of the regimes at the path that given dynamics, averaged over regimes, make likely."""
    alike = y.new_zeros(*y.shape[:-1], len(dynamics.log_pi) + 2 + len(dynamics.m0))
    path = responsibilities_chain(alike, y, inside, dynamics, emission).mean
    return regimes_of(path, inside, dynamics)[1]
