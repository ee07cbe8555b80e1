"""Log densities of series, by the estimators of a state space story."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pplgen.errors import InputError
from pplgen.exact.particles import rao_blackwellised_filter
from pplgen.posterior.chain_draws import draw_by_chain
from pplgen.posterior.row_likelihood import EXACT, IMPORTANCE, LogLikelihood, density_estimator, row_log_likelihood
from pplgen.story.dynamics import SwitchingLinearGaussian
from pplgen.story.pair import Pair
from pplgen.story.state_space import StateSpaceStory, series_lengths
from pplgen.timeseries.parameter_draws import first_model, model_at_draws, select_draws, transitions
from pplgen.timeseries.smoothing import filter_densities
from pplgen.timeseries.state_paths import draw_state_paths

__all__ = ["log_likelihood"]

ESTIMATORS = {
    "gaussian-sum": "Gaussian sum smoother (importance-weighted)",
    "importance": IMPORTANCE,
    "kim": "Kim's filter",
    "particle": "particle filter",
}
"""Estimators for switching series: argument, and name reported."""
PATHS = 2
"""Paths of regimes and states per draw of the parameters; the estimate is unbiased for any number."""
PARTICLES, RUNS = 200, 2
"""Particles per run, and runs per draw of the parameters; the estimate is unbiased for any number."""


def log_likelihood(pair: Pair, data: tuple[Any, ...], draws: int, estimator: str | None = None) -> LogLikelihood:
    """Posterior predictive log density of each row or series of ``data`` in nats, ``log mean_s p(x_i | theta_s)``.

    Call it inside ``pair.isolated``.

    Parameters
    ----------
    pair, data
        A pair, and arguments of its model.
    draws
        Number of draws from the guide, at most; a sampler's are thinned to it.
    estimator
        ``gaussian-sum`` (default), ``importance``, ``kim`` or ``particle`` for a switching linear Gaussian story; other
        pairs have a single estimator.

    Raises
    ------
    InputError
        If the pair has no such estimator.
    """
    latents, number, num_chains = drawn = draw_by_chain(pair, draws)
    available = ["exact" if density_estimator(pair) == EXACT else "importance"]
    if isinstance(pair.story, StateSpaceStory):
        model = first_model(pair, data[0], latents)
        if isinstance(model, SwitchingLinearGaussian):
            available = [*ESTIMATORS]
    chosen = estimator or available[0]
    if chosen not in available:
        name = type(pair.story).__name__ if pair.story else "this pair"
        raise InputError(f"estimator={estimator!r}: expected {' or '.join(map(repr, available))} for {name}")
    if chosen == "kim":
        densities = filter_densities(pair, data[0], latents, number)[0].sum(dim=-1)
    elif chosen == "gaussian-sum":
        densities = _by_gaussian_sums(pair, data[0], latents, number)
    elif chosen == "particle":
        densities = _by_particles(pair, data[0], latents, number)
    else:
        return row_log_likelihood(pair, data, drawn)
    return LogLikelihood.from_draws(densities, ESTIMATORS[chosen], num_chains)


def _by_gaussian_sums(pair: Pair, y: Tensor, latents: Any, num_draws: int) -> Tensor:
    """Estimate the log density of each series at each draw, shape ``(num_draws, num_series)``."""
    if not latents:  # parameters are fixed: each path is a draw
        return draw_state_paths(pair, y, latents, 1, num_draws)[1].squeeze(0)
    return draw_state_paths(pair, y, latents, num_draws, PATHS)[1].logsumexp(dim=1) - math.log(PATHS)


def _by_particles(pair: Pair, y: Tensor, latents: Any, num_draws: int) -> Tensor:
    """Estimate the log density of each series at each draw, shape ``(num_draws, num_series)``."""
    rows = []
    for s in range(num_draws):
        subset = select_draws(latents, slice(s, s + 1))
        model = model_at_draws(pair, y, subset, 1)
        assert isinstance(model, SwitchingLinearGaussian), "a story is of one kind at all draws"
        if transitions(pair, subset, model) is not None:
            raise InputError("estimator='particle': not available where regimes depend on the state")
        single = SwitchingLinearGaussian(*(part[0, 0] for part in model))
        seeds = torch.randint(2**31, (len(y),)).tolist()
        runs = [
            rao_blackwellised_filter(
                series[:length].double(), single, num_particles=PARTICLES, num_runs=RUNS, seed=seed
            ).estimate
            for series, length, seed in zip(y, series_lengths(y).clamp_min(1).tolist(), seeds, strict=True)
        ]
        rows.append(torch.stack(runs))
    return torch.stack(rows)
