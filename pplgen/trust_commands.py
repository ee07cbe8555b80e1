"""Commands that say how far a fit can be trusted; torch is imported once one of them runs."""

from __future__ import annotations

from typing import Annotated

import typer

from pplgen.command_options import DATA_HELP, RunArgument, SeriesOption

__all__ = ["add_commands"]

GivenDataArgument = Annotated[
    str | None,
    typer.Argument(metavar="[DATA]", help=f"The data of the fit, where the run does not keep them. {DATA_HELP}"),
]
LabelsOption = Annotated[str | None, typer.Option(metavar="COLUMN", help="Column of labels, as for the fit.")]
WeightsOption = Annotated[str | None, typer.Option(metavar="COLUMN", help="Column of weights, as for the fit.")]
CheckSeedOption = Annotated[int | None, typer.Option(min=0, help="Seed of the checks.  [default: the fit's]")]


def report(
    run: RunArgument,
    data: GivenDataArgument = None,
    labels: LabelsOption = None,
    weights: WeightsOption = None,
    series: SeriesOption = None,
    seed: CheckSeedOption = None,
) -> None:
    """Write a run's report.html, one page to read anywhere, and report.json: checks, pictures, what was fitted."""
    from pplgen.loading import load_with_draws
    from pplgen.series import load_series

    rows = data if data is None or series is None else load_series(data, by=series)
    fit, tree = load_with_draws(run, rows, labels=labels, weights=weights)
    page = fit.report(run, tree=tree, seed=seed)
    typer.echo(f"Written to {run}: {page.name}, {page.with_suffix('.json').name}")


def add_commands(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(report)
