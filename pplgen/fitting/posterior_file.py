"""Read the draws that the command line saves with a run, from a file without external references."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import torch
import xarray as xr

from pplgen.data.table import Table
from pplgen.errors import InputError, first_line
from pplgen.posterior.datatree import group_of
from pplgen.storage import run_folder

__all__ = ["read_draws", "saved_rows"]

MAX_GROUPS = 50
"""Groups of a file of draws, which has about ten."""


def read_draws(directory: Path) -> xr.DataTree | None:
    """Read the draws saved with a run; ``None`` if there are none.

    Raises
    ------
    InputError
        If the file cannot be read, or refers to other files.
    """
    path = directory / run_folder.DRAWS
    if not path.exists():
        return None
    if not path.is_file():
        raise InputError(f"{str(path)!r} is not a file")
    try:
        with h5py.File(path, "r") as file:
            _require_no_references(file)
        with xr.open_datatree(path, engine="h5netcdf") as tree:
            return tree.load()
    except InputError as error:
        raise InputError(f"{str(path)!r}: {error}") from None
    except Exception as error:  # h5netcdf and xarray raise many types for an invalid file
        raise InputError(f"{str(path)!r} cannot be read: {first_line(error)}") from None


def saved_rows(tree: xr.DataTree, header: dict[str, Any]) -> Table | None:
    """Return the training rows saved with the draws, with labels and weights; ``None`` if they were not saved."""
    try:
        observed = list(group_of(tree, "observed_data").values())
        if len(observed) != 1:
            return None
        constant = group_of(tree, "constant_data")
        labels, weights = (
            torch.as_tensor(constant[n].values) if n in constant else None for n in ("row_labels", "row_weights")
        )
        columns, name = tuple(header["columns"]), header["data"]["name"]
        return Table(torch.as_tensor(observed[0].values), columns, name, labels, weights)
    except (KeyError, TypeError, ValueError):
        return None


def _require_no_references(file: h5py.File) -> None:
    """Raise ``InputError`` for links and data sets that would make HDF5 read other files, and for groups in circles."""
    groups: list[tuple[str, h5py.Group]] = [("/", file)]
    seen: set[int] = set()
    while groups:
        name, group = groups.pop()
        address = h5py.h5o.get_info(group.id).addr
        if address in seen or len(seen) == MAX_GROUPS:
            raise InputError(f"{name[:80]!r} is a group in itself, or one of more than {MAX_GROUPS}")
        seen.add(address)
        for key in group:
            if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                raise InputError(f"{key!r} is a link; links are not followed")
            part = group[key]
            if isinstance(part, h5py.Group):
                groups.append((f"{name}{key}/", part))
            elif isinstance(part, h5py.Dataset) and (part.external or part.is_virtual):
                raise InputError(f"{key!r} is stored in another file; external data are not read")
