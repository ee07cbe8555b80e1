"""The report of a fit: a self-contained HTML page, and a machine-readable record."""

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

from pplgen.checks.registry import Check, Verdict
from pplgen.errors import DataWarning, InputError
from pplgen.posterior.datatree import summarise
from pplgen.posterior.fitted_pair import FittedPair
from pplgen.report.figures import ReportFigure, report_figures
from pplgen.report.observed import NO_ROWS
from pplgen.report.reproduction import python_lines, sources, story_text
from pplgen.storage import run_folder
from pplgen.story.latent import LatentStory

__all__ = ["FORMAT", "PAGE", "RECORD", "overall", "report_content", "report_draws", "write_report"]

FORMAT = 1
"""Version of the record's layout."""
PAGE, RECORD = "report.html", "report.json"
"""File names of the report."""
DRAWS = 1000
"""Number of posterior draws in a report, if none are saved."""
SHOWN_PARAMETERS = 200
"""Maximum number of rows in the page's table; the record has all."""
ORDER = (Verdict.FAIL, Verdict.WARN, Verdict.PASS, Verdict.NOT_APPLICABLE)
"""Order of the checks, worst verdict first."""


def write_report(fit: FittedPair, tree: xr.DataTree, checks: tuple[Check, ...], folder: Path) -> Path:
    """Write ``report.html`` and ``report.json``, each atomically, and return the page's path.

    Parameters
    ----------
    fit
        The fit.
    tree
        Its draws; figures of missing groups are left out and listed as such.
    checks
        Result of ``diagnose``.
    folder
        New or existing folder; an existing report is replaced.

    Raises
    ------
    InputError
        If the folder cannot be written.
    """
    figures = report_figures(fit, tree, checks)
    content = report_content(fit, tree, checks, figures)
    page = _page(content, figures)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{str(folder)!r} cannot be written: {error.strerror}") from None
    run_folder.write_text(folder / RECORD, json.dumps(content, indent=2, allow_nan=False) + "\n")
    run_folder.write_text(folder / PAGE, page)
    return folder / PAGE


def report_draws(fit: FittedPair) -> xr.DataTree:
    """Draw from the posterior for a report; the report itself names what is too large to include."""
    if not fit.has_rows:
        return fit.to_datatree(DRAWS, groups=["posterior"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        # figures of latent variables take their own draws
        return fit.to_datatree(
            2 if isinstance(fit.story, LatentStory) and not fit.pair.structure.shared_latent else DRAWS
        )


def overall(checks: tuple[Check, ...]) -> Verdict:
    """Return the worst verdict of the checks that apply."""
    return next((verdict for verdict in ORDER if any(check.verdict is verdict for check in checks)), ORDER[-1])


def report_content(
    fit: FittedPair, tree: xr.DataTree, checks: tuple[Check, ...], figures: tuple[ReportFigure, ...]
) -> dict[str, Any]:
    """Return the content of a report as plain values, those of ``report.json``.

    Non-finite numbers are ``None``. The layout is versioned by ``format``.
    """
    facts = fit.facts
    data = dict(facts.get("data", {}))
    missing = [f"{figure.title}: {figure.caption}" for figure in figures if not figure.svg]
    if not fit.has_rows:
        missing.insert(0, f"Checks of rows: {NO_ROWS}")
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
            **_training_summary(fit),
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
            {"name": figure.name, "title": figure.title, "caption": figure.caption} for figure in figures if figure.svg
        ],
        "missing": missing,
        "reproduce": {"command": facts.get("command"), "python": python_lines(fit, facts)},
    }


def _training_summary(fit: FittedPair) -> dict[str, Any]:
    """Return a summary of the optimisation, or of the sampler."""
    if fit.chains is not None:
        return {"method": "nuts", "how": fit.how, **vars(fit.chains)}
    best = fit.best
    return {
        "method": "svi",
        "how": best.how,
        "elbo": _number(best.elbo),
        "elbo_error": _number(best.elbo_error),
        "steps": len(best.history),
        "restarts": len(fit.runs) + fit.num_failed,
        "restarts_failed": fit.num_failed,
        "restarts_agreeing": fit.num_agreeing,
        "restarts_spread": _number(fit.spread),
    }


def _page(content: dict[str, Any], figures: tuple[ReportFigure, ...]) -> str:
    """Render the template; all text is escaped."""
    environment = Environment(
        loader=PackageLoader("pplgen.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _format_number, "inline_code": _format_code}
    template = environment.get_template(PAGE)
    svgs = {figure.name: Markup(figure.svg) for figure in figures}
    return template.render(content, svgs=svgs, shown_parameters=SHOWN_PARAMETERS)


def _format_code(text: str) -> Markup:
    """Mark text between double backticks as code."""
    parts = [escape(part) for part in text.split("``")]
    return Markup("").join(Markup("<code>{}</code>").format(part) if i % 2 else part for i, part in enumerate(parts))


def _format_number(value: float | None) -> str:
    """Format a number to four digits; a dash for ``None``."""
    return "\N{EN DASH}" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _number(value: float) -> float | int | None:
    """Return a plain number; ``None`` if it is not finite."""
    if not math.isfinite(value):
        return None
    return int(value) if isinstance(value, int) else float(value)
