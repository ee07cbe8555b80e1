"""The one error that a user's mistake raises."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["InputError", "near_names"]


class InputError(ValueError):
    """A mistake in what the user gave.

    Its message is one sentence that names what was given, what was expected and where. The command line prints it
    without a traceback and ends with exit code 2.
    """


def near_names(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'a' or 'b'?"`` for the known names close to ``name``, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
