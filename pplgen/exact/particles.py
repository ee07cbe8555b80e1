"""A Rao-Blackwellised particle filter for switching linear Gaussian models: log marginals of long series.

Each particle is a regime path with its Kalman filter. At every step each particle branches to all K regimes, and
systematic resampling chooses the next particles among the branches; the likelihood estimate is unbiased (Doucet, de
Freitas, Murphy and Russell 2000, Rao-Blackwellised particle filtering for dynamic Bayesian networks; Fearnhead and
Clifford 2003, On-line inference for hidden Markov models via particle filters).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pplgen.errors import InputError
from pplgen.exact.switching import first_step, next_step, per_regime
from pplgen.story.dynamics import SwitchingLinearGaussian

__all__ = ["LogMarginal", "rao_blackwellised_filter"]


class LogMarginal(NamedTuple):
    """A Monte Carlo estimate of ``log p(y_1:T)`` in nats."""

    estimate: Float[Tensor, ""]
    """Logarithm of the mean likelihood over runs, a scalar."""
    standard_error: Float[Tensor, ""]
    """Standard error of ``estimate``, from the variance between runs by the delta method, a scalar."""
    runs: Float[Tensor, "runs"]
    """Estimate of each independent run."""


def rao_blackwellised_filter(
    y: Float[Tensor, "time observed"],
    parameters: SwitchingLinearGaussian,
    *,
    num_particles: int = 1000,
    num_runs: int = 10,
    seed: int = 0,
) -> LogMarginal:
    """Estimate the log marginal of one series by several independent runs.

    Parameters
    ----------
    y
        Observations, NaN if missing.
    parameters
        Parameters of y's dtype.
    num_particles
        Number of particles per run.
    num_runs
        Number of runs, at least two, for the standard error.
    seed
        Seed of the resampling generator.

    Raises
    ------
    InputError
        If shapes, dtypes or numbers are invalid.
    torch.linalg.LinAlgError
        If an observation's predictive covariance is not positive definite.
    """
    parameters = per_regime(y, parameters)
    if y.ndim != 2:
        raise InputError(f"y has shape {tuple(y.shape)}; expected one series (T, E)")
    if num_particles < 1 or num_runs < 2:
        raise InputError(f"{num_particles} particles in {num_runs} runs; expected at least 1 in at least 2")
    generator = torch.Generator(device=y.device).manual_seed(seed)
    log_P = parameters.P.log()
    *candidates, log_density = (part.expand(num_runs, *part.shape) for part in first_step(y[0], parameters))
    log_weights = parameters.pi.log() + log_density
    log_likelihood = log_weights.logsumexp(dim=-1)
    for observation in y[1:]:
        chosen = _resample(log_weights.softmax(dim=-1), num_particles, generator)
        regime = chosen * len(log_P) // log_weights.shape[1]
        mean, covariance = (_select(part, chosen) for part in candidates)
        *branches, log_density = next_step(observation, mean, covariance, parameters)
        log_weights = log_P[regime] + log_density - math.log(num_particles)
        # order by regime: alternating regimes would resonate with the evenly spaced points of systematic resampling
        *candidates, log_weights = (part.transpose(1, 2).flatten(1, 2) for part in (*branches, log_weights))
        log_likelihood = log_likelihood + log_weights.logsumexp(dim=-1)
    relative = (log_likelihood - log_likelihood.max()).exp()
    return LogMarginal(
        log_likelihood.logsumexp(dim=0) - math.log(num_runs),
        relative.std() / (relative.mean() * math.sqrt(num_runs)),
        log_likelihood,
    )


def _resample(
    weights: Float[Tensor, "runs candidates"], num_draws: int, generator: torch.Generator
) -> Int[Tensor, "runs {num_draws}"]:
    """Systematic resampling: draw indices from one uniform number per run."""
    offset = torch.rand(len(weights), 1, generator=generator, dtype=weights.dtype, device=weights.device)
    points = (torch.arange(num_draws, dtype=weights.dtype, device=weights.device) + offset) / num_draws
    cumulative = weights.cumsum(dim=-1)
    return torch.searchsorted(cumulative, points * cumulative[:, -1:], right=True).clamp_max(weights.shape[1] - 1)


def _select(
    part: Float[Tensor, "runs candidates ..."], chosen: Int[Tensor, "runs draws"]
) -> Float[Tensor, "runs draws ..."]:
    """Return the resampled candidates of each run."""
    return part[torch.arange(len(part), device=part.device).unsqueeze(-1), chosen]
