"""Sites that all rows share, and the distribution of rows given them, read from a model's own text."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any

from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pplgen.story.structure import sample_sites

__all__ = ["row_distribution", "shared_sites", "shared_values"]


class _RowsReached(Exception):
    """The first site of rows is reached."""


class _StopAtRows(Messenger):
    """End a model before its first site inside the plate ``data`` that is not given, and keep that site."""

    first: Any = None

    def __init__(self, given: Collection[str] = ()) -> None:
        super().__init__()
        self.given = given

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] not in self.given and any(plate.name == "data" for plate in msg["cond_indep_stack"]):
            self.first = msg
            raise _RowsReached

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> bool:
        super().__exit__(kind, error, traceback)
        return isinstance(error, _RowsReached)


def shared_sites(model: Callable[..., Any], *data: Any) -> dict[str, Any]:
    """Run a story's model up to its first site of rows, and return its sites, deterministic ones included, by name."""
    with poutine.trace() as recorded, _StopAtRows():
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


def row_distribution(model: Callable[..., Any], *data: Any, given: Mapping[str, Tensor] = MappingProxyType({})) -> Any:
    """Return the distribution of a model's first site of rows, one batch entry for each row.

    Arguments and values of the shared sites are as for ``shared_values``. For methods that need more of the rows'
    distribution than its density, such as ``state_space``, ``fill`` and ``complete``.

    Parameters
    ----------
    model, *data
        As for ``shared_values``.
    given
        Values of earlier sites of rows, by name, such as components: the distribution is that of the site after them.
    """
    with _StopAtRows(given) as rows, poutine.condition(data=dict(given)):
        model(*data)
    return rows.first["fn"]
