"""Named data sets: included here, from scikit-learn and statsmodels, or downloaded once."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pplgen.data.file_readers import from_file
from pplgen.data.frames import from_frame
from pplgen.data.mnist import read_mnist
from pplgen.data.paths import import_optional

__all__ = ["NAMED_DATA_SETS", "NamedData"]


class NamedData(NamedTuple):
    """A published data set."""

    matrix: np.ndarray
    """Shape ``(num_rows, num_features)``."""
    columns: tuple[str, ...]
    target: np.ndarray | None = None
    """Class of each row, counted from 0; ``None`` where there are none."""


Reader = Callable[[str, str | Path | None], NamedData]
"""Takes a NumPy dtype, used by readers of large data, and the download directory."""


def _faithful(dtype: str, cache: str | Path | None) -> NamedData:
    """Read Old Faithful's eruptions and waiting times, in minutes, 272 x 2."""
    with resources.as_file(resources.files("pplgen") / "data" / "files" / "faithful.csv") as path:
        return NamedData(*from_file(path)[:2])


def _scikit_learn(name: str, highest: float = 1.0) -> Reader:
    """Return a reader of one of scikit-learn's data sets, its values divided by ``highest``."""

    def read(dtype: str, cache: str | Path | None) -> NamedData:
        loaded = getattr(import_optional("sklearn.datasets", f"data set {name!r}"), f"load_{name}")()
        matrix = np.asarray(loaded.data, dtype="float64") / highest
        return NamedData(matrix, tuple(map(str, loaded.feature_names)), np.asarray(loaded.target))

    return read


def _nile(dtype: str, cache: str | Path | None) -> NamedData:
    """Read the Nile's yearly flow at Aswan, 1871 to 1970, in 10^8 cubic metres, 100 x 1."""
    nile = import_optional("statsmodels.datasets.nile", "data set 'nile'")
    return NamedData(*from_frame(nile.load_pandas().data[["volume"]])[:2])


def _mnist(split: str) -> Reader:
    """Return a reader of MNIST images, grey values from 0 to 1 in 784 columns."""

    def read(dtype: str, cache: str | Path | None) -> NamedData:
        images, digits = read_mnist(split, cache)
        height, width = images.shape[1:]
        columns = tuple(f"pixel_{i}_{j}" for i in range(height) for j in range(width))
        return NamedData(np.divide(images.reshape(len(images), -1), 255, dtype=dtype), columns, digits)

    return read


NAMED_DATA_SETS: dict[str, Reader] = {
    "faithful": _faithful,
    "digits": _scikit_learn("digits"),
    "digits-unit": _scikit_learn("digits", highest=16.0),
    "wine": _scikit_learn("wine"),
    "iris": _scikit_learn("iris"),
    "breast_cancer": _scikit_learn("breast_cancer"),
    "nile": _nile,
    "mnist": _mnist("train"),
    "mnist-test": _mnist("test"),
}
"""Reader of each data set; ``digits-unit`` is ``digits`` scaled to [0, 1]."""
