"""Checks of a fit: each a number beside its threshold and its source, a verdict, and what to do about it."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyro
import torch
from torch import Tensor

from pplgen.codes import encode_rows, moments
from pplgen.latent import LatentStory
from pplgen.pair import Pair, rows_of
from pplgen.scores import latent_densities
from pplgen.terminal import print_table

__all__ = ["CHECKS", "Check", "Verdict", "active_units", "bound_gap", "print_checks", "run_checks"]


class Verdict(enum.StrEnum):
    """What a check says."""

    PASS = "pass"
    WARN = "warn"
    FAIL = "fail"
    NOT_APPLICABLE = "not applicable"


@dataclass(frozen=True)
class Check:
    """A named number and what it means.

    Attributes
    ----------
    name : str
        What was computed, with its unit.
    value : float
        The number; NaN where the check does not apply.
    threshold : float
        What it is held against.
    source : str
        Where definition and threshold come from.
    verdict : Verdict
        ``pass``, ``warn``, ``fail`` or ``not applicable``.
    remedy : str
        What was found and what to do about it, or why the check does not apply; empty where it passed.
    """

    name: str
    value: float
    threshold: float
    source: str
    verdict: Verdict
    remedy: str = ""

    @property
    def applies(self) -> bool:
        """Whether there is a verdict."""
        return self.verdict is not Verdict.NOT_APPLICABLE


ACTIVE = 0.01
"""Variance over rows of a code entry's mean, relative to the prior's, above which the entry is active."""
GAP = 1.0
"""Nats per row by which the bound may fall short of the importance-weighted one."""
GAP_ROWS, GAP_DRAWS = 1000, 200
"""Rows of which the gap is a mean, and codes of each."""


def active_units(pair: Pair, data: tuple[Any, ...]) -> Check:
    """Count the entries of a code whose posterior mean depends on the row; the others have collapsed to the prior.

    Entry d is active where ``Var_x E_q[z_d | x]`` exceeds .01 times its variance under the prior, which for a standard
    normal prior is the definition of Burda, Grosse and Salakhutdinov (2016), section 5.2.
    """
    name, source = "active units", "Burda et al. 2016"
    story = pair.story
    if not isinstance(story, LatentStory) or len(data[0]) < 2:
        return _beside(name, source, "it takes a latent-variable story and two rows")
    least = ACTIVE * moments(story.prior())[1].square()[: story.num_latents]
    means = encode_rows(story, data[0])[0][:, : story.num_latents]
    active = means.var(0) > torch.where(least.isfinite(), least, ACTIVE)
    count, total = int(active.sum()), story.num_latents
    verdict = Verdict.PASS if count == total else Verdict.WARN if count else Verdict.FAIL
    which = ", ".join(str(d) for d in (~active).nonzero().flatten().tolist())
    remedies = {
        Verdict.PASS: "",
        Verdict.WARN: f"code entries {which} say nothing of the rows: take num_latents={count}, or warm the KL up",
        Verdict.FAIL: "the codes say nothing of the rows: warm the KL up, give free bits, or take a weaker decoder",
    }
    return Check(name, count, total, source, verdict, remedies[verdict])


def bound_gap(pair: Pair, data: tuple[Any, ...]) -> Check:
    """Importance-weighted bound of ``GAP_DRAWS`` codes minus the ELBO, nats per row: what the guide's shape costs.

    It approaches ``KL(q(z | x), p(z | x))`` from below (Cremer, Li and Duvenaud 2018). That one nat is much is a
    convention of this package: at that distance a density of the guide is off by a factor of e on average.
    """
    name, source = "bound gap (nats per row)", "Cremer et al. 2018"
    if not isinstance(pair.story, LatentStory):
        return _beside(name, source, "it takes a latent-variable story")
    if not bool((encode_rows(pair.story, data[0][:1])[1][:, : pair.story.num_latents] > 0).all()):
        return _beside(name, source, "the guide is a point, which bounds no density")
    step = max(1, len(data[0]) // GAP_ROWS)
    rows = tuple(rows_of(value, slice(0, step * GAP_ROWS, step), len(data[0])) for value in data)
    gaps = torch.cat([_gap(weights) for weights in latent_densities(pair, rows, GAP_DRAWS)])
    value = gaps.mean().item()
    if value <= GAP:
        return Check(name, value, GAP, source, Verdict.PASS)
    remedy = "the guide is far from the posterior of the codes: score by log_likelihood, not by the ELBO; guide='full' "
    return Check(name, value, GAP, source, Verdict.WARN, remedy + "or 'flow', where the story has them, comes closer")


CHECKS: tuple[Callable[[Pair, tuple[Any, ...]], Check], ...] = (active_units, bound_gap)
"""Every check, in the order of the table: a function of a trained pair and of arguments of its model."""


def run_checks(pair: Pair, data: tuple[Any, ...]) -> tuple[Check, ...]:
    """Run all checks on some rows; call it inside ``pair.isolated``."""
    with torch.no_grad(), pyro.validation_enabled(False):
        return tuple(check(pair, data) for check in CHECKS)


def print_checks(name: str, checks: tuple[Check, ...]) -> None:
    """Print the checks that apply as a table, and below it what to do about those that did not pass."""
    applied = [check for check in checks if check.applies]
    table = pd.DataFrame(
        {
            "value": [check.value for check in applied],
            "threshold": [check.threshold for check in applied],
            "verdict": [str(check.verdict) for check in applied],
            "source": [check.source for check in applied],
        },
        index=[check.name for check in applied],
        dtype=object,
    )
    lines = [f"{check.name}: {check.remedy}" for check in applied if check.remedy]
    beside = [f"{check.name}: not applicable, {check.remedy}" for check in checks if not check.applies]
    print_table(f"Checks of {name}", table, *lines, *beside, label="check")


def _gap(weights: Tensor) -> Tensor:
    """Return the importance-weighted bound minus the plain one of each row, from weights ``(draws, rows)``."""
    return weights.logsumexp(0) - math.log(len(weights)) - weights.mean(0)


def _beside(name: str, source: str, reason: str) -> Check:
    """Return a check that does not apply."""
    return Check(name, math.nan, math.nan, source, Verdict.NOT_APPLICABLE, reason)
