"""Protocols of rows that are read from a file in batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor

__all__ = ["RowSample", "RowSource"]


class RowSource(Protocol):
    """Rows that stay in their file and are read in batches, such as ``pplgen.data.streams.RowStream``."""

    name: str
    columns: tuple[str, ...]

    def __len__(self) -> int: ...

    def shard_sizes(self, size: int) -> tuple[int, ...]:
        """Return the number of rows that each of ``size`` processes reads."""

    def shard(self, rank: int, size: int) -> RowSource:
        """Return the rows of process ``rank`` of ``size``."""

    def batches(self, batch_size: int, *, seed: int, skip: int = 0) -> Iterator[Tensor]:
        """Yield batches of rows."""


class RowSample(Protocol):
    """Result of one pass over a source, such as ``pplgen.data.streams.Survey``."""

    @property
    def sample(self) -> Tensor:
        """A sample of the rows."""

    @property
    def missing(self) -> bool:
        """Whether any entry is missing."""

    @property
    def fingerprint(self) -> str:
        """Digest of all rows."""
