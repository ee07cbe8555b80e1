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


def switching_start(
    y: Tensor, inside: Tensor, m: Tensor, s: Tensor, num_regimes: int, num_states: int, *, switching: bool
) -> tuple[dict[str, Tensor], Tensor]:
    """Estimate initial parameters and soft regimes from series.

    Parameters
    ----------
    y
        Series, NaN where missing, shape ``(num_series, T, E)``.
    inside
        Steps that belong to their series, shape ``(num_series, T)``.
    m, s
        Means and standard deviations of the columns, shape ``(E,)``.
    num_regimes, num_states
        K and D.
    switching
        Whether each regime has separate C, d and r, which start equal.

    Returns
    -------
    parameters : dict
        Values by name.
    probabilities : Tensor
        Marginals of the regimes, shape ``(num_series, T, K)``.
    """
    y = (y - m) / s
    x, C, r = project(interpolate(y), inside, num_states)
    dynamics, regimes = fit_switching_autoregression(x, inside, num_regimes)
    rough = Emission(C, torch.zeros_like(r), r.clamp_min(MIN_NOISE))
    dynamics, (C, d, r), regimes = monte_carlo_em(y, inside, dynamics, rough, regimes)
    per_column = {"C": s[:, None] * C, "d": m + s * d, "r": s * r}
    if switching:
        per_column = {name: value.expand(num_regimes, *value.shape) for name, value in per_column.items()}
    return {**dynamics._asdict(), "W": torch.zeros_like(dynamics.b), **per_column}, regimes


def smoothed_regimes(y: Tensor, inside: Tensor, dynamics: Dynamics, emission: Emission) -> Tensor:
    """Return the marginals of regimes at the smoothed path under equally weighted regimes."""
    logits = y.new_zeros(*y.shape[:-1], len(dynamics.pi) + 2 + len(dynamics.m0))
    path = responsibilities_chain(logits, y, inside, dynamics, emission).mean
    return regime_marginals(path, inside, dynamics)[1]
