"""Names of the scalar entries of sites, as used in tables, remedies and calibrations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pplgen.story.base import Story

__all__ = ["entry_names", "names_along", "variable_name"]


DIMENSIONS = ("chain", "draw", "row")
"""Names of dimensions of every tree, which no variable can have."""


def variable_name(site: str) -> str:
    """Return the name of a site in trees and tables.

    ``/``, which separates groups of a tree, becomes a dot; the names of the tree's own dimensions get an underscore.
    """
    return f"{site}_" if site in DIMENSIONS else site.replace("/", ".")


def entry_names(
    shapes: Mapping[str, Sequence[int]], story: Story | None = None, columns: Sequence[str] = ()
) -> dict[str, list[str]]:
    """Name every scalar entry of sites as in ArviZ's tables, such as ``Sigma[0, eruptions, waiting]``, in C order.

    Parameters
    ----------
    shapes
        Shape of one draw of each site.
    story
        Story that names and labels the axes; ``None`` for a bare pair, whose entries are numbered from 0.
    columns
        Names of the data's columns; if empty, all entries are numbered.
    """
    dims, labels = ({}, {}) if story is None else (story.dims, story.labels(columns) if columns else {})
    names = {}
    for site, shape in shapes.items():
        axes = dims.get(site, ())
        axis_labels = [labels.get(axis, ()) for axis in axes] if len(axes) == len(shape) else [()] * len(shape)
        along = [
            labels if len(labels) == size else range(size) for labels, size in zip(axis_labels, shape, strict=True)
        ]
        names[site] = names_along(site, along)
    return names


def names_along(site: str, axes: Sequence[Sequence[Any]]) -> list[str]:
    """Name every scalar entry of a site by the labels of its axes, in C order."""
    indices, site = np.ndindex(*map(len, axes)), variable_name(site)
    indices_text = (", ".join(str(labels[i]) for labels, i in zip(axes, index, strict=True)) for index in indices)
    return [f"{site}[{index_text}]" if axes else site for index_text in indices_text]
