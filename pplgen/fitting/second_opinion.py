"""Two fits of the same rows side by side, such as a guide's beside a sampler's: how far their posteriors are apart."""

from __future__ import annotations

import math

import arviz_stats
import numpy as np
import pandas as pd
import torch
import xarray as xr

from pplgen.checks.table import Check, Verdict
from pplgen.errors import InputError
from pplgen.fitting.fit import fit as fit_again
from pplgen.fitting.nuts_result import SampledFit
from pplgen.fitting.result import Fit
from pplgen.posterior.relabelling import component_axes, relabel_dataset

__all__ = ["against", "by_nuts", "side_by_side"]

SHIFTED = 0.25
"""Standard deviations by which a mean may differ; a convention of this package, as for importance resampling."""
RATIO = 1.25
"""Factor by which a standard deviation may differ either way; a convention of this package."""
ERRORS = 4.0
"""Monte Carlo standard errors within which a difference says nothing."""
SOURCE = "second opinion"


def side_by_side(fit: Fit, reference: Fit, *, draws: int = 4000) -> pd.DataFrame:
    """Compare means and standard deviations of every scalar that rows share.

    Components of a mixture, or regimes, are matched first: the reference's draws to those of ``fit``.

    Parameters
    ----------
    fit
        The fit in question.
    reference
        The one that it is held against, such as one by ``method="nuts"``, of the same model and data.
    draws
        Draws of a guide; of a sampler all are taken.

    Returns
    -------
    pandas.DataFrame
        One row for each scalar: ``mean`` and ``sd`` of the fit, ``reference_mean`` and ``reference_sd``, ``shift`` =
        difference of the means in standard deviations of the reference, ``mcse_shift`` = the same in Monte Carlo
        standard errors of that difference, and ``sd_ratio`` with its Monte Carlo standard error ``mcse_ratio``.

    Raises
    ------
    InputError
        Where the two have no quantity in common, or are of different data.
    """
    prints = [None if each.table is None else each.table.fingerprint for each in (fit, reference)]
    if None not in prints and prints[0] != prints[1]:
        raise InputError("the two fits are of different data, so that their posteriors do not compare")
    own, theirs = _posteriors(fit, reference, draws)
    names = [str(name) for name in own.data_vars if name in theirs]
    if not names:
        raise InputError("the two fits have no quantity in common")
    with np.errstate(invalid="ignore", divide="ignore"):  # of what is constant
        tables = [arviz_stats.summary(each[names], kind="all", round_to="none").astype(float) for each in (own, theirs)]
    here, there = tables
    error = np.hypot(here["mcse_mean"], there["mcse_mean"])
    difference = here["mean"] - there["mean"]
    ratio = here["sd"] / there["sd"]
    relative = np.hypot(here["mcse_sd"] / here["sd"], there["mcse_sd"] / there["sd"])
    table = pd.DataFrame(
        {
            "mean": here["mean"],
            "sd": here["sd"],
            "reference_mean": there["mean"],
            "reference_sd": there["sd"],
            "shift": difference / there["sd"],
            "mcse_shift": difference / error,
            "sd_ratio": ratio,
            "mcse_ratio": ratio * relative,
        }
    )
    return table[there["sd"] > 0]


def against(fit: Fit, reference: Fit, *, draws: int = 4000) -> tuple[Check, ...]:
    """Check a fit's means and standard deviations against those of another; arguments as of ``side_by_side``.

    The chains of a sampler are judged first, for a reference that has not mixed tells nothing. A difference fails where
    it is larger than the threshold by more than its Monte Carlo error, and is doubtful where it is larger only within
    that error.
    """
    table = side_by_side(fit, reference, draws=draws)
    checks = list(reference.mixing_checks()) if isinstance(reference, SampledFit) else []
    for name, row in table.iterrows():
        shift, ratio = float(row["shift"]), float(row["sd_ratio"])
        slack = ERRORS * abs(shift / row["mcse_shift"]) if shift else 0.0
        verdict = _verdict(abs(shift), SHIFTED, slack)
        away = f"{shift:+.2f} sd, {row['mcse_shift']:+.1f} Monte Carlo standard errors, from the reference"
        remedy = "" if verdict is Verdict.PASS else f"its mean is {away}: look at restarts, and for a missed mode"
        checks.append(Check(f"mean of {name} (sd)", shift, SHIFTED, SOURCE, verdict, remedy))
        slack = ERRORS * float(row["mcse_ratio"]) / ratio if ratio > 0 else 0.0
        verdict = _verdict(abs(math.log(ratio)) if ratio > 0 else math.inf, math.log(RATIO), slack)
        which = "narrow" if ratio < 1 else "wide"
        told = f"its posterior is too {which} by a factor of {ratio:.2f}: take a guide that has its shape"
        remedy = "" if verdict is Verdict.PASS else told
        checks.append(Check(f"sd of {name} (ratio)", ratio, RATIO, SOURCE, verdict, remedy))
    return tuple(checks)


def by_nuts(fit: Fit) -> Fit:
    """Sample from the posterior of a fit's story, given the rows of the fit, with its seed and four chains of NUTS.

    Raises
    ------
    InputError
        Where the rows are not at hand, or NUTS cannot sample the story.
    """
    if fit.story is None or fit.table is None:
        raise InputError(f"{fit.name}: a second opinion needs a Story and its rows; give the data with the run")
    return fit_again(type(fit.story)(**fit.story.config), fit.table, method="nuts", seed=fit.seed)


def _verdict(value: float, threshold: float, slack: float) -> Verdict:
    """Say whether a difference is beyond a threshold, or may be."""
    if value <= threshold:
        return Verdict.PASS
    return Verdict.FAIL if value > threshold + slack else Verdict.WARN


def _posteriors(fit: Fit, reference: Fit, draws: int) -> tuple[xr.Dataset, xr.Dataset]:
    """Return the draws of what rows share, the reference's components ordered as the fit's."""
    trees = []
    for each in (fit, reference):
        number = each.draws.total if isinstance(each, SampledFit) else draws
        tree = each.to_datatree(number, groups=["posterior"])
        trees.append((each, tree))
    own, theirs = (tree["posterior"].to_dataset()[each.readable_sites(tree)] for each, tree in trees)
    for name in own.data_vars:
        shapes = [each[name].shape[2:] for each in (own, theirs) if name in each]
        if shapes[0] != shapes[-1]:
            given = f"{name!r} has shape {shapes[0]} in one fit and {shapes[-1]} in the other"
            raise InputError(f"{given}; expected the same model")
    axes = component_axes(fit.pair)
    return own, relabel_dataset(
        theirs, {n: torch.as_tensor(own[n].values).flatten(0, 1) for n in axes if n in own}, axes
    )
