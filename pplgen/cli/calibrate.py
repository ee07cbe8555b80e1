"""The ``calibrate`` command; torch is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import pplgen
from pplgen.cli.shared_options import DATA_HELP, SeedOption
from pplgen.cli.story_arguments import StoryGroup

__all__ = ["calibrate_app", "calibration_options", "report_calibration"]

calibrate_app = typer.Typer(
    cls=StoryGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Run simulation-based calibration of a story: pplgen calibrate STORY. Exit code 1 if ranks are not uniform.",
)


def calibration_options(
    *,
    num_datasets: Annotated[
        int, typer.Option("-n", "--num-datasets", min=10, help="Number of simulated data sets.")
    ] = 200,
    num_rows: Annotated[
        int | None, typer.Option(min=1, help="Rows per data set.  [default: 100; with --posterior as in DATA]")
    ] = None,
    num_features: Annotated[
        int | None, typer.Option("--features", min=1, help="Columns per data set.  [default: 2, or those of DATA]")
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="DATA", help=f"Data from which data-dependent priors are set. {DATA_HELP}")
    ] = None,
    posterior: Annotated[
        bool, typer.Option(help="Fit DATA, simulate rows from the posterior, and refit them together with DATA.")
    ] = False,
    seed: SeedOption = 0,
    restarts: Annotated[int, typer.Option(min=1, help="Restarts per fit; the one with the best ELBO is kept.")] = 1,
    steps: Annotated[int, typer.Option(min=1, help="Maximum number of steps per fit.")] = 2000,
    learning_rate: Annotated[float, typer.Option(help="Adam's initial learning rate; decays to a twentieth.")] = 0.05,
    draws: Annotated[int, typer.Option(min=9, help="Posterior draws among which each true value is ranked.")] = 199,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="New image file to write, .png, .svg or .pdf.  [default: none]")
    ] = None,
) -> None:
    """Declare the options shared by every story's ``calibrate``; never called."""


def report_calibration(
    story_class: Any,
    config: dict[str, Any],
    *,
    out: Path | None,
    num_features: int | None,
    data: str | None,
    posterior: bool,
    **options: Any,
) -> None:
    """Calibrate a story, print the table, save the figure, and exit with code 1 if ranks are not uniform."""
    from pplgen.calibration.calibrate import calibrate
    from pplgen.data.series import load_series
    from pplgen.data.table import load_data
    from pplgen.distributed.ranks import process_group
    from pplgen.errors import InputError
    from pplgen.storage import run_folder

    if out is not None:
        run_folder.check_new(out)
    if out is not None and out.suffix not in (".png", ".svg", ".pdf"):
        raise InputError(f"--out {out}: expected a file name ending in .png, .svg or .pdf")
    if posterior and data is None:
        raise InputError("--posterior: expected --data DATA, to which the story is fitted")
    rows = None if data is None else load_series(data) if story_class.takes_series else load_data(data)
    story = story_class(**config, num_features=num_features or (2 if rows is None else len(rows.columns)))
    with process_group() as ranks:
        if posterior:
            fit = pplgen.fit(story, rows, seed=options["seed"])
            result = calibrate(fit, **options)
        else:
            result = calibrate(story, rows, **options)
    if ranks.first:
        result.summary()
    if ranks.first and out is not None:
        result.plot().savefig(out, dpi=150)
        typer.echo(f"Written to {out}")
    if not result.passed:
        raise typer.Exit(1)
