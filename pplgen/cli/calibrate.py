"""The command that calibrates a story; torch is imported once it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pplgen.cli.options import DATA_HELP, SeedOption
from pplgen.cli.story_arguments import StoryGroup

__all__ = ["calibrate_app", "calibration_options", "report_calibration"]

calibrate_app = typer.Typer(
    cls=StoryGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Check a story's inference on data sets simulated from its prior: pplgen calibrate STORY. Exits 1 if not.",
)


def calibration_options(
    *,
    num_datasets: Annotated[
        int, typer.Option("-n", "--num-datasets", min=10, help="Data sets that are simulated.")
    ] = 200,
    num_rows: Annotated[int, typer.Option(min=1, help="Rows of each.")] = 100,
    num_features: Annotated[int, typer.Option("--features", min=1, help="Columns of each.")] = 2,
    data: Annotated[
        str | None, typer.Option(metavar="DATA", help=f"Take priors that are left to the data from these. {DATA_HELP}")
    ] = None,
    seed: SeedOption = 0,
    restarts: Annotated[int, typer.Option(min=1, help="Starts of each fit; the one with the best ELBO is kept.")] = 1,
    steps: Annotated[int, typer.Option(min=1, help="Steps of each fit at most.")] = 2000,
    learning_rate: Annotated[float, typer.Option(help="Adam's at first; it falls to a twentieth.")] = 0.05,
    draws: Annotated[int, typer.Option(min=9, help="Draws among which what was true is ranked.")] = 199,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="New picture to write, .png, .svg or .pdf.  [default: none]")
    ] = None,
) -> None:
    """Hold the options that every story's ``calibrate`` shares; never called."""


def report_calibration(story: Any, *, out: Path | None, **options: Any) -> None:
    """Calibrate a story, print the table, write the picture, and exit with 1 where ranks are not uniform."""
    from pplgen.calibration.calibrate import calibrate
    from pplgen.distributed.ranks import process_group
    from pplgen.errors import InputError
    from pplgen.storage import run_folder as store

    if out is not None:
        store.check_new(out)
    if out is not None and out.suffix not in (".png", ".svg", ".pdf"):
        raise InputError(f"--out {out}: expected a name that ends in .png, .svg or .pdf")
    with process_group() as ranks:
        found = calibrate(story, **options)
    if ranks.first:
        found.summary()
    if ranks.first and out is not None:
        found.plot().savefig(out, dpi=150)
        typer.echo(f"Written to {out}")
    if not found.passed:
        raise typer.Exit(1)
