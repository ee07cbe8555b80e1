"""Check of the posterior's sensitivity to the prior."""

from __future__ import annotations

import numpy as np
import torch
from arviz_stats.base import array_stats

from pplgen.checks.check import Check, Verdict, not_applicable
from pplgen.checks.inputs import CheckInputs
from pplgen.posterior.importance_sampling import log_prior

__all__ = ["prior_sensitivity"]

SENSITIVE = 0.05
"""Sensitivity above which the prior, or the likelihood, is considered informative."""
ALPHAS = (0.99, 1.01)
"""Powers to which a component of the log density is raised."""


def prior_sensitivity(inputs: CheckInputs) -> Check:
    """Largest power-scaling sensitivity of a scalar's posterior to the prior.

    Draws of the guide approximate the posterior.
    """
    name, source = "power-scaling sensitivity to the prior", "Kallioinen et al. 2023"
    if inputs.why_no_shared:
        return not_applicable(name, source, inputs.why_no_shared)
    scalars = inputs.scalars
    if not scalars:
        return not_applicable(name, source, "all shared scalars are constant")
    prior = log_prior(inputs.pair, inputs.weighted.sites, len(inputs.weighted.log_ratio)).double()
    if not prior.isfinite().all():
        return not_applicable(name, source, "the prior density is zero or undefined at some draws")
    values = torch.stack(list(scalars.values()))
    by_prior = _sensitivities(values, prior)
    worst = int(np.argmax(by_prior))
    value = float(by_prior[worst])
    if value <= SENSITIVE:
        return Check(name, value, SENSITIVE, source, Verdict.PASS)
    likelihood = inputs.weighted.log_likelihood.double().sum(1) * inputs.scored_rows.step
    by_likelihood = float(_sensitivities(values[worst : worst + 1], likelihood)[0])
    which = list(scalars)[worst]
    finding = f"{which} and {int((by_prior > SENSITIVE).sum()) - 1} more of {len(by_prior)}"
    if by_likelihood > SENSITIVE:
        remedy = f"{finding}: both prior and data are informative and may conflict: compare prior and posterior"
    else:
        remedy = f"{finding}: the data are weakly informative, the prior dominates: justify the prior, or fix the value"
    return Check(name, value, SENSITIVE, source, Verdict.WARN, remedy)


def _sensitivities(values: torch.Tensor, component: torch.Tensor) -> np.ndarray:
    """Power-scaling sensitivity of scalars, ``(n, num_draws)``, to a component of the log density."""
    if component.max() == component.min():  # a flat prior, of any power
        return np.zeros(len(values))
    arrays, log_density = values.cpu().numpy(), component.cpu().numpy()
    lower, upper = (np.exp(_weights(log_density, alpha)) for alpha in ALPHAS)
    sensitivities = [
        array_stats.power_scale_sense(array[None], lower[None], upper[None], ALPHAS[0], ALPHAS[1]) for array in arrays
    ]
    return np.array(sensitivities, dtype=float).reshape(-1)


def _weights(log_density: np.ndarray, alpha: float) -> np.ndarray:
    """Pareto-smoothed log weights of raising a component to the power ``alpha``."""
    weights: np.ndarray = array_stats.power_scale_lw(log_density[None], alpha=alpha, axis=[0, 1])[0]
    return weights - weights.max()
