"""Results as a Markdown page, and as JSON: a list with one object per claim.

Keys are ``claim``, its name; ``story``, its name in ``pplgen list``, or another subject; ``what``; ``claimed``;
``measured`` and ``tolerance``, null if nothing was measured; ``basis``, the origin of the tolerance; ``verdict``, one
of ``holds``, ``fails`` and ``not run``; ``note``, why it was not run or the exception; ``source``, the origin of the
claimed number; and ``versions`` of Python and packages. The package contains the results of a run in ``recorded.json``.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from pplgen.storage.run_folder import provenance
from pplgen.verification.claim import Claim, Result
from pplgen.verification.data_sources import FILES
from pplgen.verification.rounding import as_claimed, as_measured

__all__ = ["as_json", "as_markdown", "fixed_cells", "numbers", "summary_of"]

HEADINGS = ("what", "about", "claimed", "measured", "within", "verdict", "tolerance from", "source")
INTRODUCTION = """\
# The verified table

Every exact check and reference value in the documentation, reproduced by one command, whose output is this page:

```console
$ pplgen verify                       # claims that take at most a few seconds each
$ pplgen verify --all --data FOLDER   # all claims; FOLDER contains data that are not shipped
$ pplgen verify gaussian-mixture      # a story, a family of claims, or a claim
```

The command exits with code 1 if a claim does not hold. For two computations of the same quantity, the number is their
difference, and zero is claimed. Monte Carlo estimates may differ by four standard errors in addition to the tolerance;
"within" is the sum of both. Claims whose data or packages are not available are not run, with the reason as a note.
FOLDER may contain:

"""


def as_json(results: Iterable[Result]) -> str:
    """Return results as JSON, in the format of this module."""
    versions = provenance()["versions"]
    entries = [
        {
            "claim": result.claim.name,
            "story": result.claim.subject,
            "what": result.claim.what,
            "claimed": result.claim.claimed,
            "measured": _finite(result.measured),
            "tolerance": _finite(result.allowed),
            "basis": result.claim.basis,
            "verdict": str(result.outcome),
            "note": result.note,
            "source": result.claim.source,
            "versions": versions,
        }
        for result in results
    ]
    return json.dumps(entries, indent=1, allow_nan=False) + "\n"


def as_markdown(results: Mapping[str, Sequence[Result]]) -> str:
    """Return a page with a table per family, followed by the counts and the versions used."""
    parts = [INTRODUCTION + "".join(f"- `{name}`: {what}\n" for name, what in FILES.items())]
    for family, members in results.items():
        rows = [_row(HEADINGS), "|" + "---|" * len(HEADINGS), *(_row(_cells(result)) for result in members)]
        parts.append(f"## {family.capitalize()}\n\n" + "\n".join(rows) + "\n")
    every = [result for members in results.values() for result in members]
    versions = ", ".join(f"{name} {version}" for name, version in provenance()["versions"].items())
    parts.append(f"{summary_of(every)}. Measured with {versions}.\n")
    return "\n".join(parts)


def summary_of(results: Sequence[Result]) -> str:
    """Summarise how many claims there are, and how many hold, fail and were not run."""
    outcomes = Counter(str(result.outcome) for result in results)
    return f"{len(results)} claims: " + ", ".join(f"{number} {outcome}" for outcome, number in sorted(outcomes.items()))


def fixed_cells(claim: Claim) -> tuple[str, str, str, str, str]:
    """Return the cells of a claim's row that do not depend on a run: what, about, claimed, tolerance from, source."""
    return f"{claim.what}, `{claim.name}`", claim.subject, as_claimed(claim.claimed), claim.basis, claim.source


def numbers(result: Result) -> tuple[str, str, str]:
    """Format claimed value, measured value and tolerance with their significant digits."""
    return (
        as_claimed(result.claim.claimed),
        as_measured(result.measured, result.claim.claimed, result.allowed),
        "" if math.isnan(result.allowed) else f"{result.allowed:.2g}",
    )


def _cells(result: Result) -> tuple[str, ...]:
    what, about, claimed, basis, source = fixed_cells(result.claim)
    _, measured, allowed = numbers(result)
    verdict = f"{result.outcome}: {result.note}" if result.note else str(result.outcome)
    return what, about, claimed, measured, allowed, verdict, basis, source


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
