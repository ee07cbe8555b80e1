"""Rows of each step: all of them, minibatches from memory, or minibatches from a file."""

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
from pplgen.story.pair import Pair

__all__ = ["Augment", "batching", "is_full_batch"]

Augment = Callable[[Tensor], Tensor]
"""Random transformation of a batch of rows, applied in each step."""

MIN_LABELLED = 0.2
"""Minimum fraction of labelled rows in a batch, for stories that use labels."""


def batching(
    pair: Pair,
    batch_size: int | None,
    *,
    seed: int,
    skip: int = 0,
    augment: Augment | None = None,
    shard: Shard | None = None,
) -> tuple[Iterator[tuple[Any, ...]], RowScale | None]:
    """Return an endless iterator over arguments, and the handler that scales minibatches to all rows, or ``None``.

    Parameters
    ----------
    pair
        Pair whose row plate is scaled.
    batch_size
        Rows per step, drawn without replacement in each epoch; ``None`` for all. For stories that use labels, batches
        are stratified: labelled and unlabelled rows are drawn separately and scaled to all rows of their kind.
    seed
        Seed of the order of the rows; global random generators are not used.
    skip
        Number of steps to skip, to resume a run.
    augment
        Transformation of the rows of each step.
    shard
        Rows of this process, with its part of ``batch_size`` in each step; ``None`` for all. The scale is such that the
        mean over all shards estimates the sum over all rows.

    Raises
    ------
    InputError
        If the batch size exceeds the rows, or the model has no plate over all of them.
    """
    batches, scale = _unaugmented(pair, batch_size, seed, skip, shard)
    own_seed = seed if shard is None else shard.local_seed(seed)
    return batches if augment is None else _augmented(pair, batches, augment, own_seed, skip), scale


def is_full_batch(pair: Pair, batch_size: int | None) -> bool:
    """Whether every step uses all rows, from memory."""
    return pair.source is None and batch_size in (None, pair.num_rows)


def _unaugmented(
    pair: Pair, batch_size: int | None, seed: int, skip: int, shard: Shard | None
) -> tuple[Iterator[tuple[Any, ...]], RowScale | None]:
    """Return batches without augmentation, and their scale."""
    num_rows, whole = pair.num_rows, is_full_batch(pair, batch_size)
    if whole and shard is None:
        return iter(lambda: pair.data, None), None
    plate, axes = pair.structure.row_plate, pair.structure.row_axes
    if batch_size is not None and not num_rows:
        kinds = ", ".join(type(value).__name__ for value in pair.data) or "none"
        raise InputError(
            f"batch_size={batch_size}: expected rows in a tensor that is an argument of the model, the arguments are: "
            f"{kinds}; rows inside containers are not found, so pass them as arguments of their own"
        )
    if plate is None:
        raise InputError(
            f"batch_size={batch_size or num_rows}: the model has no full plate over the rows to scale; rows= names it"
        )
    if whole and shard is not None:
        shard_data = axes.select(pair.data, shard.rows)
        return iter(lambda: shard_data, None), RowScale(plate, len(shard.sizes))
    if batch_size is None or not 1 <= batch_size <= num_rows:
        raise InputError(f"batch_size={batch_size}: expected between 1 and the {num_rows} rows of the data")
    pair.check_amortised()
    indices, num_shards, source = torch.arange(num_rows), 1, pair.source
    if shard is not None:
        indices, num_shards, batch_size = indices[shard.rows], len(shard.sizes), shard.local_batch_size(batch_size)
        source = source and source.shard(shard.rank, num_shards)
    if source is not None:
        device = pair.data[0].device
        batches = ((batch.to(device),) for batch in source.batches(batch_size, seed=seed, skip=skip))
        return batches, RowScale(plate, num_shards * len(source) / batch_size)
    strata = _strata(pair, indices, batch_size)
    scales = torch.cat([torch.full((size,), num_shards * len(rows) / size) for rows, size in strata])
    chosen = zip(*(_shuffled(rows, size, seed, skip) for rows, size in strata), strict=False)
    batches = (axes.select(pair.data, torch.cat(rows)) for rows in chosen)
    even = len(strata) == 1
    return batches, RowScale(plate, num_shards * len(indices) / batch_size if even else scales.to(pair.data[0]))


def _strata(pair: Pair, indices: Tensor, batch_size: int) -> list[tuple[Tensor, int]]:
    """Return strata of rows, each with its number of rows per batch.

    For stories that use labels, labelled rows come first and make up at least ``MIN_LABELLED`` of each batch: rare
    ones would otherwise appear too seldom.
    """
    if pair.labels is None or pair.story is None or not pair.story.takes_labels:
        return [(indices, batch_size)]
    has_label = (pair.labels >= 0).cpu()[indices]
    labelled, others = indices[has_label], indices[~has_label]
    fraction = max(MIN_LABELLED, len(labelled) / len(indices))
    size = max(min(round(fraction * batch_size), len(labelled), batch_size - 1), batch_size - len(others))
    strata = [(labelled, size), (others, batch_size - size)]
    return strata if len(labelled) and len(others) and size and size < batch_size else [(indices, batch_size)]


def _shuffled(rows: Tensor, size: int, seed: int, skip: int) -> Iterator[Tensor]:
    """Yield ``size`` rows at a time, in a new random order in each epoch."""
    epoch, skip = divmod(skip, len(rows) // size)
    for number in count(epoch):
        order = rows[torch.from_numpy(spawned_generator(seed, number).permutation(len(rows)))]
        for start in range(skip * size, len(rows) - size + 1, size):
            yield order[start : start + size]
        skip = 0


def _augmented(
    pair: Pair, batches: Iterator[tuple[Any, ...]], augment: Augment, seed: int, skip: int
) -> Iterator[tuple[Any, ...]]:
    """Augment the rows of each step, with random numbers that depend only on the seed and the step."""
    if not isinstance(pair.data[0], Tensor):
        raise InputError(f"augment: the model's first argument is a {type(pair.data[0]).__name__}; expected its rows")
    for step, (rows, *others) in zip(count(skip), batches, strict=False):
        with torch.random.fork_rng([rows.device] if rows.is_cuda else []):
            torch.manual_seed(int(spawned_generator(seed, step, 0).integers(2**63)))
            augmented: Any = augment(rows)
        if not isinstance(augmented, Tensor) or (augmented.shape, augmented.dtype) != (rows.shape, rows.dtype):
            kind = type(augmented).__name__
            result = f"{tuple(augmented.shape)} of {augmented.dtype}" if isinstance(augmented, Tensor) else f"a {kind}"
            raise InputError(f"augment: it returned {result}; expected {tuple(rows.shape)} of {rows.dtype}")
        if step == skip:
            _check_augmented(pair, rows, augmented)
        yield (augmented, *others)


def _check_augmented(pair: Pair, rows: Tensor, augmented: Tensor) -> None:
    """Raise ``InputError`` if augmented rows are invalid as data of the pair."""
    if bool((augmented.isnan() & ~rows.isnan()).any()):
        raise InputError("augment: it returned NaN for observed entries; expected numbers")
    if pair.story is not None:
        try:
            pair.story.check_data(augmented)
        except InputError as error:
            raise InputError(f"augment: {error}") from None
