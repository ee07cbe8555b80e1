"""Matplotlib figures of mixtures, series, latent variables and posteriors, in one palette.

May import: posterior. Start reading at `fit.py`, the figure of a whole fit.
"""

from __future__ import annotations

import importlib
import warnings
from typing import Any

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
        message = f"{__name__}.{name} is now {_RENAMED[name]}; the old name is accepted until the next release"
        warnings.warn(message, FutureWarning, stacklevel=2)
        name = _RENAMED[name]
    if not name.startswith("_"):
        for module in ("fit", "latent", "posterior", "series"):
            members = vars(importlib.import_module(f"{__name__}.{module}"))
            if name in members["__all__"]:
                return members[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
