"""The command that shows a story: its equations, defaults, references, and what it has been held against."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from pplgen.cli.story_arguments import entry_named
from pplgen.story.signature import constructor_options
from pplgen.verification.digits import as_claimed, as_measured

__all__ = ["add_commands", "calibration_lines", "calibration_word", "measured", "story_page"]

WIDTH = 120
"""Columns of the page, those of the equations."""
MEASURED = Path(__file__).parent / "verification" / "recorded.json"
"""What ``pplgen verify`` measured; read as it is, for its module would import torch."""


def measured(story: str) -> list[dict[str, Any]]:
    """Return what is recorded of the claims about a story, as ``pplgen.verification.record`` lays it out."""
    return [entry for entry in json.loads(MEASURED.read_text("utf-8")) if entry["story"] == story]


def story_page(
    entry: Any, card: Any, calibration: Mapping[str, Any] | None, claims: Sequence[Mapping[str, Any]] = ()
) -> str:
    """Return all that is known of a story as text.

    Parameters
    ----------
    entry
        Of the collection: name, class, equations, constructor.
    card
        When to take the story, when not to, and what the tests hold it against.
    calibration
        What was recorded when it was calibrated, if it was.
    claims
        What was recorded when the claims about it were measured.
    """
    options = constructor_options(entry.definition)
    width = max(len(option.name) for option in options)
    parts = [
        f"{entry.name}, in Python pplgen.models.{entry.class_name}\n{entry.summary}",
        entry.equations.replace("::\n", ":\n").replace("``", "`"),
        *_section("When to take it", [card.use]),
        *_section("When not to", [card.avoid]),
        *_section("Defaults", [f"{option.name:<{width}}  {_default(option.default)}" for option in options]),
        f"'pplgen fit {entry.name} --help' says what each of them is.",
        *_section("Held against", [card.held_against]),
        *_section("Measured", [_claim_line(claim) for claim in claims] or ["Nothing is recorded."]),
        *_section("Calibrated", calibration_lines(calibration)),
    ]
    return "\n\n".join(parts)


def calibration_lines(record: Mapping[str, Any] | None) -> list[str]:
    """Say what was recorded of a calibration, in sentences; of none, that nothing was."""
    if record is None:
        return ["Nothing is recorded."]
    if "refused" in record:
        return [f"Not possible: {record['refused']}"]
    of = f", those of {', '.join(record['not_uniform'])}" if record["not_uniform"] else ""
    return [
        record["call"],
        f"{record['num_datasets']} data sets, {record['num_quantities']} quantities. Ranks are uniform: "
        f"{calibration_word(record)}{of}. Smallest p-value, adjusted to their number: {record['smallest_p']:.2g}.",
    ]


def calibration_word(record: Mapping[str, Any] | None) -> str:
    """Say in a word whether ranks were uniform when a story was calibrated."""
    if record is None:
        return "not recorded"
    return "cannot be" if "refused" in record else {"pass": "yes", "warn": "doubtful", "fail": "no"}[record["verdict"]]


def add_commands(app: typer.Typer, models: Any) -> None:
    """Add ``show`` to the command line, for the stories of ``pplgen.models``."""

    @app.command()
    def show(
        story: Annotated[str, typer.Argument(metavar="STORY", help="Its name, as 'pplgen list' prints it.")],
    ) -> None:
        """Show a story's equations, defaults and references, when to take it, and what it is held against."""
        entry = entry_named(story, models.collection())
        typer.echo(story_page(entry, models.cards()[story], models.calibrations().get(story), measured(story)))


def _section(title: str, paragraphs: Iterable[str]) -> Iterator[str]:
    """Yield a heading, and the text under it."""
    yield f"{title}\n{'-' * len(title)}\n" + "\n".join(
        textwrap.fill(line, WIDTH, break_on_hyphens=False, subsequent_indent="  " if line.startswith("- ") else "")
        for line in paragraphs
    )


def _claim_line(claim: Mapping[str, Any]) -> str:
    """Say what was claimed, what was measured and how far apart they may be."""
    value = as_measured(claim["measured"], claim["claimed"], claim["tolerance"])
    found, within = (f", measured {value}", f" within {claim['tolerance']:.2g}") if value else ("", "")
    return f"- {claim['what']}: claimed {as_claimed(claim['claimed'])}{found}; {claim['verdict']}{within}"


def _default(value: Any) -> str:
    """Return a default as it would be typed; what is left to the story or the data stays open."""
    if value is None:
        return "(left open)"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
