"""Paths of data files: what they name, and one sentence where they cannot be read."""

from __future__ import annotations

import importlib
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pplgen.errors import InputError, first_line, near_names

__all__ = ["STDIN", "as_input_error", "import_optional", "require_file", "suffix_of", "table_name", "with_home"]

STDIN = "-"
"""What stands for the standard input."""

_KINDS = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket"}
_KINDS |= {stat.S_ISCHR: "a device", stat.S_ISBLK: "a device"}


def with_home(path: str | Path) -> Path:
    """Return a path whose ``~`` is the home directory."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"{str(path)!r}: {first_line(error)}") from None


def suffix_of(path: Path) -> str:
    """Return a file's suffix in small letters, ``.csv.gz`` for a compressed one."""
    suffix = path.suffix.lower()
    return f"{Path(path.stem).suffix.lower()}{suffix}" if suffix == ".gz" else suffix


def table_name(path: Path) -> str:
    """Return a file's name without its suffix."""
    return path.name.removesuffix(path.name[len(path.name) - len(suffix_of(path)) :]) or path.stem


def require_file(path: Path, names: Iterable[str] = ()) -> None:
    """Raise ``InputError`` unless a path is a file, suggesting similar names in its folder and ``names``."""
    folder = path.parent
    try:
        if path.is_file():
            return
        if path.is_symlink() and not path.exists():
            raise InputError(
                f"{str(path)!r}: a link to {str(path.readlink())!r}, which does not exist; expected a file"
            )
        if path.exists():
            kind = next((kind for test, kind in _KINDS.items() if test(path.stat().st_mode)), "no regular file")
            stdin = f"; {STDIN!r} reads the standard input" if kind in ("a pipe", "a device") else ""
            raise InputError(f"{str(path)!r}: this is {kind}; expected a file{stdin}")
        siblings = [str(folder / entry.name) for entry in folder.iterdir()] if folder.is_dir() else []
    except OSError as error:
        raise InputError(f"{str(path)!r}: cannot be read: {error.strerror}") from None
    alternatives = ", ".join(names)
    expected = f"expected a file or one of {alternatives}" if alternatives else "expected a file"
    raise InputError(f"{str(path)!r}: there is no such file; {expected}{near_names(str(path), [*names, *siblings])}")


@contextmanager
def as_input_error(path: Path | str, kind: str, *errors: type[Exception]) -> Iterator[None]:
    """Convert a library's errors to an ``InputError``: the file cannot be read or is not of the expected kind."""
    try:
        yield
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{str(path)!r}: cannot be read: {first_line(error)}") from None
    except errors as error:
        raise InputError(f"{str(path)!r}: not {kind}: {first_line(error) or type(error).__name__}") from None


def import_optional(module: str, what: str, extra: str = "data") -> Any:
    """Import an optional package; the error message gives the command to install it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError(f"{what} needs {module.partition('.')[0]}: pip install 'pplgen[{extra}]'") from None
