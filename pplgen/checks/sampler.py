"""Checks of a sampler: whether its chains have mixed, and whether they could go everywhere."""

from __future__ import annotations

import pandas as pd

from pplgen.checks.check import Check, Verdict, beside

__all__ = ["divergences", "effective_size", "split_rhat"]

RHAT, APART = 1.01, 1.1
"""R-hat above which chains have not mixed, and above which they are at different places."""
EACH, FEWEST = 100, 10
"""Effective draws for each chain at least, and those below which nothing can be said."""
DIVERGENT = 0.01
"""Share of divergent draws that fails."""
VEHTARI = "Vehtari et al. 2021"
LONGER = "give more steps, or reparameterise the model"


def split_rhat(mixing: pd.DataFrame) -> Check:
    """Judge the largest rank-normalised split R-hat of all scalars.

    Parameters
    ----------
    mixing
        A row for each scalar, with columns ``r_hat``, ``ess_bulk`` and ``ess_tail``, as ``arviz_stats.summary`` makes.
    """
    name = "R-hat of the chains"
    known = mixing["r_hat"].dropna()
    if known.empty:
        return beside(name, VEHTARI, "nothing varies")
    value = float(known.max())
    if value <= RHAT:
        return Check(name, value, RHAT, VEHTARI, Verdict.PASS)
    verdict = Verdict.FAIL if value > APART else Verdict.WARN
    remedy = f"{known.idxmax()} most: the chains disagree, or components have swapped names in some; {LONGER}"
    return Check(name, value, RHAT, VEHTARI, verdict, remedy)


def effective_size(mixing: pd.DataFrame, num_chains: int) -> Check:
    """Judge the smallest effective sample size, of bulk and tails, of all scalars; ``mixing`` as of ``split_rhat``."""
    name, least = "effective sample size", EACH * num_chains
    sizes = mixing[["ess_bulk", "ess_tail"]].min(axis=1).dropna()
    if sizes.empty:
        return beside(name, VEHTARI, "nothing varies")
    value = float(sizes.min())
    if value >= least:
        return Check(name, value, least, VEHTARI, Verdict.PASS)
    verdict = Verdict.FAIL if value < FEWEST * num_chains else Verdict.WARN
    return Check(name, value, least, VEHTARI, verdict, f"{sizes.idxmin()} least: {LONGER}")


def divergences(number: int, num_draws: int) -> Check:
    """Judge how many of the draws ended a trajectory that left the level of its energy."""
    name, source = "divergent draws (share)", "Betancourt 2017, section 6.2"
    value = number / max(num_draws, 1)
    if not number:
        return Check(name, value, 0.0, source, Verdict.PASS)
    verdict = Verdict.FAIL if value > DIVERGENT else Verdict.WARN
    remedy = f"{number:,} of {num_draws:,}: parts of the posterior are too curved to reach; reparameterise the model"
    return Check(name, value, 0.0, source, verdict, remedy)
