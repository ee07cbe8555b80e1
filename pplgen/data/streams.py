"""Rows of files larger than memory, read block by block: minibatches, shards, and one survey of all rows."""

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
from pplgen.data.moments import Moments
from pplgen.data.table import Fingerprint, as_finite, check_training_columns, warn_of_rounding
from pplgen.errors import InputError

__all__ = ["POOL_BLOCKS", "RowStream", "Survey", "spawned_generator", "stream_data"]

POOL_BLOCKS = 8
"""Blocks whose rows are mixed with one another."""

_PIECES = 16
"""Pieces of a block whose moments are merged, small enough for a processor's cache."""


@dataclass(frozen=True)
class Survey:
    """What one pass over all rows tells, column by column; statistics leave missing entries out.

    Attributes
    ----------
    seen
        Number of entries that are not missing, shape ``(num_features,)``.
    mean, std, min, max
        Moments (the variance divides by ``seen``) and range in float64, shape ``(num_features,)``, of the numbers in
        the file, before they are rounded to the stream's type.
    missing
        Whether any entry is missing.
    sample
        Rows drawn uniformly without replacement, in file order, shape ``(sample_size, num_features)``; all rows where
        there are fewer.
    fingerprint
        That of the ``Table`` which ``load_data`` makes of the same file.
    """

    seen: Tensor
    mean: Tensor
    std: Tensor
    min: Tensor
    max: Tensor
    missing: bool
    sample: Tensor
    fingerprint: str


class RowStream:
    """Rows of a file or several, of which only a few blocks are in memory at a time; made by ``stream_data``.

    Attributes
    ----------
    name
        The file's stem, or the folder's name.
    columns
        One name per feature.
    dtype
        Floating-point type of the rows handed out.
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
            Where a number is not finite; the message names its column and its row in the file, counted from 1.
        """
        index = range(self.num_blocks)[index]
        return self._checked(index, self._read(index))

    def blocks(self) -> Iterator[Tensor]:
        """Yield all blocks in the order of the file."""
        return map(self.block, range(self.num_blocks))

    def batches(self, batch_size: int, *, seed: int, skip: int = 0) -> Iterator[Tensor]:
        """Yield minibatches without end, epoch after epoch.

        An epoch goes through the blocks in random order, ``POOL_BLOCKS`` at a time. The rows of these are shuffled
        together and cut into batches without replacement; what is left of them opens the next batch, and what does not
        fill a batch at the end of the epoch is left out. So a batch mixes the rows of so many blocks only: **where the
        file is sorted by something, shuffle its rows when writing it.**

        Parameters
        ----------
        batch_size
            Rows in each batch, at most those of the file.
        seed
            Decides the order; torch's and NumPy's global generators have no part in it.
        skip
            Continue as after so many batches. What is skipped is not read, but for blocks of the pool it ends in.

        Yields
        ------
        Tensor
            Shape ``(batch_size, num_features)``.

        Raises
        ------
        InputError
            Where ``batch_size`` or ``skip`` is out of range, or a number in the file is not finite.
        """
        if not 1 <= batch_size <= len(self):
            raise InputError(f"batch_size={batch_size}: expected between 1 and the {len(self)} rows of {self.name}")
        if skip < 0:
            raise InputError(f"skip={skip}: expected 0 or more batches")
        return self._epochs(batch_size, seed, skip)

    def shard_sizes(self, size: int) -> tuple[int, ...]:
        """Return how many rows each of ``size`` shards has; see ``shard``."""
        sizes = np.diff(self._bounds)
        return tuple(int(sizes[chosen].sum()) for chosen in self._shared_out(size))

    def shard(self, rank: int, size: int) -> RowStream:
        """Return a stream of some of the blocks, those of one rank of ``size``; each block is in one shard.

        Blocks go, in their order, to the shard with the fewest rows so far.

        Raises
        ------
        InputError
            Where there are fewer blocks than shards.
        """
        return RowStream(self.name, self._source.chosen(self._shared_out(size)[rank]), self.dtype)

    def _shared_out(self, size: int) -> list[list[int]]:
        """Deal the blocks out."""
        if self.num_blocks < size:
            raise InputError(
                f"{self.name} has {self.num_blocks} blocks of rows for {size} ranks; write it as more files or row "
                "groups, or leave it to be read whole, for it fits into memory"
            )
        shards: list[list[int]] = [[] for _ in range(size)]
        rows = np.zeros(size, dtype=int)
        for index, more in enumerate(np.diff(self._bounds)):
            least = int(rows.argmin())
            shards[least].append(index)
            rows[least] += more
        return shards

    def survey(self, sample_size: int, *, seed: int, check: Callable[[Tensor], None] | None = None) -> Survey:
        """Read all rows once: moments, a sample and a fingerprint, with the checks that training data undergo.

        Parameters
        ----------
        sample_size
            Rows to keep as a sample.
        seed
            Decides which rows.
        check
            Called with every block; raises ``InputError`` where its rows are wrong.

        Returns
        -------
        Survey
            Statistics per column, whether anything is missing, the sample and the fingerprint.

        Raises
        ------
        InputError
            Where there is one row only, a column has no observed value, or a number is not finite. A constant column,
            and one that the stream's type is too coarse for, is a ``DataWarning``.
        """
        if sample_size < 1:
            raise InputError(f"sample_size={sample_size}: expected at least 1")
        num_columns = len(self.columns)
        chosen = spawned_generator(seed).choice(len(self), min(sample_size, len(self)), replace=False, shuffle=False)
        chosen.sort()
        cuts = np.searchsorted(chosen, self._bounds)
        sample = torch.empty(len(chosen), num_columns, dtype=self.dtype)
        fingerprint = Fingerprint(self.columns, (len(self), num_columns))
        moments = Moments(num_columns)
        for index, (first, last) in enumerate(pairwise(cuts)):
            matrix = self._read(index)
            values = self._checked(index, matrix)
            if check is not None:
                try:
                    check(values)
                except InputError as error:
                    raise InputError(f"{self.name}, counted from row {self._starts[index] + 1} on: {error}") from None
            sample[first:last] = values[torch.from_numpy(chosen[first:last] - self._bounds[index])]
            fingerprint.add(values)
            for wide, narrow in zip(torch.from_numpy(matrix).chunk(_PIECES), values.chunk(_PIECES), strict=True):
                moments.add(wide.double(), narrow.double())
        check_training_columns(self.name, len(self), self.columns, moments.min, moments.max)
        std = (moments.squares / moments.seen).sqrt()
        for column, lost, spread in zip(self.columns, moments.lost.tolist(), std.tolist(), strict=True):
            warn_of_rounding(column, lost, spread, self.dtype)
        missing = bool((moments.seen < len(self)).any())
        seen = moments.seen.long()
        return Survey(seen, moments.mean, std, moments.min, moments.max, missing, sample, str(fingerprint))

    def _checked(self, index: int, matrix: np.ndarray) -> Tensor:
        """Convert what was read of a block."""
        return as_finite(matrix, self.columns, self.dtype, first_row=int(self._starts[index]) + 1)

    def _epochs(self, batch_size: int, seed: int, skip: int) -> Iterator[Tensor]:
        """Yield the batches of one epoch after another."""
        epoch, skip = divmod(skip, len(self) // batch_size)
        while True:
            yield from self._epoch(batch_size, (seed, epoch), skip * batch_size)
            epoch, skip = epoch + 1, 0

    def _epoch(self, batch_size: int, seed: tuple[int, ...], skip: int) -> Iterator[Tensor]:
        """Cut the shuffled pools, laid end to end, into batches, leaving the first ``skip`` rows out."""
        sizes = np.diff(self._bounds)
        shuffled = spawned_generator(*seed).permutation(self.num_blocks)
        batch, filled = self._empty(batch_size), 0
        for start in range(0, self.num_blocks, POOL_BLOCKS):
            chosen = shuffled[start : start + POOL_BLOCKS]
            size = int(sizes[chosen].sum())
            if skip >= size:
                skip -= size
                continue
            order = torch.from_numpy(spawned_generator(*seed, start).permutation(size)[skip:])
            skip = 0
            pool = self._pool(chosen, size)
            while len(order):
                rows, order = order.tensor_split([batch_size - filled])
                torch.index_select(pool, 0, rows, out=batch[filled : filled + len(rows)])
                filled += len(rows)
                if filled == batch_size:
                    yield batch
                    batch, filled = self._empty(batch_size), 0
            del pool  # the next one would be read beside it

    def _pool(self, chosen: np.ndarray, size: int) -> Tensor:
        """Read some blocks into one tensor."""
        pool = self._empty(size)
        first = 0
        for index in chosen:
            block = self.block(int(index))
            pool[first : first + len(block)] = block
            first += len(block)
        return pool

    def _empty(self, num_rows: int) -> Tensor:
        return torch.empty(num_rows, len(self.columns), dtype=self.dtype)


def stream_data(path: Any, *, dtype: torch.dtype | None = None) -> RowStream:
    """Open a file whose rows are read block by block.

    Parameters
    ----------
    path
        An ``.npy`` file, of shape ``(num_rows,)`` or ``(num_rows, num_features)``, or a ``.parquet`` file. Parquet is
        read by row groups; one that is much larger than a block is read from its start for each of its slices, so
        write groups of at most some 100,000 rows. Or several files of the same columns: a folder of them, or a pattern
        such as ``"rows/part-*.npy"``; their rows follow one another in the order of the files' names.
    dtype
        Floating-point type of the rows. ``None``: torch's default.

    Returns
    -------
    RowStream
        The rows, none of them read yet.

    Raises
    ------
    InputError
        Where the path is none of these, or a file is missing, empty or not numeric.
    """
    if not isinstance(path, (str, Path)):
        given = f"a value of type {type(path).__name__}"
        raise InputError(f"{given} cannot be streamed; give the path of a NumPy (.npy) or Parquet (.parquet) file")
    return RowStream(stream_name(path), open_stream(Path(path)), dtype or torch.get_default_dtype())


def spawned_generator(seed: int, *place: int) -> np.random.Generator:
    """Return random numbers of their own for each place of a seed."""
    return np.random.default_rng(np.random.SeedSequence(int(seed) % 2**64, spawn_key=place))
