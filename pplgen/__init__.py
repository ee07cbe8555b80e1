"""Generative models as Pyro model/guide pairs, and the toolkit that makes such pairs worth trusting and fast."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import os
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pplgen.calibration.calibrate import calibrate
    from pplgen.calibration.result import Calibration
    from pplgen.data.series import load_series
    from pplgen.data.streams import stream_data
    from pplgen.data.table import Table, load_data
    from pplgen.data.transforms import binarise, keep_every, mask_entries, mask_top, redraw_pixels, rescale
    from pplgen.errors import InputError
    from pplgen.fitting.compare import compare
    from pplgen.fitting.cross_validation import k_fold
    from pplgen.fitting.fit import fit
    from pplgen.fitting.load import load
    from pplgen.fitting.result import Fit
    from pplgen.fitting.stacking import stack
    from pplgen.story.base import Story

__version__ = "0.1.0"

# in a clone the collection lies beside the toolkit, where only an editable installation would look for it
_CLONE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if os.path.isfile(os.path.join(_CLONE, "models", "cards.toml")):
    __path__.append(_CLONE)

_MOVED = {
    "diagnostics": "checks.registry",
    "dynamics": "story.dynamics",
    "forecasting": "timeseries.forecasting",
    "latent": "story.latent",
    "latent_plots": "plots.latent",
    "posterior_plots": "plots.posterior",
    "scores": "timeseries.leave_future_out",
    "second_opinion": "fitting.posterior_comparison",
    "series_plots": "plots.series",
    "state_space": "story.state_space",
    "states": "timeseries.smoothing",
}
"""Documented modules of the last release that have moved."""


class _MovedModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Import a module by its old name, with a warning, for one release."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """Find the modules of ``_MOVED`` alone."""
        package, _, name = fullname.rpartition(".")
        return importlib.machinery.ModuleSpec(fullname, self) if package == __name__ and name in _MOVED else None

    def exec_module(self, module: types.ModuleType) -> None:
        """Give the old module all names of the new one."""
        place = f"{__name__}.{_MOVED[module.__name__.rpartition('.')[2]]}"
        importlib.import_module("pplgen.errors").warn_renamed(module.__name__, place)
        vars(module).update(
            {name: value for name, value in vars(importlib.import_module(place)).items() if name[:2] != "__"}
        )


sys.meta_path.append(_MovedModules())

# torch, Pyro and ArviZ take seconds to import, so each public name is fetched when it is first used
_HOMES = {
    "Calibration": "pplgen.calibration.result",
    "Fit": "pplgen.fitting.result",
    "InputError": "pplgen.errors",
    "Story": "pplgen.story.base",
    "Table": "pplgen.data.table",
    "binarise": "pplgen.data.transforms",
    "calibrate": "pplgen.calibration.calibrate",
    "compare": "pplgen.fitting.compare",
    "fit": "pplgen.fitting.fit",
    "k_fold": "pplgen.fitting.cross_validation",
    "keep_every": "pplgen.data.transforms",
    "load": "pplgen.fitting.load",
    "load_data": "pplgen.data.table",
    "load_series": "pplgen.data.series",
    "mask_entries": "pplgen.data.transforms",
    "mask_top": "pplgen.data.transforms",
    "redraw_pixels": "pplgen.data.transforms",
    "rescale": "pplgen.data.transforms",
    "stack": "pplgen.fitting.stacking",
    "stream_data": "pplgen.data.streams",
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
    "k_fold",
    "keep_every",
    "load",
    "load_data",
    "load_series",
    "mask_entries",
    "mask_top",
    "redraw_pixels",
    "rescale",
    "stack",
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
