"""Files that are whole: written beside their place, on the disk before they move into it, never through a link."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from pathlib import Path

__all__ = ["UNFINISHED", "missing_folders", "move", "remove_empty", "remove_unfinished", "sync", "write_bytes"]

UNFINISHED = ".unfinished-"
"""What the name of everything starts with that is not whole yet."""


def write_bytes(path: Path, content: bytes, *, previous: Path | None = None) -> None:
    """Write a file whole, in the place of one that may be there; on failure that one stays as it was.

    Parameters
    ----------
    path
        Its place.
    content
        All of it.
    previous
        Where the one that was there goes; ``None`` for nowhere.

    Raises
    ------
    OSError
        Where it cannot be written, such as on a full disk.
    """
    unfinished = path.with_name(f"{UNFINISHED}{secrets.token_hex(8)}-{path.name}")
    try:
        with unfinished.open("xb") as file:  # a file of its own: x follows no link that waits under the name
            file.write(content)
        sync(unfinished)
        if previous is not None and path.exists():
            os.replace(path, previous)
        os.replace(unfinished, path)
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
    sync(path.parent)


def move(unfinished: Path, path: Path) -> None:
    """Move a file into its place, in the same file system, once its content is on the disk."""
    sync(unfinished)
    os.replace(unfinished, path)


def sync(path: Path) -> None:
    """Return once a file's content, or a folder's list of names, is on the disk."""
    folder = path.is_dir()
    if folder and os.name == "nt":  # which opens none
        return
    descriptor = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (folder and error.errno in (errno.EINVAL, errno.ENOTSUP)):  # some file systems sync no folders
            raise
    finally:
        os.close(descriptor)


def remove_unfinished(folder: Path, name: str = "") -> None:
    """Remove what killed processes left unfinished in a folder: of the file ``name``, or all of it."""
    for left in folder.glob(f"{UNFINISHED}*{name}"):
        with contextlib.suppress(OSError):
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


def missing_folders(folder: Path) -> list[Path]:
    """Return a folder and those above it that are not there, the deepest first."""
    return [each for each in (folder, *folder.parents) if not each.exists()]


def remove_empty(folders: list[Path]) -> None:
    """Remove folders that are empty, in this order."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()
