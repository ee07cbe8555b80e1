"""All claims by family; selection and measurement of claims."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pplgen.errors import InputError, near_names
from pplgen.verification import (
    checks_and_calibration,
    conjugate_evidences,
    engine,
    hidden_markov,
    latents,
    mixtures,
    networks,
    posterior_accuracy,
    state_space,
    switching_systems,
)
from pplgen.verification.claim import Claim, Outcome, Result, measure
from pplgen.verification.data_sources import Sources

__all__ = ["FAMILIES", "select", "verify"]

FAMILIES: dict[str, tuple[Claim, ...]] = {
    "mixtures": mixtures.CLAIMS,
    "evidences": conjugate_evidences.CLAIMS,
    "series": state_space.CLAIMS,
    "regimes": hidden_markov.CLAIMS,
    "switching": switching_systems.CLAIMS,
    "latents": latents.CLAIMS,
    "networks": networks.CLAIMS,
    "engine": engine.CLAIMS,
    "posteriors": posterior_accuracy.CLAIMS,
    "trust": checks_and_calibration.CLAIMS,
}
"""All claims, in the order of the table."""


def select(names: Iterable[str]) -> dict[str, tuple[Claim, ...]]:
    """Select claims by names of families, subjects or claims, and return them by family; all if no name is given.

    Raises
    ------
    InputError
        If a name is unknown.
    """
    requested = set(names)
    every = [(family, claim) for family, claims in FAMILIES.items() for claim in claims]
    known = {name for family, claim in every for name in (family, claim.subject, claim.name)}
    for name in sorted(requested - known):
        raise InputError(
            f"{name!r}: expected a claim, a story, or one of {', '.join(FAMILIES)}{near_names(name, known)}"
        )
    if not requested:
        return dict(FAMILIES)
    selected: dict[str, tuple[Claim, ...]] = {}
    for family, claim in every:
        if requested & {family, claim.subject, claim.name}:
            selected[family] = (*selected.get(family, ()), claim)
    return selected


def verify(
    claims: Iterable[Claim], sources: Sources, *, slow: bool, report: Callable[[Result], None] | None = None
) -> list[Result]:
    """Measure claims, slow ones only if ``slow``; call ``report`` with each result."""
    results = []
    for claim in claims:
        skipped = claim.slow and not slow
        result = Result(claim, Outcome.NOT_RUN, note="slow: --all") if skipped else measure(claim, sources)
        results.append(result)
        if report:
            report(result)
    return results
