"""Start of switching linear dynamical systems: projection, a switching autoregression of it, and Monte Carlo EM."""

from __future__ import annotations

import torch
from pplgen.models._guides.recognition import responsibilities_chain
from pplgen.models._starts.projection import interpolate, project
from pplgen.models._starts.switching_em import (
    MIN_NOISE,
    fit_switching_autoregression,
    monte_carlo_em,
    regime_marginals,
)
from torch import Tensor

from pplgen.distributions.switching_observations import Emission
from pplgen.distributions.switching_path import Dynamics


def switching_start(y: Tensor, inside: Tensor, num_regimes: int, num_states: int) -> tuple[dict[str, Tensor], Tensor]:
    """Estimate initial parameters and soft regimes from standardised series.

    Parameters
    ----------
    y
        Series, NaN where missing, shape ``(num_series, T, E)``.
    inside
        Steps that belong to their series, shape ``(num_series, T)``.
    num_regimes, num_states
        K and D.

    Returns
    -------
    parameters : dict
        Values by name, on the scale of y.
    probabilities : Tensor
        Marginals of the regimes, shape ``(num_series, T, K)``.
    """
    x, C, r = project(interpolate(y), inside, num_states)
    dynamics, regimes = fit_switching_autoregression(x, inside, num_regimes)
    rough = Emission(C[None], torch.zeros_like(r)[None], r.clamp_min(MIN_NOISE)[None])
    dynamics, (C, d, r), regimes = monte_carlo_em(y, inside, dynamics, rough, regimes)
    q = dynamics.L.diagonal(dim1=-2, dim2=-1)
    i, j = torch.tril_indices(num_states, num_states, offset=-1)
    parameters = {
        "pi": dynamics.log_pi.exp(),
        "P": dynamics.log_P.exp(),
        "m0": dynamics.m0,
        "s0": torch.ones_like(dynamics.m0),
        "A": dynamics.A,
        "b": dynamics.b,
        "q": q,
        "l": (dynamics.L / q.unsqueeze(-2))[:, i, j],
        "W": torch.zeros_like(dynamics.b),
        "C": C[0],
        "d": d[0],
        "r": r[0],
    }
    return parameters, regimes


def smoothed_regimes(y: Tensor, inside: Tensor, dynamics: Dynamics, emission: Emission) -> Tensor:
    """Return the marginals of regimes at the smoothed path under equally weighted regimes."""
    logits = y.new_zeros(*y.shape[:-1], len(dynamics.log_pi) + 2 + len(dynamics.m0))
    path = responsibilities_chain(logits, y, inside, dynamics, emission).mean
    return regime_marginals(path, inside, dynamics)[1]
