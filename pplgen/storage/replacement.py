"""Replace several files of a folder at once, by one rename; whoever comes after a killed process finishes the rest.

New files are written into a temporary folder inside. Renaming it to ``COMMITTED`` is the moment at which they replace
the old ones: before it, the old files are untouched; after it, ``finish`` moves the new ones into their places, also in
a later process.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from pplgen.errors import InputError
from pplgen.storage import atomic

try:
    import fcntl
except ImportError:  # Windows, where concurrent writers of a folder are not detected
    fcntl = None  # type: ignore[assignment]

__all__ = ["COMMITTED", "commit", "finish", "is_committed", "locked"]

COMMITTED = ".committed"
"""Folder of complete new files that are not all in their places yet."""
_REMOVED = ".removed"
"""Suffix of an empty file there, for a file that is to be removed."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from writing the folder; the lock ends with the process.

    Raises
    ------
    InputError
        Where another process writes it.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{str(folder)!r} is being written by another process; give another directory") from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(descriptor)


def commit(new: Path, folder: Path, removed: Sequence[str]) -> None:
    """Replace files of a folder by those in the folder ``new`` inside it, and remove others, by one rename."""
    for name in removed:
        (new / f"{name}{_REMOVED}").touch()
    for path in new.iterdir():
        atomic.sync(path)
    atomic.sync(new)
    os.replace(new, folder / COMMITTED)
    atomic.sync(folder)


def is_committed(folder: Path) -> bool:
    """Whether new files of a folder wait to be moved into their places; a link to such a folder does not count."""
    path = folder / COMMITTED
    return os.path.isdir(path) and not os.path.islink(path)  # false, not an error, for a name that is too long


def finish(folder: Path, names: Sequence[str]) -> None:
    """Move committed files of these names into their places, in this order; none of other names is touched."""
    if not is_committed(folder):
        return
    for name in names:
        new, place = folder / COMMITTED / name, folder / name
        if new.exists():
            os.replace(new, place)
        elif new.with_name(f"{name}{_REMOVED}").exists():
            place.unlink(missing_ok=True)
    atomic.sync(folder)
    shutil.rmtree(folder / COMMITTED)
