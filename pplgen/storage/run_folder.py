"""Run folders: tensors in safetensors, metadata in a JSON header, written atomically; no pickle."""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from pplgen.errors import InputError
from pplgen.storage import atomic, replacement
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
    "verify",
    "write",
    "write_new",
    "write_text",
]

HEADER = "header.json"
TENSORS = "parameters.safetensors"
DRAWS = "posterior.nc"
REPORT_FILES = ("report.html", "report.json")
RUN_FILES = (TENSORS, DRAWS, "fit.png", "warnings.log", *REPORT_FILES, HEADER)
"""Files of a run; the header is written last, since a directory without it contains no run."""


def check_vacant(directory: Path, *, force: bool) -> None:
    """Raise ``InputError`` where ``directory`` already contains a run (unless ``force``) or is not a directory."""
    try:
        is_file = directory.exists() and not directory.is_dir()
        has_run = (directory / HEADER).exists() or replacement.is_committed(directory)
    except OSError as error:
        raise InputError(f"{str(directory)!r} cannot be written: {error.strerror}") from None
    if is_file:
        raise InputError(f"{str(directory)!r} is a file; expected a new or existing directory")
    if has_run and not force:
        raise InputError(f"{str(directory)!r} already contains a run; give --force (force=True) or another directory")


@contextlib.contextmanager
def staged(directory: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield a temporary folder whose ``RUN_FILES`` replace those of ``directory`` at the end; removed on failure.

    Once on disk, they replace an existing run including its report, all by one rename. Other files in ``directory``
    are unchanged, also a report without a run; temporary files of killed processes are removed. The header gets the
    digests of all files.

    Raises
    ------
    InputError
        As for ``check_vacant``, or where the directory cannot be written, or another process writes it.
    """
    check_vacant(directory, force=force)
    created = atomic.missing_folders(directory)
    with contextlib.ExitStack() as stack:
        stack.callback(atomic.remove_empty, created)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            stack.enter_context(replacement.locked(directory))
            replacement.finish(directory, RUN_FILES)
            atomic.remove_unfinished(directory)
            folder = Path(tempfile.mkdtemp(prefix=atomic.UNFINISHED, dir=directory))
        except OSError as error:
            raise InputError(f"{str(directory)!r} cannot be written: {error.strerror}") from None
        try:
            yield folder
            _seal(folder)
            stale = [name for name in _files_to_replace(directory) if not (folder / name).exists()]
            replacement.commit(folder, directory, stale)
            replacement.finish(directory, RUN_FILES)
        except OSError as error:
            raise InputError(f"{str(directory)!r} cannot be written: {error.strerror or error}") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _seal(folder: Path) -> None:
    """Add the digests of all other files to a run's header."""
    if (folder / HEADER).exists():
        header = json.loads((folder / HEADER).read_text(encoding="utf-8"))
        others = [name for name in RUN_FILES if name not in (HEADER, TENSORS) and (folder / name).exists()]
        _write_header(folder, {**header, "files": {name: _digest(folder / name) for name in others}})


def _write_header(folder: Path, header: Mapping[str, Any]) -> None:
    """Write a header with its own digest."""
    text = json.dumps(with_digest(header), indent=2, allow_nan=False) + "\n"
    (folder / HEADER).write_text(text, encoding="utf-8")


def _files_to_replace(directory: Path) -> tuple[str, ...]:
    """Names of the files of an existing run; an incomplete run has no report yet."""
    if (directory / HEADER).exists():
        return RUN_FILES
    is_incomplete = (directory / TENSORS).exists()
    return tuple(name for name in RUN_FILES if name not in REPORT_FILES) if is_incomplete else ()


def write(folder: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors and header into a folder from ``staged``."""
    # save_file would make the file readable by its owner only
    content = save({name: value.detach().cpu().contiguous() for name, value in tensors.items()})
    (folder / TENSORS).write_bytes(content)
    _write_header(folder, {**header, "format": FORMAT, "parameters_sha256": _digest(folder / TENSORS)})


def check_new(path: Path) -> None:
    """Raise ``InputError`` where a file exists already or cannot be written, before a long computation."""
    try:
        exists = path.exists()
        if not exists:
            with tempfile.TemporaryFile(dir=path.parent):  # leaves no file
                pass
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be written: {error.strerror}") from None
    if exists:
        raise InputError(f"{str(path)!r} exists already; give the name of a new file")


def write_new(path: Path, text: str) -> None:
    """Write a new text file atomically; raises ``InputError`` as ``check_new`` does."""
    check_new(path)
    write_text(path, text)


def check_replaceable(path: Path) -> None:
    """Raise ``InputError`` where a path exists and is not a file: a rename would destroy it."""
    if path.exists() and not path.is_file():
        raise InputError(f"{str(path)!r} is not a file and cannot be replaced; give the name of a file")


def write_text(path: Path, text: str) -> None:
    """Write or replace a text file atomically.

    Raises
    ------
    InputError
        Where it cannot be written, or the path is a folder or a device.
    """
    check_replaceable(path)
    try:
        atomic.write_bytes(path, text.encode())
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be written: {error.strerror}") from None


def provenance() -> dict[str, Any]:
    """Return package versions and the current time, for the header of a run."""
    packages = {name: version(name) for name in ("pplgen", "torch", "pyro-ppl", "numpy")}
    versions = {"python": platform.python_version(), **packages}
    return {"versions": versions, "created": datetime.now(UTC).isoformat(timespec="seconds")}


def read(directory: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors and header of a run.

    Raises
    ------
    InputError
        Where the directory contains no run, or one of another version, truncated or altered.
    """
    _finish_replacement(directory)
    try:
        header = read_header(directory / HEADER)
        digest = _digest(directory / TENSORS)
    except FileNotFoundError as error:
        name = Path(error.filename).name
        raise InputError(f"{str(directory)!r} contains no run: there is no {name}") from None
    except OSError as error:
        raise InputError(f"{str(directory)!r} cannot be read: {error}") from None
    if header["parameters_sha256"] != digest:
        raise InputError(f"{str(directory / TENSORS)!r} is not the file that its header describes; fit again")
    try:
        return load_file(directory / TENSORS), header
    except SafetensorError as error:
        raise InputError(f"{str(directory / TENSORS)!r} cannot be read: {error}") from None


def verify(directory: Path, header: Mapping[str, Any], names: Iterable[str] = RUN_FILES) -> None:
    """Raise ``InputError`` where files of a run are not those that its header describes; some may be absent."""
    for name, digest in header.get("files", {}).items():
        path = directory / name
        if name in names and path.exists() and _digest(path) != digest:
            raise InputError(f"{str(path)!r} is not the file that its header describes; restore it, or fit again")


def _finish_replacement(directory: Path) -> None:
    """Finish the replacement of a run by a process that was killed."""
    if replacement.is_committed(directory):
        try:
            with replacement.locked(directory):
                replacement.finish(directory, RUN_FILES)
        except OSError as error:
            message = f"{str(directory)!r}: a new run was written, and its files cannot be moved into their places"
            raise InputError(f"{message}: {error.strerror}") from None


def _digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    if path.exists() and not path.is_file():
        raise InputError(f"{str(path)!r} is not a file")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
