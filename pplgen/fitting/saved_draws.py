"""The draws that the command line keeps beside a run, read from a file that may refer to no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import torch
import xarray as xr

from pplgen.data.table import Table
from pplgen.errors import InputError, first_line
from pplgen.posterior.datatree import group_of
from pplgen.storage import run_folder as store

__all__ = ["kept_rows", "read_draws"]


def read_draws(directory: Path) -> xr.DataTree | None:
    """Read the draws of a run, ``None`` where there are none.

    Raises
    ------
    InputError
        Where the file cannot be read, or refers to other files.
    """
    path = directory / store.DRAWS
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
    except Exception as error:  # whatever the libraries below make of a file that is none of theirs
        raise InputError(f"{str(path)!r} cannot be read: {first_line(error)}") from None


def kept_rows(tree: xr.DataTree, header: dict[str, Any]) -> Table | None:
    """Return the rows of a run that are among its draws, with what was known of them; ``None`` where they are not."""
    try:
        observed = list(group_of(tree, "observed_data").values())
        if len(observed) != 1:
            return None
        given = group_of(tree, "constant_data")
        labels, weights = (
            torch.as_tensor(given[n].values) if n in given else None for n in ("row_labels", "row_weights")
        )
        columns, name = tuple(header["columns"]), header["data"]["name"]
        return Table(torch.as_tensor(observed[0].values), columns, name, labels, weights)
    except (KeyError, TypeError, ValueError):
        return None


def _require_no_references(file: h5py.File) -> None:
    """Refuse links and data sets that would have HDF5 read other files."""

    def check(name: str, part: Any) -> None:
        if isinstance(part, h5py.Dataset):
            if part.external or part.is_virtual:
                raise InputError(f"{name!r} is kept in another file, which is not read")
            return
        for key in part:
            if not isinstance(part.get(key, getlink=True), h5py.HardLink):
                raise InputError(f"{key!r} is a link, which is not followed")

    check("/", file)
    file.visititems(check)
