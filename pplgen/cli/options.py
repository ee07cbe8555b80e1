"""Arguments and options that several commands share; torch is imported once a file is to be written."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = [
    "DATA_HELP",
    "DataArgument",
    "IgnoreOption",
    "OnlyOption",
    "OutFileOption",
    "RunArgument",
    "SeedOption",
    "SeriesOption",
    "StoryOption",
    "chosen_columns",
]

DATA_HELP = (
    "A .csv, .tsv, .parquet, .npy or .npz file of numbers, one row each, or a data set's name: faithful; mnist and "
    "mnist-test, downloaded once; with 'pip install pplgen[data]' also digits, digits-unit (from 0 to 1), wine, iris, "
    "breast_cancer and nile."
)


def _new_file(path: Path | None) -> Path | None:
    """Refuse a file that cannot be written, before anything is computed for it."""
    if path is not None:
        from pplgen.storage import run_folder as store

        store.check_new(path)
    return path


RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Directory that 'pplgen fit' wrote.")]
DataArgument = Annotated[str, typer.Argument(metavar="DATA", help=DATA_HELP)]
SeedOption = Annotated[int, typer.Option(min=0, help="Seed of every random number.")]
OutFileOption = Annotated[
    Path | None,
    typer.Option("--out", metavar="FILE", help="New CSV file to write instead of the terminal.", callback=_new_file),
]
SeriesOption = Annotated[
    str | None, typer.Option("--series", metavar="COLUMN", help="Column that tells the series of a table apart.")
]
OnlyOption = Annotated[
    str | None, typer.Option("--only", metavar="COLUMNS", help="Columns to read, with commas between.  [default: all]")
]
IgnoreOption = Annotated[
    str | None, typer.Option("--ignore", metavar="COLUMNS", help="Columns to leave out, such as text and dates.")
]
StoryOption = Annotated[
    str | None,
    typer.Option(
        metavar="FILE.py:CLASS",
        help="Your own story, where the run is of one: its file is executed, and nothing that the run names.",
    ),
]


def chosen_columns(only: str | None, ignore: str | None) -> dict[str, Any]:
    """Return ``--only`` and ``--ignore`` as ``load_data`` and ``load_series`` take them."""
    return {"only": _names_in(only) or None, "ignore": _names_in(ignore)}


def _names_in(text: str | None) -> list[str]:
    """Read names with commas between them, as a line of a CSV file; none from ``None``."""
    names = next(csv.reader([text or ""], skipinitialspace=True), [])
    return [name.strip() for name in names]
