"""Commands that say how far a run can be trusted; torch is imported once one of them runs."""

from __future__ import annotations

from typing import Annotated

import typer

from pplgen.command_options import DATA_HELP, RunArgument, SeedOption, SeriesOption

__all__ = ["add_commands"]


def check(
    run: RunArgument,
    data: Annotated[
        str | None,
        typer.Argument(metavar="[DATA]", help=f"The rows that the run was fitted to. {DATA_HELP}"),
    ] = None,
    labels: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column of known components, as for fit.")
    ] = None,
    weights: Annotated[str | None, typer.Option(metavar="COLUMN", help="Column of weights, as for fit.")] = None,
    series: SeriesOption = None,
    seed: SeedOption = 0,
) -> None:
    """Check how far a run can be trusted: values, thresholds, verdicts and remedies. Writes nothing.

    Ends with exit code 1 where a check has failed, and 0 otherwise. A data set that has a name is found by it; without
    DATA, of other rows, what needs them is not checked.
    """
    from pplgen.diagnostics import Verdict
    from pplgen.loading import load_with_rows

    checks = load_with_rows(run, data, labels=labels, weights=weights, by=series).diagnose(seed=seed)
    if any(each.verdict is Verdict.FAIL for each in checks):
        raise typer.Exit(1)


def add_commands(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(check)
