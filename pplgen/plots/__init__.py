"""Matplotlib figures of mixtures, series, latent variables and posteriors, in one palette.

May import: posterior. Start reading at `fit.py`, the figure of a whole fit.
"""

from __future__ import annotations

import importlib
from typing import Any

from pplgen.errors import warn_renamed

_RENAMED = {
    "decoded_rows": "example_rows",
    "latent_means": "encoded_rows",
    "picture": "plot_fit",
    "plot_run": "plot_training",
    "save_picture": "save_figure",
    "shows_mixture": "is_gaussian_mixture",
}
"""Functions of the last release that have been renamed."""


def __getattr__(name: str) -> Any:
    """Import a plotting function on first access."""
    if name in _RENAMED:
        warn_renamed(f"{__name__}.{name}", _RENAMED[name])
        name = _RENAMED[name]
    if not name.startswith("_"):
        for module in ("fit", "latent", "posterior", "series"):
            members = vars(importlib.import_module(f"{__name__}.{module}"))
            if name in members["__all__"]:
                return members[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
