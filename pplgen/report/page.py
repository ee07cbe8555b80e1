"""The report of a fit: one page that needs nothing else, and the same for programs to read."""

from __future__ import annotations

import json
import math
import warnings
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import xarray as xr
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from pplgen.checks.table import Check, Verdict
from pplgen.errors import DataWarning, InputError
from pplgen.posterior.datatree import summarise
from pplgen.posterior.fitted_pair import FittedPair
from pplgen.report.observed import WITHOUT_ROWS
from pplgen.report.pictures import Picture, pictures
from pplgen.report.reproduction import python_lines, sources, story_text
from pplgen.storage import run_folder as store
from pplgen.story.latent import LatentStory

__all__ = ["FORMAT", "PAGE", "RECORD", "overall", "report_content", "report_draws", "write_report"]

FORMAT = 1
"""Version of the record's layout."""
PAGE, RECORD = "report.html", "report.json"
"""Names of the two files."""
DRAWS = 1000
"""Posterior draws that a report shows, where none are at hand."""
SHOWN_PARAMETERS = 200
"""Rows of the page's table at most; the record has them all."""
ORDER = (Verdict.FAIL, Verdict.WARN, Verdict.PASS, Verdict.NOT_APPLICABLE)
"""Of the checks: what needs care comes first."""


def write_report(fit: FittedPair, tree: xr.DataTree, checks: tuple[Check, ...], folder: Path) -> Path:
    """Write ``report.html`` and ``report.json``, each whole or not at all, and return the page's path.

    Parameters
    ----------
    fit
        The fit.
    tree
        Its draws; groups that are missing leave out what they would show, and the report says so.
    checks
        What ``diagnose`` found.
    folder
        New or old; a report that is there is replaced.

    Raises
    ------
    InputError
        Where the folder cannot be written.
    """
    drawn = pictures(fit, tree, checks)
    content = report_content(fit, tree, checks, drawn)
    page = _page(content, drawn)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{str(folder)!r} cannot be written: {error.strerror}") from None
    store.write_text(folder / RECORD, json.dumps(content, indent=2, allow_nan=False) + "\n")
    store.write_text(folder / PAGE, page)
    return folder / PAGE


def report_draws(fit: FittedPair) -> xr.DataTree:
    """Draw what a report shows; what is left out for its size, the report says itself."""
    if not fit.has_rows:
        return fit.to_datatree(DRAWS, groups=["posterior"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        # pictures of codes draw their own
        return fit.to_datatree(
            2 if isinstance(fit.story, LatentStory) and not fit.pair.structure.shared_latent else DRAWS
        )


def overall(checks: tuple[Check, ...]) -> Verdict:
    """Return the worst verdict of the checks that apply."""
    return next((verdict for verdict in ORDER if any(check.verdict is verdict for check in checks)), ORDER[-1])


def report_content(
    fit: FittedPair, tree: xr.DataTree, checks: tuple[Check, ...], drawn: tuple[Picture, ...]
) -> dict[str, Any]:
    """Return all that a report says, as plain values: what ``report.json`` holds.

    Numbers that are not finite are ``None``. The layout is versioned by ``format``.
    """
    facts = fit.facts
    data = dict(facts.get("data", {}))
    missing = [f"{picture.title}: {picture.caption}" for picture in drawn if not picture.svg]
    if not fit.has_rows:
        missing.insert(0, f"Checks of rows: {WITHOUT_ROWS}")
    table = summarise(tree, fit.readable_sites(tree)).set_axis(["mean", "sd", "lower", "upper"], axis=1)
    return {
        "format": FORMAT,
        "title": f"{fit.name} on {data['name']}" if "name" in data else fit.name,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "verdict": str(overall(checks)),
        "counts": dict(Counter(str(check.verdict) for check in checks)),
        "checks": [
            {
                "name": check.name,
                "value": _number(check.value),
                "threshold": _number(check.threshold),
                "source": check.source,
                "verdict": str(check.verdict),
                "remedy": check.remedy,
            }
            for check in sorted(checks, key=lambda check: ORDER.index(check.verdict))
        ],
        "fit": {
            "story": facts["story"],
            "unit": "series" if fit.story is not None and fit.story.takes_series else "rows",
            "config": facts["config"],
            "data": {**data, "columns": list(fit.columns)},
            **_how_it_went(fit),
            "path": fit.path,
            "seed": fit.seed,
            "options": facts.get("options", {}),
            "created": facts.get("created"),
            "versions": facts.get("versions", {}),
        },
        "story": [block._asdict() for block in story_text(fit)],
        "sources": sources(fit),
        "parameters": [
            {"name": str(name), **{column: _number(value) for column, value in row.items()}}
            for name, row in table.iterrows()
        ],
        "pictures": [
            {"name": picture.name, "title": picture.title, "caption": picture.caption}
            for picture in drawn
            if picture.svg
        ],
        "missing": missing,
        "reproduce": {"command": facts.get("command"), "python": python_lines(fit, facts)},
    }


def _how_it_went(fit: FittedPair) -> dict[str, Any]:
    """Return how the optimisation went, or the sampler, which has no ELBO."""
    if fit.chains is not None:
        return {"method": "nuts", "how": fit.how, **vars(fit.chains)}
    best = fit.best
    return {
        "method": "svi",
        "how": best.stop.value,
        "elbo": _number(best.elbo),
        "elbo_error": _number(best.elbo_error),
        "steps": len(best.history),
        "restarts": len(fit.runs) + fit.num_failed,
        "restarts_failed": fit.num_failed,
        "restarts_agreeing": fit.num_agreeing,
        "restarts_spread": _number(fit.spread),
    }


def _page(content: dict[str, Any], drawn: tuple[Picture, ...]) -> str:
    """Fill the template; whatever is no markup of its own is escaped."""
    environment = Environment(
        loader=PackageLoader("pplgen.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _shown, "inline_code": _with_code}
    template = environment.get_template(PAGE)
    svgs = {picture.name: Markup(picture.svg) for picture in drawn}
    return template.render(content, svgs=svgs, shown_parameters=SHOWN_PARAMETERS)


def _with_code(text: str) -> Markup:
    """Set what stands between double backticks as code."""
    parts = [escape(part) for part in text.split("``")]
    return Markup("").join(Markup("<code>{}</code>").format(part) if i % 2 else part for i, part in enumerate(parts))


def _shown(value: float | None) -> str:
    """Return a number in four digits, a dash for none."""
    return "\N{EN DASH}" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _number(value: float) -> float | int | None:
    """Return a plain number, ``None`` for one that is not finite."""
    if not math.isfinite(value):
        return None
    return int(value) if isinstance(value, int) else float(value)
