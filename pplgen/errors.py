"""The exception and warning classes for user input, and helpers for their messages."""

from __future__ import annotations

import difflib
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

__all__ = [
    "DataWarning",
    "InputError",
    "Interrupted",
    "first_line",
    "near_names",
    "printable",
    "renamed",
    "warn_renamed",
]


class InputError(ValueError):
    """Invalid user input.

    The message is one sentence that states what was given, what was expected and where. The command line prints it
    without a traceback and exits with code 2.
    """


class Interrupted(InputError):
    """Interrupted before there was a fit to return; checkpoints on disk are kept."""


class DataWarning(UserWarning):
    """The data are valid, but the user may want to change them."""


def first_line(error: Exception) -> str:
    """Return the first line of an error message."""
    return str(error).strip().partition("\n")[0]


def printable(text: str) -> str:
    """Replace control characters, which a terminal would interpret, by ``?``."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "?", text)


def near_names(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'a' or 'b'?"`` for the known names close to ``name``, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


def warn_renamed(old: str, new: str) -> None:
    """Warn the caller's caller that a name has changed and that the old one goes with the next release."""
    message = f"{old} is now {new}; the old name is accepted until the next release"
    warnings.warn(message, FutureWarning, stacklevel=3)


def renamed(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a module's ``__getattr__`` that accepts the former ``names`` of its members, with a ``FutureWarning``."""

    def getattr_of_module(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warn_renamed(f"{module}.{name}", names[name])
        return getattr(sys.modules[module], names[name])

    return getattr_of_module
