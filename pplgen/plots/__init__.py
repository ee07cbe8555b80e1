"""Matplotlib figures of mixtures, series, latent variables and posteriors, in one palette.

May import: posterior. Start reading at `fit.py`, the figure of a whole fit.
"""

from __future__ import annotations

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    """Import a picture from its file when it is first asked for."""
    if not name.startswith("_"):
        for module in ("fit", "latent", "posterior", "series"):
            members = vars(importlib.import_module(f"{__name__}.{module}"))
            if name in members["__all__"]:
                return members[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
