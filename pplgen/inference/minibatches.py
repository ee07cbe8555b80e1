"""Where the rows of each step come from: all of them, minibatches of those in memory, or minibatches of a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import torch
from torch import Tensor

from pplgen.data.streams import spawned_generator
from pplgen.distributed.sharding import Shard
from pplgen.errors import InputError
from pplgen.story.conditioning import RowScale
from pplgen.story.pair import Pair, select_rows

__all__ = ["Augment", "are_all_rows", "batching"]

Augment = Callable[[Tensor], Tensor]
"""Changes a batch of rows at random, each time anew."""

LABELLED = 0.2
"""Of a batch, rows with labels at least, where a story learns from these itself."""


def batching(
    pair: Pair,
    batch_size: int | None,
    *,
    seed: int,
    skip: int = 0,
    augment: Augment | None = None,
    shard: Shard | None = None,
) -> tuple[Iterator[tuple[Any, ...]], RowScale | None]:
    """Return an endless iterator over arguments, and the handler that scales a batch to all rows where it has fewer.

    Parameters
    ----------
    pair
        Its row plate is scaled.
    batch_size
        Rows per step, drawn without replacement in each pass over the data; ``None`` for all. Rows with labels and
        rows without are passed over each on its own, and scaled to all of their kind, where a story learns from labels.
    seed
        Decides the order of the rows; generators of random numbers are left alone.
    skip
        Continue as after so many steps.
    augment
        Applied to the rows of each step.
    shard
        The rows that this process goes through, with its part of ``batch_size`` in each step; ``None`` for all. The
        scale is then such that the mean over all shards stands for all rows.

    Raises
    ------
    InputError
        Where the batch size does not suit the rows, or the model has no plate over all of them.
    """
    batches, scale = _plain(pair, batch_size, seed, skip, shard)
    own_seed = seed if shard is None else shard.local_seed(seed)
    return batches if augment is None else _augmented(pair, batches, augment, own_seed, skip), scale


def are_all_rows(pair: Pair, batch_size: int | None) -> bool:
    """Whether every step takes all rows, from memory."""
    return pair.source is None and batch_size in (None, pair.num_rows)


def _plain(
    pair: Pair, batch_size: int | None, seed: int, skip: int, shard: Shard | None
) -> tuple[Iterator[tuple[Any, ...]], RowScale | None]:
    """Return batches of rows as they are, and their scale."""
    num_rows, whole = pair.num_rows, are_all_rows(pair, batch_size)
    if whole and shard is None:
        return iter(lambda: pair.data, None), None
    plate = pair.structure.row_plate
    if plate is None:
        raise InputError(
            f"batch_size={batch_size or num_rows}: the model has no full pyro.plate('data', ...) over the rows to scale"
        )
    if whole and shard is not None:
        own = tuple(select_rows(value, shard.rows, num_rows) for value in pair.data)
        return iter(lambda: own, None), RowScale(plate, len(shard.sizes))
    if batch_size is None or not 1 <= batch_size <= num_rows:
        raise InputError(f"batch_size={batch_size}: expected between 1 and the {num_rows} rows of the data")
    pair.check_amortised()
    every, times, source = torch.arange(num_rows), 1, pair.source
    if shard is not None:
        every, times, batch_size = every[shard.rows], len(shard.sizes), shard.local_batch_size(batch_size)
        source = source and source.shard(shard.rank, times)
    if source is not None:
        device = pair.data[0].device
        batches = ((batch.to(device),) for batch in source.batches(batch_size, seed=seed, skip=skip))
        return batches, RowScale(plate, times * len(source) / batch_size)
    strata = _strata(pair, every, batch_size)
    scales = torch.cat([torch.full((size,), times * len(rows) / size) for rows, size in strata])
    chosen = zip(*(_in_turn(rows, size, seed, skip) for rows, size in strata), strict=False)
    batches = (tuple(select_rows(value, torch.cat(rows), num_rows) for value in pair.data) for rows in chosen)
    even = len(strata) == 1
    return batches, RowScale(plate, times * len(every) / batch_size if even else scales.to(pair.data[0]))


def _strata(pair: Pair, every: Tensor, batch_size: int) -> list[tuple[Tensor, int]]:
    """Sort the rows into those that take turns, each with how many of them a batch holds.

    Where a story learns from labels itself, those who have one come first in each batch, as ``LABELLED`` of it at
    least: a few among very many would be seen too seldom to learn from.
    """
    if pair.labels is None or pair.story is None or not pair.story.takes_labels:
        return [(every, batch_size)]
    known = (pair.labels >= 0).cpu()[every]
    labelled, others = every[known], every[~known]
    share = max(LABELLED, len(labelled) / len(every))
    size = max(min(round(share * batch_size), len(labelled), batch_size - 1), batch_size - len(others))
    strata = [(labelled, size), (others, batch_size - size)]
    return strata if len(labelled) and len(others) and size and size < batch_size else [(every, batch_size)]


def _in_turn(rows: Tensor, size: int, seed: int, skip: int) -> Iterator[Tensor]:
    """Take so many rows at a time, in an order of its own for each pass."""
    epoch, skip = divmod(skip, len(rows) // size)
    for each in count(epoch):
        order = rows[torch.from_numpy(spawned_generator(seed, each).permutation(len(rows)))]
        for start in range(skip * size, len(rows) - size + 1, size):
            yield order[start : start + size]
        skip = 0


def _augmented(
    pair: Pair, batches: Iterator[tuple[Any, ...]], augment: Augment, seed: int, skip: int
) -> Iterator[tuple[Any, ...]]:
    """Change the rows of each step, with random numbers that depend on nothing but the seed and the step."""
    if not isinstance(pair.data[0], Tensor):
        raise InputError(f"augment: the model's first argument is a {type(pair.data[0]).__name__}; expected its rows")
    for step, (rows, *others) in zip(count(skip), batches, strict=False):
        with torch.random.fork_rng([rows.device] if rows.is_cuda else []):
            torch.manual_seed(int(spawned_generator(seed, step, 0).integers(2**63)))
            changed: Any = augment(rows)
        if not isinstance(changed, Tensor) or (changed.shape, changed.dtype) != (rows.shape, rows.dtype):
            kind = type(changed).__name__
            found = f"{tuple(changed.shape)} of {changed.dtype}" if isinstance(changed, Tensor) else f"a {kind}"
            raise InputError(f"augment: it returned {found}; expected {tuple(rows.shape)} of {rows.dtype}")
        if step == skip:
            _check_changed(pair, rows, changed)
        yield (changed, *others)


def _check_changed(pair: Pair, rows: Tensor, changed: Tensor) -> None:
    """Refuse changed rows that the pair would have refused, had they been given so."""
    if bool((changed.isnan() & ~rows.isnan()).any()):
        raise InputError("augment: it returned missing entries where none were; expected numbers")
    if pair.story is not None:
        try:
            pair.story.check_data(changed)
        except InputError as error:
            raise InputError(f"augment: {error}") from None
