"""Tensors in safetensors and facts in a JSON header, written beside their place and moved into it; never a pickle."""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from pplgen.errors import InputError
from pplgen.storage import atomic
from pplgen.storage.header import FORMAT, read_header, with_digest

__all__ = [
    "DRAWS",
    "HEADER",
    "RUN_FILES",
    "TENSORS",
    "check_new",
    "check_replaceable",
    "check_vacant",
    "provenance",
    "read",
    "staged",
    "write",
    "write_new",
    "write_text",
]

HEADER = "header.json"
TENSORS = "parameters.safetensors"
DRAWS = "posterior.nc"
REPORT_FILES = ("report.html", "report.json")
RUN_FILES = (TENSORS, DRAWS, "fit.png", "warnings.log", *REPORT_FILES, HEADER)
"""What a run may consist of; the header comes last, for a directory without it holds no run."""


def check_vacant(directory: Path, *, force: bool) -> None:
    """Raise ``InputError`` where ``directory`` holds a run already (unless ``force``) or is no directory."""
    try:
        taken, held = directory.exists() and not directory.is_dir(), (directory / HEADER).exists()
    except OSError as error:
        raise InputError(f"{str(directory)!r} cannot be written: {error.strerror}") from None
    if taken:
        raise InputError(f"{str(directory)!r} is a file; expected a directory, new or old")
    if held and not force:
        raise InputError(f"{str(directory)!r} already holds a run; give --force (force=True) or another directory")


@contextlib.contextmanager
def staged(directory: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield an empty folder whose ``RUN_FILES`` move into ``directory`` at the end, or vanish if anything fails.

    They take the place of a run that was there, its report and all, once they are on the disk. Other files in
    ``directory`` stay as they are, a report beside no run among them, but for what a killed process left unfinished.

    Raises
    ------
    InputError
        Where ``check_vacant`` does, or the directory cannot be written.
    """
    check_vacant(directory, force=force)
    stale = _of_older_run(directory)
    made = atomic.missing_folders(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        atomic.remove_unfinished(directory)
        folder = Path(tempfile.mkdtemp(prefix=atomic.UNFINISHED, dir=directory))
    except OSError as error:
        atomic.remove_empty(made)
        raise InputError(f"{str(directory)!r} cannot be written: {error.strerror}") from None
    try:
        yield folder
        for name in RUN_FILES:
            if name == HEADER:  # which says that all the others are there
                atomic.sync(directory)
            if (folder / name).exists():
                atomic.move(folder / name, directory / name)
            elif name in stale:
                (directory / name).unlink(missing_ok=True)
        atomic.sync(directory)
    except OSError as error:
        raise InputError(f"{str(directory)!r} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        atomic.remove_empty(made)


def _of_older_run(directory: Path) -> tuple[str, ...]:
    """Names of what goes with a run that is replaced; of one that was cut short, which has no report yet, the rest."""
    if (directory / HEADER).exists():
        return RUN_FILES
    cut_short = (directory / TENSORS).exists()
    return tuple(name for name in RUN_FILES if name not in REPORT_FILES) if cut_short else ()


def write(folder: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors and header into a folder that ``staged`` yields."""
    # save_file would leave the file readable by its owner alone
    content = save({name: value.detach().cpu().contiguous() for name, value in tensors.items()})
    (folder / TENSORS).write_bytes(content)
    facts = with_digest({**header, "format": FORMAT, "parameters_sha256": _digest(folder / TENSORS)})
    (folder / HEADER).write_text(json.dumps(facts, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def check_new(path: Path) -> None:
    """Raise ``InputError`` where a file is there already, or none can be written: before what it is for takes long."""
    try:
        taken = path.exists()
        if not taken:
            with tempfile.TemporaryFile(dir=path.parent):  # leaves nothing
                pass
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be written: {error.strerror}") from None
    if taken:
        raise InputError(f"{str(path)!r} exists already; give the name of a new file")


def write_new(path: Path, text: str) -> None:
    """Write a text file whole, in a place where there is none yet; ``InputError`` as ``check_new``."""
    check_new(path)
    write_text(path, text)


def check_replaceable(path: Path) -> None:
    """Raise ``InputError`` where a path is taken by what is no file: moving a file there would destroy it."""
    if path.exists() and not path.is_file():
        raise InputError(f"{str(path)!r} is no file that could be replaced; give the name of a file")


def write_text(path: Path, text: str) -> None:
    """Write a text file whole, in the place of one that may be there.

    Raises
    ------
    InputError
        Where it cannot be written, or what is there is a folder or a device.
    """
    check_replaceable(path)
    try:
        atomic.write_bytes(path, text.encode())
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be written: {error.strerror}") from None


def provenance() -> dict[str, Any]:
    """Return what wrote a run, and when."""
    packages = {name: version(name) for name in ("pplgen", "torch", "pyro-ppl", "numpy")}
    versions = {"python": platform.python_version(), **packages}
    return {"versions": versions, "created": datetime.now(UTC).isoformat(timespec="seconds")}


def read(directory: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors and header back.

    Raises
    ------
    InputError
        Where the directory holds no run, or one that is of another version, cut short or altered.
    """
    try:
        header = read_header(directory / HEADER)
        given = _digest(directory / TENSORS)
    except FileNotFoundError as error:
        name = Path(error.filename).name
        raise InputError(f"{str(directory)!r} holds no run: there is no {name} in it") from None
    except OSError as error:
        raise InputError(f"{str(directory)!r} cannot be read: {error}") from None
    if header["parameters_sha256"] != given:
        raise InputError(f"{str(directory / TENSORS)!r} is not the file that its header describes; fit again")
    try:
        return load_file(directory / TENSORS), header
    except SafetensorError as error:
        raise InputError(f"{str(directory / TENSORS)!r} cannot be read: {error}") from None


def _digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    if path.exists() and not path.is_file():
        raise InputError(f"{str(path)!r} is not a file")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
