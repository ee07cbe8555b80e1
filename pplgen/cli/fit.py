"""The run directory and the data of the ``fit`` command; torch is imported when data are read."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from pplgen.cli.shared_options import column_arguments
from pplgen.errors import DataWarning, InputError

__all__ = ["check_run_directory", "read_data"]


def check_run_directory(directory: Path, *, force: bool, resume: bool) -> bool:
    """Refuse a directory that holds a run unless ``force`` or ``resume``; return whether it holds a checkpoint."""
    from pplgen.storage import checkpoint, run_folder

    has_checkpoint = checkpoint.exists(directory)
    run_folder.check_vacant(directory, force=force or (resume and has_checkpoint))
    if resume and not has_checkpoint:
        message = f"{str(directory)!r} holds no checkpoint yet, so the fit starts from the beginning"
        warnings.warn(message, DataWarning, stacklevel=2)
    if has_checkpoint and not (resume or force):
        raise InputError(
            f"{str(directory)!r} holds an interrupted run; continue it with --resume, or start over with --force"
        )
    return has_checkpoint


def read_data(story_class: Any, data: str, stream: bool, series: str | None, options: dict[str, Any]) -> Any:
    """Read the training data; options used here are removed from ``options``."""
    from pplgen.data.series import load_series
    from pplgen.data.streams import stream_data
    from pplgen.data.table import load_data

    columns = column_arguments(options.pop("only"), options.pop("ignore"))
    if story_class.takes_series:
        requested = {"stream": stream, "labels": options.pop("labels"), "weights": options.pop("weights")}
        if unsupported := [f"--{name}" for name, value in requested.items() if value]:
            message = f"{unsupported[0]}: {story_class.__name__} is a story for series and does not accept this option"
            raise InputError(message)
        return load_series(data, by=series, **columns)
    if series is not None:
        raise InputError(f"--series {series}: {story_class.__name__} is not a story for series")
    if stream:
        if unsupported := [f"--{name}" for name, value in columns.items() if value]:
            raise InputError(f"{unsupported[0]}: a stream reads all columns; write a file with only those to be fitted")
        return stream_data(data)
    return load_data(data, **columns, labels=options.pop("labels"), weights=options.pop("weights"))
