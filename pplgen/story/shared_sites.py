"""Values of the sites that all rows share, read from a model's own text."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pplgen.story.structure import sample_sites

__all__ = ["shared_sites", "shared_values"]


class _RowsReached(Exception):
    """The first site of rows is reached."""


class _StopAtRows(Messenger):
    """End a model before its first site inside the plate ``data``."""

    def _pyro_sample(self, msg: Any) -> None:
        if any(plate.name == "data" for plate in msg["cond_indep_stack"]):
            raise _RowsReached


def shared_sites(model: Callable[..., Any], *data: Any) -> dict[str, Any]:
    """Run a story's model up to its first site of rows, and return its sites, deterministic ones included, by name."""
    with poutine.trace() as recorded, contextlib.suppress(_RowsReached), _StopAtRows():
        model(*data)
    return sample_sites(recorded.trace)


def shared_values(model: Callable[..., Any], *data: Any) -> dict[str, Tensor]:
    """Return the values of the sites that all rows share: draws from the prior, or what handlers put in their place.

    For methods of a story that are called with the sites conditioned on a draw, such as ``complete``.

    Parameters
    ----------
    model
        The story's model, whose sites of rows are in the plate ``data`` and come last.
    *data
        Its arguments.
    """
    return {name: site["value"] for name, site in shared_sites(model, *data).items()}
