"""Draws from a trained pair: densities, importance weights, predictions, relabelling, the DataTree.

May import: inference. Start reading at `draws.py`.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """Import ``to_datatree`` lazily."""
    if name == "to_datatree":
        from pplgen.posterior.datatree import to_datatree

        return to_datatree
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
