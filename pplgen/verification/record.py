"""Results as a page of Markdown, and as JSON: a list with one object for each claim.

Keys are ``claim``, its name; ``story``, as ``pplgen list`` names it, or what else the claim is about; ``what``;
``claimed``; ``measured``, null where nothing was; ``tolerance``, how far these may be apart, null likewise; ``basis``,
where the tolerance comes from; ``verdict``, one of ``holds``, ``fails`` and ``not run``; ``note``, why it was not run
or what was raised; ``source``, where the claimed number comes from; and ``versions`` of Python and packages. The
package carries the file of a run, ``recorded.json`` beside this module.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from pplgen.storage.run_folder import provenance
from pplgen.verification.claim import Claim, Result
from pplgen.verification.digits import as_claimed, as_measured
from pplgen.verification.sources import FILES

__all__ = ["as_json", "as_markdown", "counted", "fixed_cells", "numbers"]

HEADINGS = ("what", "about", "claimed", "measured", "within", "verdict", "tolerance from", "source")
INTRODUCTION = """\
# The verified table

Every exact check and reference value that the documentation claims, measured again by one command, of which this page
is the output:

```console
$ pplgen verify                       # what takes no longer than some seconds each
$ pplgen verify --all --data FOLDER   # everything; FOLDER holds data that are not shipped
$ pplgen verify gaussian-mixture      # a story, a family of claims, or a claim
```

The command ends with exit code 1 where a claim does not hold. Where two computations are held against each other, the
number is how far they are apart, and zero is claimed. Monte Carlo estimates may be off by four of their standard errors
beside the tolerance; "within" is both together. A claim whose data or packages are not at hand is not run, and says
why. In FOLDER are looked for:

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
    """Return a page with a table for each family, and below them what was run with which versions."""
    parts = [INTRODUCTION + "".join(f"- `{name}`: {what}\n" for name, what in FILES.items())]
    for family, members in results.items():
        rows = [_row(HEADINGS), "|" + "---|" * len(HEADINGS), *(_row(_cells(result)) for result in members)]
        parts.append(f"## {family.capitalize()}\n\n" + "\n".join(rows) + "\n")
    every = [result for members in results.values() for result in members]
    versions = ", ".join(f"{name} {version}" for name, version in provenance()["versions"].items())
    parts.append(f"{counted(every)}. Measured with {versions}.\n")
    return "\n".join(parts)


def counted(results: Sequence[Result]) -> str:
    """Say how many claims there are, and how many hold, fail and were not run."""
    outcomes = Counter(str(result.outcome) for result in results)
    return f"{len(results)} claims: " + ", ".join(f"{number} {outcome}" for outcome, number in sorted(outcomes.items()))


def fixed_cells(claim: Claim) -> tuple[str, str, str, str, str]:
    """Return the cells of a claim's row that no run changes: what, about, claimed, tolerance from, source."""
    return f"{claim.what}, `{claim.name}`", claim.subject, as_claimed(claim.claimed), claim.basis, claim.source


def numbers(result: Result) -> tuple[str, str, str]:
    """Claimed, measured, and how far they may be apart, with as many digits as matter."""
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
