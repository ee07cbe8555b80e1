"""Fingerprint of a table: SHA-256 of its columns, shape and values."""

from __future__ import annotations

import hashlib
from typing import Self

from torch import Tensor

__all__ = ["CHUNK_ROWS", "Fingerprint"]

CHUNK_ROWS = 4096
"""Rows that are copied at a time."""


class Fingerprint:
    """SHA-256 of columns, shape and float64 values; rows are added in order, in any number of chunks.

    Parameters
    ----------
    columns
        One name per feature.
    shape
        ``(num_rows, num_features)`` of the complete table.
    """

    def __init__(self, columns: tuple[str, ...], shape: tuple[int, ...]) -> None:
        self._hash = hashlib.sha256(repr((columns, shape)).encode())

    def add(self, values: Tensor) -> Self:
        """Add the next rows, of shape ``(num_rows, num_features)``."""
        for chunk in values.split(CHUNK_ROWS):
            self._hash.update(chunk.double().cpu().numpy().astype("<f8", copy=False).ravel().data)
        return self

    def mark(self, name: str) -> Self:
        """Add the name of the values that follow."""
        self._hash.update(name.encode())
        return self

    def __str__(self) -> str:
        return self._hash.hexdigest()
