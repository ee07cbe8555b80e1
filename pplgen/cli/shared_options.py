"""Arguments and options shared by several commands; torch is imported when a file is to be written."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = [
    "DATA_HELP",
    "DataArgument",
    "DtypeOption",
    "HeaderOption",
    "IdOption",
    "IgnoreOption",
    "OnlyOption",
    "OutFileOption",
    "RunArgument",
    "SeedOption",
    "SeriesOption",
    "StoryOption",
    "column_arguments",
    "split_names",
]

DATA_HELP = (
    "A numeric table: .csv, .tsv, .txt (also .gz), .jsonl, .xlsx, .parquet, .feather, .npy or .npz; - for text from "
    "the standard input; or the name of a data set: faithful; mnist and mnist-test, downloaded once; with 'pip install "
    "pplgen[data]' also digits, digits-unit (from 0 to 1), wine, iris, breast_cancer and nile."
)


def _new_file(path: Path | None) -> Path | None:
    """Refuse a file that cannot be written, before anything is computed."""
    if path is not None:
        from pplgen.storage import run_folder

        run_folder.check_new(path)
    return path


RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Run directory written by 'pplgen fit'.")]
DataArgument = Annotated[str, typer.Argument(metavar="DATA", help=DATA_HELP)]
SeedOption = Annotated[int, typer.Option(min=0, help="Random seed.")]
OutFileOption = Annotated[
    Path | None,
    typer.Option(
        "--out", metavar="FILE", help="New CSV file to write.  [default: standard output]", callback=_new_file
    ),
]
SeriesOption = Annotated[
    str | None, typer.Option("--series", metavar="COLUMN", help="Column that identifies the series of each row.")
]
OnlyOption = Annotated[
    str | None, typer.Option("--only", metavar="COLUMNS", help="Columns to read, comma-separated.  [default: all]")
]
IgnoreOption = Annotated[
    str | None, typer.Option("--ignore", metavar="COLUMNS", help="Columns to leave out, comma-separated.")
]
IdOption = Annotated[
    str | None,
    typer.Option("--id", metavar="COLUMNS", help="Columns that identify rows: no data, but in the output."),
]
HeaderOption = Annotated[
    bool | None,
    typer.Option("--header/--no-header", help="Whether the first line of text is a header.  [default: detected]"),
]
DtypeOption = Annotated[
    str | None, typer.Option("--dtype", help="float32 or float64.  [default: float32, unless it loses what data say]")
]
StoryOption = Annotated[
    str | None,
    typer.Option(
        metavar="FILE.py:CLASS",
        help="Class of your own story, if the run is of one; this file is executed, never code named by the run.",
    ),
]


def column_arguments(only: str | None, ignore: str | None) -> dict[str, Any]:
    """Return ``--only`` and ``--ignore`` as arguments of ``load_data`` and ``load_series``."""
    return {"only": split_names(only) or None, "ignore": split_names(ignore)}


def split_names(text: str | None) -> list[str]:
    """Split comma-separated names, quoted as in a CSV file; ``None`` gives none, and no text the empty name."""
    if text is None:
        return []
    return [name.strip() for name in next(csv.reader([text], skipinitialspace=True), [""])]
