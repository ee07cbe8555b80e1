"""What docstrings leave to the reader: references become lists, and a doi becomes a link."""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

DOI = re.compile(r"\bdoi:(10\.\S+[\w)])")
YEAR = re.compile(r"\(\d{4}\)")
"""Of each reference, on its first line."""


def _list_references(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Put a bullet before each line that starts a reference; called before the sections are read."""
    inside = False
    for place, line in enumerate(lines):
        if place and re.fullmatch(r"-{3,}", line.strip()):
            inside = lines[place - 1].strip() == "References"
        elif inside and line.strip():
            mark = "- " if YEAR.search(line) else "  "
            lines[place] = mark + DOI.sub(r"`doi:\1 <https://doi.org/\1>`__", line)


def setup(app: Sphinx) -> dict[str, Any]:
    """Heed every docstring."""
    app.connect("autodoc-process-docstring", _list_references, priority=400)
    return {"parallel_read_safe": True}
