"""The ``verify`` command, which re-measures the documentation's claims; torch is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["add_commands"]


def verify(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="Stories, families of claims, or claims.  [default: all]"),
    ] = None,
    slow: Annotated[bool, typer.Option("--all", help="Include the slow claims, most of which need a fit.")] = False,
    data: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Folder of data that are not shipped, named as in docs/verified.md."),
    ] = None,
    markdown: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the table as Markdown.")] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the results as JSON.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite existing files.")] = False,
) -> None:
    """Re-measure every exact check and reference value of the documentation: claimed beside measured.

    Exit code 1 if a claim does not hold. Claims whose data are missing are counted, and do not fail.
    """
    from pplgen.errors import InputError
    from pplgen.storage.run_folder import check_replaceable, write_text
    from pplgen.verification import record
    from pplgen.verification.claim import Outcome, Result
    from pplgen.verification.data_sources import Sources
    from pplgen.verification.run_claims import select, verify

    if data is not None and not data.is_dir():
        raise InputError(f"--data {data}: expected a folder")
    for path in (markdown, json):
        if path is not None:
            check_replaceable(path)
            if path.exists() and not force:
                raise InputError(f"{str(path)!r} exists already; give --force or the name of a new file")

    def show(result: Result) -> None:
        claimed, measured, allowed = record.numbers(result)
        line = f"{result.outcome:<9}{result.claim.name:<34}{claimed:>15}{measured:>17}{allowed:>10}"
        typer.echo(f"{line}  {result.claim.source}")
        if result.outcome is Outcome.FAILS:
            typer.echo(f"{'':9}{result.claim.what}{': ' if result.note else ''}{result.note}")

    typer.echo(f"{'verdict':<9}{'claim':<34}{'claimed':>15}{'measured':>17}{'within':>10}  source")
    sources = Sources(data)
    results = {
        family: verify(claims, sources, slow=slow, report=show) for family, claims in select(names or ()).items()
    }
    every = [result for members in results.values() for result in members]
    for reason in sorted({result.note for result in every if result.outcome is Outcome.NOT_RUN}):
        number = sum(result.outcome is Outcome.NOT_RUN and result.note == reason for result in every)
        typer.echo(f"{number} not run: {reason}")
    typer.echo(record.summary_of(every))
    if markdown is not None:
        write_text(markdown, record.as_markdown(results))
    if json is not None:
        write_text(json, record.as_json(every))
    if any(result.outcome is Outcome.FAILS for result in every):
        raise typer.Exit(1)


def add_commands(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(verify)
