"""MNIST's handwritten digits from their four published files; idx, their format, is read by hand.

References
----------
LeCun, Cortes and Burges (1998), The MNIST database of handwritten digits.
"""

from __future__ import annotations

import gzip
import io
import math
import zlib
from pathlib import Path

import numpy as np

from pplgen.data.downloads import PublicFile, public_files
from pplgen.errors import InputError

__all__ = ["SPLITS", "parse_idx", "read_mnist"]

SPLITS = {
    "train": (
        PublicFile(
            "train-images-idx3-ubyte.gz",
            9_912_422,
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        ),
        PublicFile(
            "train-labels-idx1-ubyte.gz", 28_881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"
        ),
    ),
    "test": (
        PublicFile(
            "t10k-images-idx3-ubyte.gz", 1_648_877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"
        ),
        PublicFile(
            "t10k-labels-idx1-ubyte.gz", 4_542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"
        ),
    ),
}
"""Pictures and classes of each split."""

_UNSIGNED_BYTES = 8
_LARGEST = 2**30
"""Entries of an idx file at most."""


def read_mnist(split: str, cache: str | Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return pictures, bytes of shape ``(num_rows, 28, 28)``, and the digits that they show, ``(num_rows,)``.

    Parameters
    ----------
    split
        ``train`` (60,000 rows) or ``test`` (10,000).
    cache
        Directory of downloaded files; ``None`` for the platform's.

    Raises
    ------
    InputError
        Where the files are neither at hand nor to be downloaded, or not what was published.
    """
    files = SPLITS[split]
    pictures, digits = (
        parse_idx(content, file.name) for content, file in zip(public_files("mnist", files, cache), files, strict=True)
    )
    if pictures.ndim != 3 or digits.shape != pictures.shape[:1]:
        given = f"{files[0].name} and {files[1].name}: shapes {pictures.shape} and {digits.shape}"
        raise InputError(f"{given}; expected pictures, and one digit for each")
    return pictures, digits


def parse_idx(content: bytes, name: str) -> np.ndarray:
    """Read a gzipped idx file of unsigned bytes.

    Its header is two zeros, the type, the number of axes, and the length of each axis in four bytes; see the reference.

    Raises
    ------
    InputError
        Where the content is no such file, or longer or shorter than its header says.
    """
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
            start = file.read(4)
            if len(start) < 4 or start[:3] != bytes([0, 0, _UNSIGNED_BYTES]) or not start[3]:
                raise InputError(f"{name}: starts with {start.hex(' ')}; expected an idx file of unsigned bytes")
            lengths = file.read(4 * start[3])
            shape = tuple(np.frombuffer(lengths[: len(lengths) // 4 * 4], ">u4").tolist())
            size = math.prod(shape)
            if len(shape) != start[3] or size > _LARGEST:
                raise InputError(f"{name}: an idx header of shape {shape}; expected {start[3]} axes of sensible length")
            # never more than a byte beyond what the header says, however far the content expands
            entries = file.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{name}: not a whole gzip file: {error}") from None
    if len(entries) != size:
        found = "more" if len(entries) > size else f"{len(entries):,}"
        raise InputError(f"{name}: {found} bytes of entries, where shape {shape} has {size:,}")
    return np.frombuffer(entries, np.uint8).reshape(shape)
