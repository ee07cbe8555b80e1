"""Names of the numbers of sites, the same wherever one is named: in tables, in remedies, in calibrations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pplgen.story.base import Story

__all__ = ["entries_along", "entry_names"]


def entry_names(
    shapes: Mapping[str, Sequence[int]], story: Story | None = None, columns: Sequence[str] = ()
) -> dict[str, list[str]]:
    """Name every number of some sites as ArviZ's tables do, such as ``Sigma[0, eruptions, waiting]``, in C order.

    Parameters
    ----------
    shapes
        Of one draw of each site.
    story
        Whose axes and labels they have; ``None`` for a bare pair's, whose entries are counted from 0.
    columns
        Names of the story's data; without any, all entries are counted.
    """
    dims, labels = ({}, {}) if story is None else (story.dims, story.labels(columns) if columns else {})
    names = {}
    for site, shape in shapes.items():
        axes = dims.get(site, ())
        known = [labels.get(axis, ()) for axis in axes] if len(axes) == len(shape) else [()] * len(shape)
        along = [own if len(own) == size else range(size) for own, size in zip(known, shape, strict=True)]
        names[site] = entries_along(site, along)
    return names


def entries_along(site: str, axes: Sequence[Sequence[Any]]) -> list[str]:
    """Name every number of a site by what its axes are labelled with, in C order."""
    indices = np.ndindex(*map(len, axes))
    places = (", ".join(str(own[i]) for own, i in zip(axes, index, strict=True)) for index in indices)
    return [f"{site}[{place}]" if axes else site for place in places]
