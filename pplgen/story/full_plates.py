"""Plates that subsample their rows in training, with all rows afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from pyro.poutine.subsample_messenger import SubsampleMessenger

from pplgen.story.isolation import Wrapped
from pplgen.story.pair import Pair

__all__ = ["FullPlates", "with_full_plates"]


class FullPlates(Wrapped):
    """A function of Pyro primitives in whose plates ``subsample_size`` has no effect.

    Predictive draws, observed data and log densities are then of all rows in their order, not of a random few.

    Parameters
    ----------
    function
        A model or a guide.
    """

    def __call__(self, *data: Any) -> Any:
        """Call the function with full plates."""
        with _no_subsamples():
            return self.function(*data)


def with_full_plates(pair: Pair) -> Pair:
    """Return a trained pair with all rows in the plates that subsample them; the pair itself if none does."""
    if not pair.structure.subsamples:
        return pair
    other = Pair(FullPlates(pair.model), FullPlates(pair.guide), pair.data, copied=True, rows=pair.structure.row_plate)
    replaced = ("model", "guide", "structure")
    vars(other).update(vars(pair) | {name: vars(other)[name] for name in replaced})
    return other


@contextlib.contextmanager
def _no_subsamples() -> Iterator[None]:
    """Let plates draw no subsample; one that is given as ``subsample`` stays."""
    original = SubsampleMessenger._subsample

    def subsample(name: str, size: Any = None, subsample_size: Any = None, subsample: Any = None, *others: Any) -> Any:
        return original(name, size, subsample_size if size is None else None, subsample, *others)

    SubsampleMessenger._subsample = staticmethod(subsample)
    try:
        yield
    finally:
        SubsampleMessenger._subsample = staticmethod(original)
