"""The one error that a user's mistake raises."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

__all__ = ["DataWarning", "InputError", "Interrupted", "first_line", "near_names", "printable"]


class InputError(ValueError):
    """A mistake in what the user gave.

    Its message is one sentence that names what was given, what was expected and where. The command line prints it
    without a traceback and ends with exit code 2.
    """


class Interrupted(InputError):
    """An interrupt came before there was a fit to return; what a checkpoint holds stays."""


class DataWarning(UserWarning):
    """Something in the data that is allowed, and that the user may want to change."""


def first_line(error: Exception) -> str:
    """Return the first line of what an error says."""
    return str(error).strip().partition("\n")[0]


def printable(text: str) -> str:
    """Return text with ``?`` for control characters, which a terminal would obey."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "?", text)


def near_names(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'a' or 'b'?"`` for the known names close to ``name``, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
