"""Compare the posteriors of two fits to the same rows, such as SVI and NUTS."""

from __future__ import annotations

import math

import arviz_stats
import numpy as np
import pandas as pd
import torch
import xarray as xr

from pplgen.checks.registry import Check, Verdict
from pplgen.errors import InputError
from pplgen.fitting.fit import fit as run_fit
from pplgen.fitting.nuts_result import SampledFit
from pplgen.fitting.result import Fit
from pplgen.posterior.relabelling import component_axes, relabel_dataset

__all__ = ["against", "by_nuts", "side_by_side"]

MAX_SHIFT = 0.25
"""Maximum difference of means in standard deviations; a convention of this package, as for importance resampling."""
MAX_RATIO = 1.25
"""Maximum ratio of standard deviations, either way; a convention of this package."""
NUM_ERRORS = 4.0
"""Monte Carlo standard errors within which a difference is not significant."""
SOURCE = "second opinion"


def side_by_side(fit: Fit, reference: Fit, *, draws: int = 4000) -> pd.DataFrame:
    """Compare posterior means and standard deviations of every scalar shared by rows.

    Mixture components, or regimes, of the reference are first relabelled to match those of ``fit``.

    Parameters
    ----------
    fit
        Fit to validate.
    reference
        Fit of the same model and data to validate against, such as one by ``method="nuts"``.
    draws
        Draws from a guide; all draws of a sampler are used.

    Returns
    -------
    pandas.DataFrame
        One row per scalar: ``mean`` and ``sd`` of the fit, ``reference_mean`` and ``reference_sd``, ``shift`` =
        difference of the means in standard deviations of the reference, ``mcse_shift`` = the same in Monte Carlo
        standard errors of that difference, and ``sd_ratio`` with its Monte Carlo standard error ``mcse_ratio``.

    Raises
    ------
    InputError
        If the two have no quantity in common, or are fits to different data.
    """
    prints = [None if each.table is None else each.table.fingerprint for each in (fit, reference)]
    if None not in prints and prints[0] != prints[1]:
        raise InputError("the two fits are to different data; expected the same")
    posterior, other = _posteriors(fit, reference, draws)
    names = [str(name) for name in posterior.data_vars if name in other]
    if not names:
        raise InputError("the two fits have no quantity in common")
    with np.errstate(invalid="ignore", divide="ignore"):  # constant scalars
        own, ref = (
            arviz_stats.summary(each[names], kind="all", round_to="none").astype(float) for each in (posterior, other)
        )
    error = np.hypot(own["mcse_mean"], ref["mcse_mean"])
    difference = own["mean"] - ref["mean"]
    ratio = own["sd"] / ref["sd"]
    relative = np.hypot(own["mcse_sd"] / own["sd"], ref["mcse_sd"] / ref["sd"])
    table = pd.DataFrame(
        {
            "mean": own["mean"],
            "sd": own["sd"],
            "reference_mean": ref["mean"],
            "reference_sd": ref["sd"],
            "shift": difference / ref["sd"],
            "mcse_shift": difference / error,
            "sd_ratio": ratio,
            "mcse_ratio": ratio * relative,
        }
    )
    return table[ref["sd"] > 0]


def against(fit: Fit, reference: Fit, *, draws: int = 4000) -> tuple[Check, ...]:
    """Check a fit's posterior means and standard deviations against those of another; arguments as in ``side_by_side``.

    For a reference by NUTS the chains are checked first: if they have not mixed, the comparison is uninformative. A
    difference fails if it exceeds the threshold by more than its Monte Carlo error, and warns if by less.
    """
    table = side_by_side(fit, reference, draws=draws)
    checks = list(reference.mixing_checks()) if isinstance(reference, SampledFit) else []
    for name, row in table.iterrows():
        shift, ratio = float(row["shift"]), float(row["sd_ratio"])
        slack = NUM_ERRORS * abs(shift / row["mcse_shift"]) if shift else 0.0
        verdict = _verdict(abs(shift), MAX_SHIFT, slack)
        away = f"{shift:+.2f} sd, {row['mcse_shift']:+.1f} Monte Carlo standard errors, from the reference"
        remedy = "" if verdict is Verdict.PASS else f"its mean is {away}: use restarts, and look for a missed mode"
        checks.append(Check(f"mean of {name} (sd)", shift, MAX_SHIFT, SOURCE, verdict, remedy))
        slack = NUM_ERRORS * float(row["mcse_ratio"]) / ratio if ratio > 0 else 0.0
        verdict = _verdict(abs(math.log(ratio)) if ratio > 0 else math.inf, math.log(MAX_RATIO), slack)
        which = "narrow" if ratio < 1 else "wide"
        advice = f"its posterior sd is too {which} by a factor of {ratio:.2f}: choose a more flexible guide"
        remedy = "" if verdict is Verdict.PASS else advice
        checks.append(Check(f"sd of {name} (ratio)", ratio, MAX_RATIO, SOURCE, verdict, remedy))
    return tuple(checks)


def by_nuts(fit: Fit) -> Fit:
    """Fit the same story to the same rows by NUTS, with four chains and the same seed.

    Raises
    ------
    InputError
        If the rows are not in memory, or NUTS cannot sample the story.
    """
    if fit.story is None or fit.table is None:
        raise InputError(f"{fit.name}: validation by NUTS needs a Story and its rows; give the data with the run")
    return run_fit(type(fit.story)(**fit.story.config), fit.table, method="nuts", seed=fit.seed)


def _verdict(value: float, threshold: float, slack: float) -> Verdict:
    """Pass up to the threshold, fail beyond threshold plus slack, warn between."""
    if value <= threshold:
        return Verdict.PASS
    return Verdict.FAIL if value > threshold + slack else Verdict.WARN


def _posteriors(fit: Fit, reference: Fit, draws: int) -> tuple[xr.Dataset, xr.Dataset]:
    """Return the posterior draws of shared sites, the reference relabelled to match the fit's components."""
    trees = []
    for each in (fit, reference):
        number = each.draws.total if isinstance(each, SampledFit) else draws
        tree = each.to_datatree(number, groups=["posterior"])
        trees.append((each, tree))
    own, other = (tree["posterior"].to_dataset()[each.readable_sites(tree)] for each, tree in trees)
    for name in own.data_vars:
        shapes = [each[name].shape[2:] for each in (own, other) if name in each]
        if shapes[0] != shapes[-1]:
            difference = f"{name!r} has shape {shapes[0]} in one fit and {shapes[-1]} in the other"
            raise InputError(f"{difference}; expected the same model")
    axes = component_axes(fit.pair)
    return own, relabel_dataset(
        other, {n: torch.as_tensor(own[n].values).flatten(0, 1) for n in axes if n in own}, axes
    )
