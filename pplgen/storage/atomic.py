"""Atomic file writes: write to a temporary file in the same folder, sync, then rename; links are not followed."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from pathlib import Path

__all__ = ["UNFINISHED", "missing_folders", "remove_empty", "remove_unfinished", "sync", "write_bytes"]

UNFINISHED = ".unfinished-"
"""Name prefix of temporary files and folders."""


def write_bytes(path: Path, content: bytes, *, previous: Path | None = None) -> None:
    """Write or replace a file atomically; on failure an existing file is unchanged.

    Parameters
    ----------
    path
        File to write.
    content
        Complete content of the file.
    previous
        Path to which an existing file is moved; ``None`` to discard it.

    Raises
    ------
    OSError
        Where the file cannot be written, such as on a full disk.
    """
    unfinished = path.with_name(f"{UNFINISHED}{secrets.token_hex(8)}-{path.name}")
    try:
        with unfinished.open("xb") as file:  # mode x does not follow an existing link of that name
            file.write(content)
        sync(unfinished)
        if previous is not None and path.exists():
            os.replace(path, previous)
        os.replace(unfinished, path)
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
    sync(path.parent)


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's entries, to disk."""
    folder = path.is_dir()
    if folder and os.name == "nt":  # Windows opens no folders
        return
    descriptor = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (folder and error.errno in (errno.EINVAL, errno.ENOTSUP)):  # some file systems cannot sync folders
            raise
    finally:
        os.close(descriptor)


def remove_unfinished(folder: Path, name: str = "") -> None:
    """Remove temporary files that killed processes left in a folder: those of the file ``name``, or all."""
    for leftover in folder.glob(f"{UNFINISHED}*{name}"):
        with contextlib.suppress(OSError):
            if leftover.is_dir() and not leftover.is_symlink():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)


def missing_folders(folder: Path) -> list[Path]:
    """Return those of a folder and its parents that do not exist, deepest first."""
    return [each for each in (folder, *folder.parents) if not each.exists()]


def remove_empty(folders: list[Path]) -> None:
    """Remove those of the folders that are empty, in this order."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()
