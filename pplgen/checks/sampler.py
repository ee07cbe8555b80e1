"""Checks of MCMC chains: R-hat, effective sample size and divergences."""

from __future__ import annotations

import pandas as pd

from pplgen.checks.check import Check, Verdict, not_applicable

__all__ = ["divergences", "effective_size", "split_rhat"]

RHAT, RHAT_FAILS = 1.01, 1.1
"""R-hat above which the check warns, and above which it fails."""
ESS, ESS_FAILS = 100, 10
"""Effective sample size per chain below which the check warns, and below which it fails."""
DIVERGENT = 0.01
"""Fraction of divergent transitions above which the check fails."""
VEHTARI = "Vehtari et al. 2021"
MORE_DRAWS = "give more steps, or reparameterise the model"


def split_rhat(mixing: pd.DataFrame) -> Check:
    """Largest rank-normalised split R-hat of all scalars.

    Parameters
    ----------
    mixing
        One row per scalar, with columns ``r_hat``, ``ess_bulk`` and ``ess_tail`` of ``arviz_stats.summary``.
    """
    name = "R-hat of the chains"
    values = mixing["r_hat"].dropna()
    if values.empty:
        return not_applicable(name, VEHTARI, "all scalars are constant")
    value = float(values.max())
    if value <= RHAT:
        return Check(name, value, RHAT, VEHTARI, Verdict.PASS)
    verdict = Verdict.FAIL if value > RHAT_FAILS else Verdict.WARN
    remedy = f"{values.idxmax()} most: the chains disagree, or labels have switched in some; {MORE_DRAWS}"
    return Check(name, value, RHAT, VEHTARI, verdict, remedy)


def effective_size(mixing: pd.DataFrame, num_chains: int) -> Check:
    """Smallest bulk or tail effective sample size of all scalars; ``mixing`` as for ``split_rhat``."""
    name, least = "effective sample size", ESS * num_chains
    sizes = mixing[["ess_bulk", "ess_tail"]].min(axis=1).dropna()
    if sizes.empty:
        return not_applicable(name, VEHTARI, "all scalars are constant")
    value = float(sizes.min())
    if value >= least:
        return Check(name, value, least, VEHTARI, Verdict.PASS)
    verdict = Verdict.FAIL if value < ESS_FAILS * num_chains else Verdict.WARN
    return Check(name, value, least, VEHTARI, verdict, f"{sizes.idxmin()} least: {MORE_DRAWS}")


def divergences(number: int, num_draws: int) -> Check:
    """Fraction of draws whose Hamiltonian trajectory diverged."""
    name, source = "divergent transitions (fraction)", "Betancourt 2017, section 6.2"
    value = number / max(num_draws, 1)
    if not number:
        return Check(name, value, 0.0, source, Verdict.PASS)
    verdict = Verdict.FAIL if value > DIVERGENT else Verdict.WARN
    remedy = f"{number:,} of {num_draws:,}: regions of high curvature are not explored; reparameterise the model"
    return Check(name, value, 0.0, source, verdict, remedy)
