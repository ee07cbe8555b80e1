"""Four ways to say that a fit is wrong: our checks, k-hat alone, VSBC, and posterior predictive p-values."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from pyro import poutine
from scipy import stats

from mutants.pair_under_test import DoesNotApply, Subject
from pplgen.checks.importance_weights import khat, khat_of_shared
from pplgen.checks.inputs import CheckInputs
from pplgen.checks.registry import Checks, Verdict, run_on
from pplgen.checks.uniformity import holm
from pplgen.errors import InputError
from pplgen.posterior.psis import GOOD_K
from pplgen.story.isolation import seeded

__all__ = ["khat_alone", "our_checks", "predictive_checks", "vsbc"]

LEVEL = 0.05
"""Level of VSBC and of the predictive p-values, with Holm's correction."""
REPLICATIONS, REFITS, DRAWS = 30, 10, 100
"""Data sets of VSBC where the guide is in closed form, where each is a fit; and draws of each guide."""
STATISTICS = ("mean of", "sd of", "min of", "max of")


def our_checks(inputs: CheckInputs) -> Checks:
    """Run all checks."""
    with seeded(0), inputs.pair.isolated():
        return run_on(inputs)


def khat_alone(inputs: CheckInputs) -> bool | None:
    """Whether k-hat of the joint weights, of shared latents where rows have their own, is above .7."""
    with seeded(0), inputs.pair.isolated(), torch.no_grad():
        found = [each for each in (khat(inputs), khat_of_shared(inputs)) if each.verdict is not Verdict.NOT_APPLICABLE]
    return max(each.value for each in found) > GOOD_K if found else None


def predictive_checks(inputs: CheckInputs) -> bool | None:
    """Whether a posterior predictive p-value of mean, sd, minimum or maximum of a column is below the level."""
    try:
        with seeded(0), inputs.pair.isolated(), torch.no_grad():
            replicates = inputs.replicates
            p_values = replicates.p_values().tolist()
    except (InputError, RuntimeError, ValueError):
        return None
    chosen = [p for name, p in zip(replicates.names, p_values, strict=True) if name.startswith(STATISTICS)]
    return bool(holm(chosen).min() < LEVEL)


def vsbc(subject: Subject, refits: bool) -> bool | None:
    """Whether ranks of the truth are asymmetric, data simulated from the prior and model of the pair (Yao et al. 2018).

    For each scalar the probabilities ``P_q(theta > theta*)`` of the replications are compared with their mirror image
    by a Kolmogorov-Smirnov test, as NumPyro's ``vsbc_diagnostic`` does. A guide that is not in closed form is fitted
    anew in each replication, with ``refits``.
    """
    if subject.is_story or subject.options or subject.after or not (subject.closed or refits):
        return None
    probabilities: list[np.ndarray] = []
    try:
        for replication in range(REPLICATIONS if subject.closed else REFITS):
            simulated, truth = subject.simulated(replication)
            probabilities.append(_probabilities(simulated, truth, replication))
    except (DoesNotApply, InputError, ValueError, RuntimeError):
        return None
    columns = np.stack(probabilities).T
    p_values = [stats.ks_2samp(column, 1 - column).pvalue for column in columns]
    return bool(holm(p_values).min() < LEVEL)


def _probabilities(subject: Subject, truth: dict[str, torch.Tensor], seed: int) -> np.ndarray:
    """Return the probability under the guide that each scalar exceeds its true value."""
    inputs = subject.trained(seed)
    names = sorted(truth)
    draws: Callable[[], list[torch.Tensor]] = lambda: _drawn(inputs, names)  # noqa: E731
    with seeded(seed), inputs.pair.isolated(), torch.no_grad():
        above = torch.stack([torch.cat(draws()) for _ in range(DRAWS)])
    return (above > torch.cat([truth[name].reshape(-1) for name in names])).double().mean(0).numpy()


def _drawn(inputs: CheckInputs, names: list[str]) -> list[torch.Tensor]:
    nodes = poutine.trace(inputs.pair.guide).get_trace(*inputs.pair.data).nodes
    return [nodes[name]["value"].reshape(-1) for name in names]
