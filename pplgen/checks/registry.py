"""The table of checks: all of them, run in order on the same inputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import torch

from pplgen.checks import (
    components,
    latents,
    missed_modes,
    optimisation,
    predictive,
    repeated_rows,
    residuals,
    sensitivity,
    series,
    width,
)
from pplgen.checks import (
    importance_weights as weights,
)
from pplgen.checks import (
    sanity as values,
)
from pplgen.checks.check import Check, Checks, Verdict
from pplgen.checks.inputs import CheckInputs
from pplgen.errors import first_line
from pplgen.inference.training_result import Training
from pplgen.story.pair import Pair

__all__ = ["CHECKS", "Check", "Checks", "Verdict", "run_checks", "run_on"]

CHECKS: tuple[Callable[[CheckInputs], Check], ...] = (
    values.non_finite,
    values.counted_rows,
    values.latent_scales,
    repeated_rows.repeated_rows,
    optimisation.faults,
    optimisation.last_half,
    optimisation.elbo_change,
    optimisation.gradient_norm,
    optimisation.monte_carlo_error,
    optimisation.restarts_agree,
    missed_modes.missed_modes,
    weights.khat,
    weights.khat_of_shared,
    weights.khat_of_rows,
    weights.elbo_gap,
    weights.resampled_means,
    width.weighted_sds,
    width.linear_response_sds,
    predictive.prior_predictive,
    predictive.posterior_predictive,
    predictive.loo,
    predictive.loo_pit,
    residuals.residuals_against_covariates,
    residuals.residuals_in_order,
    series.one_step_residuals,
    sensitivity.prior_sensitivity,
    components.duplicate_components,
    components.label_switching,
    latents.active_units,
    latents.row_gap,
    latents.amortisation_gap,
)
"""All checks, in the order of the table; each is a function of ``CheckInputs``."""


def run_checks(
    pair: Pair,
    rows: tuple[Any, ...] | None = None,
    runs: tuple[Training, ...] = (),
    **options: Any,
) -> Checks:
    """Run all checks; call inside ``pair.isolated``. Arguments are those of ``CheckInputs``."""
    return run_on(CheckInputs(pair, rows, runs, **options))


def run_on(inputs: CheckInputs) -> Checks:
    """Run all checks on inputs that exist, whose draws others may share; call inside ``pair.isolated``."""
    with torch.no_grad(), pyro.validation_enabled(False):
        return Checks(_run(check, inputs) for check in CHECKS)


def _run(check: Callable[[CheckInputs], Check], inputs: CheckInputs) -> Check:
    """Run one check; one that raises an error has failed, and does not stop the others."""
    try:
        return check(inputs)
    except Exception as error:
        name = check.__name__.replace("_", " ")
        remedy = f"the check raised {type(error).__name__}: {first_line(error)}; nothing is known of what it checks"
        return Check(name, math.nan, math.nan, "this package", Verdict.FAIL, remedy)
