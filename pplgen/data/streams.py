"""Files larger than memory, read block by block: shuffled minibatches, shards, and one-pass column statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pplgen.data.blocks import Blocks, open_stream, stream_name
from pplgen.data.fingerprint import Fingerprint
from pplgen.data.moments import Moments
from pplgen.data.tensors import as_dtype, as_finite, warn_of_rounding
from pplgen.data.training_checks import check_training_columns
from pplgen.errors import InputError

__all__ = ["POOL_BLOCKS", "RowStream", "Survey", "spawned_generator", "stream_data"]

POOL_BLOCKS = 8
"""Blocks whose rows are shuffled together."""

_CHUNKS = 16
"""Chunks of a block whose moments are merged, small enough for the CPU cache."""


@dataclass(frozen=True)
class Survey:
    """Column statistics and a sample from one pass over all rows; statistics ignore missing entries.

    Attributes
    ----------
    count
        Number of observed entries, shape ``(num_features,)``.
    mean, std, min, max
        Moments (the variance divides by ``count``) and range in float64, shape ``(num_features,)``, of the values in
        the file before rounding to the stream's dtype.
    missing
        Whether any entry is missing.
    sample
        Rows drawn uniformly without replacement, in file order, shape ``(sample_size, num_features)``, or all rows if
        there are fewer.
    fingerprint
        Fingerprint of the ``Table`` that ``load_data`` returns for the same file.
    """

    count: Tensor
    mean: Tensor
    std: Tensor
    min: Tensor
    max: Tensor
    missing: bool
    sample: Tensor
    fingerprint: str


class RowStream:
    """Rows of one or several files, with only a few blocks in memory at a time; created by ``stream_data``.

    Attributes
    ----------
    name
        The file's stem, or the folder's name.
    columns
        One name per feature.
    dtype
        Floating-point type of the returned rows.
    num_blocks
        Number of blocks: ranges of rows of an npy file, row groups (or slices of large ones) of a Parquet file.
    """

    def __init__(self, name: str, source: Blocks, dtype: torch.dtype) -> None:
        self.name, self._source = name, source
        self.columns, self._bounds, self._read, self._starts = source
        self.dtype = dtype
        self.num_blocks = len(self._bounds) - 1

    def __len__(self) -> int:
        return int(self._bounds[-1])

    def block(self, index: int) -> Tensor:
        """Return one block, of shape ``(num_rows, num_features)``; NaN means missing.

        Raises
        ------
        InputError
            Where a value is not finite; the message names the column and the row in the file, counted from 1.
        """
        index = range(self.num_blocks)[index]
        return self._as_finite(index, self._read(index))

    def blocks(self) -> Iterator[Tensor]:
        """Yield all blocks in file order."""
        return map(self.block, range(self.num_blocks))

    def batches(self, batch_size: int, *, seed: int, skip: int = 0) -> Iterator[Tensor]:
        """Yield minibatches indefinitely, epoch after epoch.

        An epoch reads the blocks in random order, ``POOL_BLOCKS`` at a time. The rows of such a pool are shuffled
        together and cut into batches without replacement; remaining rows start the next batch, and an incomplete batch
        at the end of the epoch is dropped. A batch therefore mixes rows of ``POOL_BLOCKS`` blocks only: **if the file
        is sorted, shuffle its rows when writing it.**

        Parameters
        ----------
        batch_size
            Rows per batch, at most the number of rows.
        seed
            Seed of the order; torch's and NumPy's global generators are not used.
        skip
            Number of batches to skip. Skipped pools of blocks are not read.

        Yields
        ------
        Tensor
            Shape ``(batch_size, num_features)``.

        Raises
        ------
        InputError
            Where ``batch_size`` or ``skip`` is out of range, or a value in the file is not finite.
        """
        if not 1 <= batch_size <= len(self):
            raise InputError(f"batch_size={batch_size}: expected between 1 and the {len(self)} rows of {self.name}")
        if skip < 0:
            raise InputError(f"skip={skip}: expected 0 or more batches")
        return self._epochs(batch_size, seed, skip)

    def shard_sizes(self, size: int) -> tuple[int, ...]:
        """Return the number of rows in each of ``size`` shards; see ``shard``."""
        sizes = np.diff(self._bounds)
        return tuple(int(sizes[blocks].sum()) for blocks in self._assign_blocks(size))

    def shard(self, rank: int, size: int) -> RowStream:
        """Return a stream of the blocks of one rank out of ``size``; each block is in exactly one shard.

        Blocks are assigned, in file order, to the shard with the fewest rows so far.

        Raises
        ------
        InputError
            Where there are fewer blocks than shards.
        """
        return RowStream(self.name, self._source.select(self._assign_blocks(size)[rank]), self.dtype)

    def _assign_blocks(self, size: int) -> list[list[int]]:
        """Assign the blocks to shards."""
        if self.num_blocks < size:
            raise InputError(
                f"{self.name} has {self.num_blocks} blocks of rows for {size} ranks; write it as more files or row "
                "groups, or read it without streaming, since it fits into memory"
            )
        shards: list[list[int]] = [[] for _ in range(size)]
        rows = np.zeros(size, dtype=int)
        for index, num_rows in enumerate(np.diff(self._bounds)):
            smallest = int(rows.argmin())
            shards[smallest].append(index)
            rows[smallest] += num_rows
        return shards

    def survey(self, sample_size: int, *, seed: int, check: Callable[[Tensor], None] | None = None) -> Survey:
        """Read all rows once: compute moments, a sample and a fingerprint, and check the rows as training data.

        Parameters
        ----------
        sample_size
            Number of rows in the sample.
        seed
            Seed of the sample.
        check
            Called with every block; raises ``InputError`` for invalid rows.

        Returns
        -------
        Survey
            Column statistics, whether any entry is missing, the sample and the fingerprint.

        Raises
        ------
        InputError
            Where there is only one row, a column has no observed value, or a value is not finite. A constant column,
            or one with large rounding errors in the stream's dtype, causes a ``DataWarning``.
        """
        if sample_size < 1:
            raise InputError(f"sample_size={sample_size}: expected at least 1")
        num_columns = len(self.columns)
        sampled = spawned_generator(seed).choice(len(self), min(sample_size, len(self)), replace=False, shuffle=False)
        sampled.sort()
        cuts = np.searchsorted(sampled, self._bounds)
        sample = torch.empty(len(sampled), num_columns, dtype=self.dtype)
        fingerprint = Fingerprint(self.columns, (len(self), num_columns))
        moments = Moments(num_columns)
        for index, (first, last) in enumerate(pairwise(cuts)):
            matrix = self._read(index)
            values = self._as_finite(index, matrix)
            if check is not None:
                try:
                    check(values)
                except InputError as error:
                    raise InputError(f"{self.name}, counting from row {self._starts[index] + 1}: {error}") from None
            sample[first:last] = values[torch.from_numpy(sampled[first:last] - self._bounds[index])]
            fingerprint.add(values)
            for wide, narrow in zip(torch.from_numpy(matrix).chunk(_CHUNKS), values.chunk(_CHUNKS), strict=True):
                moments.add(wide.double(), narrow.double())
        check_training_columns(self.name, len(self), self.columns, moments.min, moments.max, self.dtype)
        std = (moments.squares / moments.count).sqrt()
        for column, rounding, scale in zip(self.columns, moments.rounding.tolist(), std.tolist(), strict=True):
            warn_of_rounding(f"column {column!r}", rounding, scale, self.dtype)
        missing = bool((moments.count < len(self)).any())
        count = moments.count.long()
        return Survey(count, moments.mean, std, moments.min, moments.max, missing, sample, str(fingerprint))

    def _as_finite(self, index: int, matrix: np.ndarray) -> Tensor:
        """Convert a block to the stream's dtype."""
        return as_finite(matrix, self.columns, self.dtype, first_row=int(self._starts[index]) + 1)

    def _epochs(self, batch_size: int, seed: int, skip: int) -> Iterator[Tensor]:
        """Yield the batches of one epoch after another."""
        epoch, skip = divmod(skip, len(self) // batch_size)
        while True:
            yield from self._epoch(batch_size, (seed, epoch), skip * batch_size)
            epoch, skip = epoch + 1, 0

    def _epoch(self, batch_size: int, seed: tuple[int, ...], skip: int) -> Iterator[Tensor]:
        """Cut the concatenated shuffled pools into batches, skipping the first ``skip`` rows."""
        sizes = np.diff(self._bounds)
        shuffled = spawned_generator(*seed).permutation(self.num_blocks)
        batch, filled = self._empty(batch_size), 0
        for start in range(0, self.num_blocks, POOL_BLOCKS):
            blocks = shuffled[start : start + POOL_BLOCKS]
            size = int(sizes[blocks].sum())
            if skip >= size:
                skip -= size
                continue
            order = torch.from_numpy(spawned_generator(*seed, start).permutation(size)[skip:])
            skip = 0
            pool = self._read_pool(blocks, size)
            while len(order):
                rows, order = order.tensor_split([batch_size - filled])
                torch.index_select(pool, 0, rows, out=batch[filled : filled + len(rows)])
                filled += len(rows)
                if filled == batch_size:
                    yield batch
                    batch, filled = self._empty(batch_size), 0
            del pool  # before the next one is read

    def _read_pool(self, blocks: np.ndarray, size: int) -> Tensor:
        """Read blocks into one tensor."""
        pool = self._empty(size)
        first = 0
        for index in blocks:
            block = self.block(int(index))
            pool[first : first + len(block)] = block
            first += len(block)
        return pool

    def _empty(self, num_rows: int) -> Tensor:
        return torch.empty(num_rows, len(self.columns), dtype=self.dtype)


def stream_data(path: Any, *, dtype: torch.dtype | str | None = None) -> RowStream:
    """Open a file whose rows are read block by block.

    Parameters
    ----------
    path
        An ``.npy`` file of shape ``(num_rows,)`` or ``(num_rows, num_features)``, or a ``.parquet`` file. Parquet is
        read by row groups; a group much larger than a block is read from its start for each of its slices, so write
        groups of at most about 100,000 rows. Or several files with the same columns: a folder, or a glob pattern such
        as ``"rows/part-*.npy"``; files are concatenated in the order of their names.
    dtype
        Floating-point type of the rows, such as ``"float64"``. ``None``: torch's default.

    Returns
    -------
    RowStream
        The rows; none is read yet.

    Raises
    ------
    InputError
        Where the path is none of these, or a file does not exist, is empty or not numeric.
    """
    if not isinstance(path, (str, Path)):
        value = f"a value of type {type(path).__name__}"
        raise InputError(f"{value} cannot be streamed; give the path of a NumPy (.npy) or Parquet (.parquet) file")
    return RowStream(stream_name(path), open_stream(Path(path)), as_dtype(dtype) or torch.get_default_dtype())


def spawned_generator(seed: int, *key: int) -> np.random.Generator:
    """Return an independent random generator for each key of a seed."""
    return np.random.default_rng(np.random.SeedSequence(int(seed) % 2**64, spawn_key=key))
