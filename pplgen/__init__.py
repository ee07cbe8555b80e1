"""Generative models as Pyro model/guide pairs, and the toolkit that makes such pairs worth trusting and fast."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pplgen.calibrating import calibrate
    from pplgen.calibration import Calibration
    from pplgen.comparing import compare
    from pplgen.data import Table, load_data
    from pplgen.errors import InputError
    from pplgen.fitted import Fit
    from pplgen.fitting import fit
    from pplgen.loading import load
    from pplgen.series import load_series
    from pplgen.story import Story
    from pplgen.streams import stream_data
    from pplgen.transforms import binarise, keep_every, mask_entries, mask_top, redraw_pixels, rescale

__version__ = "0.1.0"

# in a clone the collection lies beside the toolkit, where only an editable installation would look for it
_CLONE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if os.path.isfile(os.path.join(_CLONE, "models", "cards.toml")):
    __path__.append(_CLONE)

# torch, Pyro and ArviZ take seconds to import, so each public name is fetched when it is first used
_HOMES = {
    "Calibration": "pplgen.calibration",
    "Fit": "pplgen.fitted",
    "InputError": "pplgen.errors",
    "Story": "pplgen.story",
    "Table": "pplgen.data",
    "binarise": "pplgen.transforms",
    "calibrate": "pplgen.calibrating",
    "compare": "pplgen.comparing",
    "fit": "pplgen.fitting",
    "keep_every": "pplgen.transforms",
    "load": "pplgen.loading",
    "load_data": "pplgen.data",
    "load_series": "pplgen.series",
    "mask_entries": "pplgen.transforms",
    "mask_top": "pplgen.transforms",
    "redraw_pixels": "pplgen.transforms",
    "rescale": "pplgen.transforms",
    "stream_data": "pplgen.streams",
}

__all__ = [
    "Calibration",
    "Fit",
    "InputError",
    "Story",
    "Table",
    "binarise",
    "calibrate",
    "compare",
    "fit",
    "keep_every",
    "load",
    "load_data",
    "load_series",
    "mask_entries",
    "mask_top",
    "redraw_pixels",
    "rescale",
    "stream_data",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its module."""
    if name not in _HOMES:
        raise AttributeError(f"module 'pplgen' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Public names, fetched or not."""
    return sorted({*globals(), *__all__})
