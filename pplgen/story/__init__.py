"""Contracts of a story, and the model/guide pair that is fitted.

May import: errors. Start reading at `base.py`, the contract of every story, and `pair.py`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyro.nn import pyro_method

    from pplgen.errors import DataWarning, InputError
    from pplgen.story.base import Story, check_choice, check_count, check_per_feature, check_positive
    from pplgen.story.latent import LatentStory
    from pplgen.story.pair import Pair
    from pplgen.story.state_space import StateSpaceStory

# torch and Pyro take seconds to import, so each public name is imported on first use
_MODULES = {
    "DataWarning": "pplgen.errors",
    "InputError": "pplgen.errors",
    "LatentStory": "pplgen.story.latent",
    "Pair": "pplgen.story.pair",
    "StateSpaceStory": "pplgen.story.state_space",
    "Story": "pplgen.story.base",
    "check_choice": "pplgen.story.base",
    "check_count": "pplgen.story.base",
    "check_per_feature": "pplgen.story.base",
    "check_positive": "pplgen.story.base",
    "pyro_method": "pyro.nn",
}

__all__ = [
    "DataWarning",
    "InputError",
    "LatentStory",
    "Pair",
    "StateSpaceStory",
    "Story",
    "check_choice",
    "check_count",
    "check_per_feature",
    "check_positive",
    "pyro_method",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its module."""
    if name not in _MODULES:
        raise AttributeError(f"module 'pplgen.story' has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Public names, imported or not."""
    return sorted({*globals(), *__all__})
