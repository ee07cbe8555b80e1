"""Names of columns and labels as matplotlib shows them."""

from __future__ import annotations

from typing import Any

__all__ = ["literal"]


def literal(name: Any) -> str:
    """Return a name whose dollar signs matplotlib draws, instead of reading a formula between two of them."""
    return str(name).replace("$", r"\$")
