"""The table of checks of a fit, run one after the other on the same material, and printed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import pyro
import torch

from pplgen.checks import codes, components, predictive, sensitivity, training, values, weights
from pplgen.checks.check import Check, Checks, Verdict, beside
from pplgen.checks.material import Material
from pplgen.errors import first_line
from pplgen.pair import Pair
from pplgen.terminal import print_table
from pplgen.training import Training

__all__ = ["CHECKS", "Check", "Checks", "Verdict", "print_checks", "run_checks"]

CHECKS: tuple[Callable[[Material], Check], ...] = (
    values.non_finite,
    values.counted_rows,
    training.faults,
    training.iterate_rhat,
    training.elbo_change,
    training.restarts_agree,
    training.other_modes,
    weights.khat,
    weights.khat_of_shared,
    weights.khat_of_rows,
    weights.bound_gap,
    weights.resampled_means,
    predictive.prior_predictive,
    predictive.posterior_predictive,
    predictive.loo,
    predictive.loo_pit,
    sensitivity.prior_sensitivity,
    components.duplicate_components,
    components.label_switching,
    codes.active_units,
    codes.row_gap,
    codes.amortisation_gap,
)
"""Every check, in the order of the table: a function of the same material."""


def run_checks(
    pair: Pair,
    rows: tuple[Any, ...] | None = None,
    runs: tuple[Training, ...] = (),
    *,
    has_rows: bool = True,
    columns: Sequence[str] = (),
) -> Checks:
    """Run all checks; call it inside ``pair.isolated``. Arguments are those of ``Material``."""
    with torch.no_grad(), pyro.validation_enabled(False):
        material = Material(pair, rows, runs, has_rows=has_rows, columns=columns)
        return Checks(_run(check, material) for check in CHECKS)


def print_checks(name: str, checks: tuple[Check, ...]) -> None:
    """Print the checks that apply as a table, and below it what to do about those that did not pass."""
    applied = [check for check in checks if check.applies]
    table = pd.DataFrame(
        {
            "verdict": [str(check.verdict) for check in applied],
            "value": [check.value for check in applied],
            "threshold": [check.threshold for check in applied],
            "source": [check.source for check in applied],
        },
        index=[check.name for check in applied],
        dtype=object,
    )
    lines = [f"{check.name}: {check.remedy}" for check in applied if check.remedy]
    beside = [f"{check.name}: not applicable, {check.remedy}" for check in checks if not check.applies]
    print_table(f"Checks of {name}", table, *lines, *beside, label="check")


def _run(check: Callable[[Material], Check], material: Material) -> Check:
    """Run one check; what a pair's own code raises on new data or draws leaves the others standing."""
    try:
        return check(material)
    except (RuntimeError, ValueError, NotImplementedError, IndexError, KeyError) as error:
        name = check.__name__.replace("_", " ")
        return beside(name, "", f"it stopped with {type(error).__name__}: {first_line(error)}")
