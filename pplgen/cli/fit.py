"""What the command that fits is given: a directory to write, and data to read; torch is imported once it reads."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from pplgen.cli.options import chosen_columns
from pplgen.errors import DataWarning, InputError

__all__ = ["check_place", "read_data"]


def check_place(directory: Path, *, force: bool, resume: bool) -> bool:
    """Refuse a directory that holds a run, unless that is what is wanted; return whether a killed one is there."""
    from pplgen.storage import checkpoint
    from pplgen.storage import run_folder as store

    kept = checkpoint.exists(directory)
    store.check_vacant(directory, force=force or (resume and kept))
    if resume and not kept:
        message = f"{str(directory)!r} holds no checkpoint yet, so the fit starts from the beginning"
        warnings.warn(message, DataWarning, stacklevel=2)
    if kept and not (resume or force):
        raise InputError(
            f"{str(directory)!r} holds a killed run; continue it with --resume, or start over with --force"
        )
    return kept


def read_data(story_class: Any, data: str, stream: bool, series: str | None, options: dict[str, Any]) -> Any:
    """Read what a story learns from; what concerns columns leaves ``options``, of rows that stay in a file nothing."""
    from pplgen.data.series import load_series
    from pplgen.data.streams import stream_data
    from pplgen.data.table import load_data

    chosen = chosen_columns(options.pop("only"), options.pop("ignore"))
    if story_class.takes_series:
        given = {"stream": stream, "labels": options.pop("labels"), "weights": options.pop("weights")}
        if unfit := [f"--{name}" for name, value in given.items() if value]:
            raise InputError(f"{unfit[0]}: {story_class.__name__} reads whole series and takes no such option")
        return load_series(data, by=series, **chosen)
    if series is not None:
        raise InputError(f"--series {series}: the rows of {story_class.__name__} are no series")
    if stream:
        if unfit := [f"--{name}" for name, value in chosen.items() if value]:
            raise InputError(f"{unfit[0]}: a stream takes all columns; write a file of those that are wanted")
        return stream_data(data)
    return load_data(data, **chosen, labels=options.pop("labels"), weights=options.pop("weights"))
