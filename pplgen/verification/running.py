"""All claims by family, some of them chosen, and measured one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pplgen.errors import InputError, near_names
from pplgen.verification import engine, evidences, latents, mixtures, networks, regimes, series, switching, trust
from pplgen.verification.claim import Claim, Outcome, Result, measure
from pplgen.verification.sources import Sources

__all__ = ["FAMILIES", "chosen", "verify"]

FAMILIES: dict[str, tuple[Claim, ...]] = {
    "mixtures": mixtures.CLAIMS,
    "evidences": evidences.CLAIMS,
    "series": series.CLAIMS,
    "regimes": regimes.CLAIMS,
    "switching": switching.CLAIMS,
    "latents": latents.CLAIMS,
    "networks": networks.CLAIMS,
    "engine": engine.CLAIMS,
    "trust": trust.CLAIMS,
}
"""Every claim, in the order of the table."""


def chosen(names: Iterable[str]) -> dict[str, tuple[Claim, ...]]:
    """Return the claims of some families, about some stories, or of some names, by family; all where none is named.

    Raises
    ------
    InputError
        Where a name is none of these.
    """
    wanted = set(names)
    every = [(family, claim) for family, claims in FAMILIES.items() for claim in claims]
    known = {name for family, claim in every for name in (family, claim.subject, claim.name)}
    for name in sorted(wanted - known):
        raise InputError(
            f"{name!r}: expected a claim, a story, or one of {', '.join(FAMILIES)}{near_names(name, known)}"
        )
    if not wanted:
        return dict(FAMILIES)
    picked: dict[str, tuple[Claim, ...]] = {}
    for family, claim in every:
        if wanted & {family, claim.subject, claim.name}:
            picked[family] = (*picked.get(family, ()), claim)
    return picked


def verify(
    claims: Iterable[Claim], sources: Sources, *, slow: bool, notice: Callable[[Result], None] | None = None
) -> list[Result]:
    """Measure claims, those that are slow only where asked to, and tell of each result as it comes."""
    results = []
    for claim in claims:
        skipped = claim.slow and not slow
        result = Result(claim, Outcome.NOT_RUN, note="slow: --all") if skipped else measure(claim, sources)
        results.append(result)
        if notice:
            notice(result)
    return results
