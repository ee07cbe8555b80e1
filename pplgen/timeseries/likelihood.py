"""Log densities of series, by the estimators that a state space story offers."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pplgen.errors import InputError
from pplgen.exact.particles import rao_blackwellised_filter
from pplgen.posterior.draws import draw_shared
from pplgen.posterior.likelihood import EXACT, IMPORTANCE, LogLikelihood, density_estimator, row_log_likelihood
from pplgen.story.dynamics import SwitchingLinearGaussian
from pplgen.story.pair import Pair
from pplgen.story.state_space import StateSpaceStory, series_lengths
from pplgen.timeseries.parameters import at, describe, first_model, transitions
from pplgen.timeseries.paths import smoothed_states
from pplgen.timeseries.smoothing import filter_densities

__all__ = ["log_likelihood"]

ESTIMATORS = {
    "gaussian-sum": "Gaussian sum smoother (importance-weighted)",
    "importance": IMPORTANCE,
    "kim": "Kim's filter",
    "particle": "particle filter",
}
"""Names of estimators of switching series as arguments, and in words."""
PATHS = 2
"""Paths of regimes and states at each draw of the parameters; the estimate is unbiased whatever their number."""
PARTICLES, RUNS = 200, 2
"""Particles of each run, and runs at each draw of the parameters; the estimate is unbiased whatever their number."""


def log_likelihood(pair: Pair, data: tuple[Any, ...], draws: int, estimator: str | None = None) -> LogLikelihood:
    """Posterior predictive log density of each row or series of ``data`` in nats, ``log mean_s p(x_i | theta_s)``.

    Call it inside ``pair.isolated``.

    Parameters
    ----------
    pair, data
        A pair, and arguments of its model.
    draws
        Draws of the guide.
    estimator
        ``gaussian-sum``, ``importance``, ``kim`` or ``particle``, for a switching linear Gaussian story, by default the
        first. Other pairs have one of their own.

    Raises
    ------
    InputError
        Where the pair has no such estimator.
    """
    latents = draw_shared(pair, draws)
    offered = ["exact" if density_estimator(pair) == EXACT else "importance"]
    if isinstance(pair.story, StateSpaceStory):
        model = first_model(pair, data[0], latents)
        if isinstance(model, SwitchingLinearGaussian):
            offered = [*ESTIMATORS]
    chosen = estimator or offered[0]
    if chosen not in offered:
        name = type(pair.story).__name__ if pair.story else "this pair"
        raise InputError(f"estimator={estimator!r}: {name} has {' or '.join(map(repr, offered))}")
    if chosen == "kim":
        densities = filter_densities(pair, data[0], latents, draws)[0].sum(dim=-1)
    elif chosen == "gaussian-sum":
        densities = _by_sums(pair, data[0], latents, draws)
    elif chosen == "particle":
        densities = _by_particles(pair, data[0], latents, draws)
    else:
        return row_log_likelihood(pair, data, draws, latents)
    return LogLikelihood.of_draws(densities, ESTIMATORS[chosen])


def _by_sums(pair: Pair, y: Tensor, latents: Any, num_draws: int) -> Tensor:
    """Estimate the log density of each series at each draw, shape ``(num_draws, num_series)``."""
    if not latents:  # every path is a draw
        return smoothed_states(pair, y, latents, 1, num_draws)[1].squeeze(0)
    return smoothed_states(pair, y, latents, num_draws, PATHS)[1].logsumexp(dim=1) - math.log(PATHS)


def _by_particles(pair: Pair, y: Tensor, latents: Any, num_draws: int) -> Tensor:
    """Estimate the log density of each series at each draw, shape ``(num_draws, num_series)``."""
    rows = []
    for s in range(num_draws):
        own = at(latents, slice(s, s + 1))
        model = describe(pair, y, own, 1)
        assert isinstance(model, SwitchingLinearGaussian), "a story is of one kind at all draws"
        if transitions(pair, own, model) is not None:
            raise InputError("estimator='particle': the regimes depend on the state; expected another one")
        alone = SwitchingLinearGaussian(*(part[0, 0] for part in model))
        seeds = torch.randint(2**31, (len(y),)).tolist()
        runs = [
            rao_blackwellised_filter(
                series[:length].double(), alone, num_particles=PARTICLES, num_runs=RUNS, seed=seed
            ).estimate
            for series, length, seed in zip(y, series_lengths(y).clamp_min(1).tolist(), seeds, strict=True)
        ]
        rows.append(torch.stack(runs))
    return torch.stack(rows)
