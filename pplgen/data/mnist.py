"""MNIST's handwritten digits from their four published files in idx format.

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
"""Image and label files of each split."""

_UNSIGNED_BYTES = 8
_MAX_SIZE = 2**30
"""Maximum number of entries of an idx file."""


def read_mnist(split: str, cache: str | Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return images, uint8 of shape ``(num_rows, 28, 28)``, and their digits, shape ``(num_rows,)``.

    Parameters
    ----------
    split
        ``train`` (60,000 rows) or ``test`` (10,000).
    cache
        Directory of downloaded files. ``None``: ``PPLGEN_CACHE`` or the platform's cache directory.

    Raises
    ------
    InputError
        Where the files are neither cached nor downloadable, or differ from the published ones.
    """
    files = SPLITS[split]
    images, digits = (
        parse_idx(content, file.name) for content, file in zip(public_files("mnist", files, cache), files, strict=True)
    )
    if images.ndim != 3 or digits.shape != images.shape[:1]:
        shapes = f"{files[0].name} and {files[1].name}: shapes {images.shape} and {digits.shape}"
        raise InputError(f"{shapes}; expected images and one digit per image")
    return images, digits


def parse_idx(content: bytes, name: str) -> np.ndarray:
    """Read a gzipped idx file of unsigned bytes.

    The header is two zero bytes, the type, the number of axes, and the length of each axis in four bytes.

    Raises
    ------
    InputError
        Where the content is not such a file, or its length does not match its header.
    """
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
            start = file.read(4)
            if len(start) < 4 or start[:3] != bytes([0, 0, _UNSIGNED_BYTES]) or not start[3]:
                raise InputError(f"{name}: starts with {start.hex(' ')}; expected an idx file of unsigned bytes")
            lengths = file.read(4 * start[3])
            shape = tuple(np.frombuffer(lengths[: len(lengths) // 4 * 4], ">u4").tolist())
            size = math.prod(shape)
            if len(shape) != start[3] or size > _MAX_SIZE:
                raise InputError(
                    f"{name}: idx header of shape {shape}; expected {start[3]} axes, {_MAX_SIZE:,} entries at most"
                )
            # at most one byte more than the header states, however far the content expands
            entries = file.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{name}: not a complete gzip file: {error}") from None
    if len(entries) != size:
        length = f"more than {size:,}" if len(entries) > size else f"{len(entries):,}"
        raise InputError(f"{name}: {length} entries; expected {size:,} for shape {shape}")
    return np.frombuffer(entries, np.uint8).reshape(shape)
