"""The ``show`` command: a story's equations, defaults, references, and what it is validated against."""

from __future__ import annotations

import ast
import json
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from pplgen.cli.story_arguments import find_entry
from pplgen.story.signature import constructor_options
from pplgen.verification.rounding import as_claimed, as_measured

__all__ = ["add_commands", "calibration_lines", "calibration_word", "measured", "model_and_guide", "story_page"]

WIDTH = 120
"""Width of the page in characters, that of the equations."""
MEASURED = Path(__file__).parents[1] / "verification" / "recorded.json"
"""Results of ``pplgen verify``; read directly, because its module would import torch."""


def measured(story: str) -> list[dict[str, Any]]:
    """Return the recorded results of a story's claims, in the format of ``pplgen.verification.record``."""
    return [entry for entry in json.loads(MEASURED.read_text("utf-8")) if entry["story"] == story]


def story_page(
    entry: Any, card: Any, calibration: Mapping[str, Any] | None, claims: Sequence[Mapping[str, Any]] = ()
) -> str:
    """Return the page of a story as text.

    Parameters
    ----------
    entry
        Entry of the collection: name, class, equations, constructor.
    card
        When to use the story, when not to, and what the tests validate it against.
    calibration
        Record of its calibration, if there is one.
    claims
        Recorded results of the claims about it.
    """
    options = constructor_options(entry.definition, entry.base)
    width = max(len(option.name) for option in options)
    parts = [
        f"{entry.name}, in Python pplgen.models.{entry.class_name}\n{entry.summary}",
        entry.equations.replace("::\n", ":\n").replace("``", "`"),
        *_section("When to use it", [card.use]),
        *_section("When not to use it", [card.avoid]),
        *_section("Defaults", [f"{option.name:<{width}}  {_default(option.default)}" for option in options]),
        f"'pplgen fit {entry.name} --help' describes them.",
        *_section("Validated against", [card.validated_against]),
        *_section("Measured", [_claim_line(claim) for claim in claims] or ["Nothing is recorded."]),
        *_section("Calibrated", calibration_lines(calibration)),
    ]
    return "\n\n".join(parts)


def model_and_guide(definition: ast.ClassDef, source: str) -> str:
    """Return the text of a class's ``model``, ``guide`` and methods that they call, from the source of its file."""
    lines = source.splitlines()
    methods = {node.name: node for node in definition.body if isinstance(node, ast.FunctionDef)}
    names = ["model", "guide"]
    for name in names:  # which grows
        calls = (node.func for node in ast.walk(methods[name]) if isinstance(node, ast.Call))
        own = (f.attr for f in calls if isinstance(f, ast.Attribute) and getattr(f.value, "id", None) == "self")
        names += [each for each in dict.fromkeys(own) if each in methods and each not in names]
    nodes = [methods[name] for name in names]
    return "\n\n".join(textwrap.dedent("\n".join(lines[node.lineno - 1 : node.end_lineno])) for node in nodes)


def calibration_lines(record: Mapping[str, Any] | None) -> list[str]:
    """Return the record of a calibration in sentences."""
    if record is None:
        return ["Nothing is recorded."]
    if "refused" in record:
        return [f"Not possible: {record['refused']}"]
    coverage = ", ".join(f"{100 * value:.0f} % ({name})" for name, value in record.get("coverage_of_90", {}).items())
    exceptions = f" for {', '.join(record['not_uniform'])}" if record["not_uniform"] else ""
    return [
        record["call"],
        f"{record['num_datasets']} data sets, {record['num_quantities']} quantities. Ranks uniform: "
        f"{calibration_word(record)}{exceptions}. Smallest adjusted p-value: {record['smallest_p']:.2g}.",
        *([f"90 % intervals cover the truth in {coverage}."] if coverage else []),
    ]


def calibration_word(record: Mapping[str, Any] | None) -> str:
    """Return in a word whether a story's calibration ranks were uniform."""
    if record is None:
        return "not recorded"
    if "refused" in record:
        return "not possible"
    return {"pass": "yes", "warn": "doubtful", "fail": "no"}[record["verdict"]]


def add_commands(app: typer.Typer, models: Any) -> None:
    """Add ``show`` to the command line, for the stories of ``pplgen.models``."""

    @app.command()
    def show(
        story: Annotated[str, typer.Argument(metavar="STORY", help="Name of the story, as printed by 'pplgen list'.")],
        source: Annotated[bool, typer.Option("--source", help="Show the text of model and guide instead.")] = False,
    ) -> None:
        """Show a story's equations, defaults and references, when to use it, and what it is validated against."""
        entry = find_entry(story, models.collection())
        if source:
            file = Path(models.__file__).parent / f"{story.replace('-', '_')}.py"
            typer.echo(model_and_guide(entry.definition, file.read_text("utf-8")))
            return
        typer.echo(story_page(entry, models.cards()[story], models.calibrations().get(story), measured(story)))


def _section(title: str, paragraphs: Iterable[str]) -> Iterator[str]:
    """Yield a heading with its text."""
    yield f"{title}\n{'-' * len(title)}\n" + "\n".join(
        textwrap.fill(line, WIDTH, break_on_hyphens=False, subsequent_indent="  " if line.startswith("- ") else "")
        for line in paragraphs
    )


def _claim_line(claim: Mapping[str, Any]) -> str:
    """Format a claim: claimed value, measured value, verdict and tolerance."""
    value = as_measured(claim["measured"], claim["claimed"], claim["tolerance"])
    measurement, within = (f", measured {value}", f" within {claim['tolerance']:.2g}") if value else ("", "")
    return f"- {claim['what']}: claimed {as_claimed(claim['claimed'])}{measurement}; {claim['verdict']}{within}"


def _default(value: Any) -> str:
    """Format a default as typed on the command line; ``None`` is set by the story or the data."""
    if value is None:
        return "(unset)"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
