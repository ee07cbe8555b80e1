"""Shard rows over ranks: row ranges, local batch sizes, and checks that model and guide can be sharded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch import Tensor

from pplgen.compiler.graph import buffers_of, tensors_of
from pplgen.data.streams import spawned_generator
from pplgen.distributed.ranks import Ranks
from pplgen.errors import InputError
from pplgen.storage.checkpoint import content_digest
from pplgen.story.isolation import seeded
from pplgen.story.pair import Pair

__all__ = ["AveragedELBO", "Shard", "broadcast_parameters", "check_same_on_all_ranks", "check_shardable", "shard_rows"]

_SUMS_OVER_ROWS = (Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO, TraceGraph_ELBO)
"""ELBO classes, with their subclasses, that are sums over rows."""


@dataclass(frozen=True)
class Shard:
    """The rows of one rank.

    With the log densities of its rows multiplied by the number of ranks, the mean over ranks is the ELBO of all rows:
    shared latent variables and each row count once, however uneven the shards.

    Attributes
    ----------
    rank
        Rank of this process.
    sizes
        Number of rows of each rank; rows in memory are split in order.
    """

    rank: int
    sizes: tuple[int, ...]

    @property
    def num_rows(self) -> int:
        """Number of rows of this rank."""
        return self.sizes[self.rank]

    @property
    def rows(self) -> slice:
        """Range of this rank's rows in memory."""
        ends = tuple(accumulate(self.sizes))
        return slice(ends[self.rank] - self.num_rows, ends[self.rank])

    def local_batch_size(self, batch_size: int) -> int:
        """Return this rank's part of a batch, proportional to its number of rows and at least 1.

        Raises
        ------
        InputError
            Where a batch has fewer rows than there are ranks.
        """
        if batch_size < len(self.sizes):
            raise InputError(f"batch_size={batch_size}: expected at least one row for each of {len(self.sizes)} ranks")
        total = sum(self.sizes)
        parts = [max(1, batch_size * size // total) for size in self.sizes]
        # the remainder goes to the ranks with the largest rounding errors
        order = sorted(range(len(parts)), key=lambda rank: parts[rank] - batch_size * self.sizes[rank] / total)
        for rank in order[: max(0, batch_size - sum(parts))]:
            parts[rank] += 1
        return parts[self.rank]

    def local_seed(self, seed: int) -> int:
        """Return a seed unique to this rank."""
        return int(spawned_generator(seed, 0, self.rank).integers(2**63))


def shard_rows(pair: Pair, ranks: Ranks) -> Shard | None:
    """Split a pair's rows over ranks; ``None`` for a single rank.

    Raises
    ------
    InputError
        Where there are fewer rows, or blocks of a stream, than ranks.
    """
    if ranks.size == 1:
        return None
    if pair.source is not None:
        return Shard(ranks.rank, pair.source.shard_sizes(ranks.size))
    if pair.num_rows < ranks.size:
        raise InputError(f"{pair.num_rows} rows cannot be split over {ranks.size} ranks; use shard='restarts'")
    each, more = divmod(pair.num_rows, ranks.size)
    return Shard(ranks.rank, tuple(each + (rank < more) for rank in range(ranks.size)))


def broadcast_parameters(pair: Pair, ranks: Ranks, source: int = 0) -> None:
    """Broadcast a pair's parameters and buffers from the rank ``source`` to all ranks."""
    if ranks.size == 1:
        return
    with pair.isolated(), torch.no_grad():
        values = pair.snapshot()
        buffers = buffers_of(pair)
        parameters = ranks.broadcast([values[name] for name in sorted(values)], source)
        pair.restore(dict(zip(sorted(values), parameters, strict=True)))
        for buffer, value in zip(buffers, ranks.broadcast(buffers, source), strict=True):
            buffer.copy_(value)


def check_same_on_all_ranks(pair: Pair, ranks: Ranks) -> None:
    """Raise ``InputError`` on all ranks where parameter names, parameter shapes or data differ between ranks."""
    if ranks.size == 1:
        return
    with pair.isolated():
        parameters = {name: (tuple(value.shape), str(value.dtype)) for name, value in sorted(pair.snapshot().items())}
    source = pair.source and [pair.source.name, pair.source.columns, pair.source.shard_sizes(ranks.size)]
    data = content_digest({}, tensors_of(pair.data))
    for kind, value in (("parameters", parameters), ("files", source), ("data", data)):
        if not ranks.all_equal(value):
            raise InputError(f"ranks have different {kind}; call fit with the same arguments on all ranks")


@torch.no_grad()
def check_shardable(pair: Pair, bound: ELBO) -> None:
    """Raise ``InputError`` where the ELBO is not a sum over rows, so that it cannot be split over ranks."""
    if not isinstance(bound, _SUMS_OVER_ROWS):
        raise InputError(
            f"{type(bound).__name__} is not a sum over rows and cannot be split over ranks; use shard='restarts'"
        )
    plate = pair.structure.row_plate
    if plate is None:
        raise InputError("rows cannot be split over ranks: the model has no full plate over them; rows= names it")
    terms = [name for name in (*pair.structure.observed, *pair.structure.factors) if name not in pair.structure.per_row]
    with pair.isolated(), pyro.validation_enabled(False):
        pair.check_amortised()
        if not terms and not pair.structure.shared_latent:
            return
        half_of_rows = pair.structure.row_axes.select(pair.data, slice(-(-pair.num_rows // 2)))
        all_rows, half = (_densities(pair, data, terms) for data in (pair.data, half_of_rows))
    for name in all_rows:
        if all_rows[name].shape != half[name].shape or not torch.allclose(all_rows[name], half[name], equal_nan=True):
            raise InputError(
                f"site {name!r} depends on the rows outside pyro.plate({plate!r}), so they cannot be split over ranks"
            )


def _densities(pair: Pair, data: tuple[Any, ...], names: list[str]) -> dict[str, Tensor]:
    """Return log densities of sites and shared latent variables, given guide draws of the latter with a fixed seed.

    The guide's log densities have keys that end in "of the guide".
    """
    rows = list(pair.structure.row_latent)
    with seeded(0):
        shared = poutine.trace(poutine.block(pair.guide, hide=rows)).get_trace(*pair.data)
        values = {name: shared.nodes[name]["value"] for name in pair.structure.shared_latent}
        trace = poutine.trace(poutine.condition(pair.model, values)).get_trace(*data)
        guide = poutine.trace(poutine.block(poutine.condition(pair.guide, values), hide=rows)).get_trace(*data)
    trace.compute_log_prob(lambda name, _: name in names or name in values)
    guide.compute_log_prob(lambda name, _: name in values)
    densities = {name: trace.nodes[name]["log_prob"] for name in (*names, *values)}
    return densities | {f"{name} of the guide": guide.nodes[name]["log_prob"] for name in values}


class AveragedELBO:
    """A Pyro ELBO whose value and gradients are averaged over ranks; all ranks must evaluate it together.

    Parameters
    ----------
    bound
        ELBO of this rank's rows.
    ranks
        Ranks to average over.
    """

    def __init__(self, bound: ELBO, ranks: Ranks) -> None:
        self.bound, self.ranks = bound, ranks

    def loss(self, model: Any, guide: Any, *data: Any) -> float:
        """Return the loss in nats, NaN on all ranks where a factorisation failed on one."""
        return float(self.ranks.mean(torch.tensor([_finite_or_nan(self.bound.loss, model, guide, *data)]).double()))

    def loss_and_grads(self, model: Any, guide: Any, *data: Any) -> float:
        """Return the loss as ``loss`` does, and set the averaged gradients of the parameters."""
        for _, value in pyro.get_param_store().named_parameters():
            value.grad = None  # left by a step with a failed factorisation
        loss = _finite_or_nan(self.bound.loss_and_grads, model, guide, *data)
        parameters = [value for _, value in sorted(pyro.get_param_store().named_parameters())]
        gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
        parts = [each.detach().reshape(-1).double() for each in (torch.tensor(loss), *gradients)]
        device = gradients[0].device if gradients else torch.device("cpu")
        mean, *rest = self.ranks.mean(torch.cat([each.to(device) for each in parts])).split([len(p) for p in parts])
        for parameter, gradient in zip(parameters, rest, strict=True):
            parameter.grad = gradient.reshape(parameter.shape).to(parameter)
        return float(mean)


def _finite_or_nan(evaluate: Any, *arguments: Any) -> float:
    """Evaluate a loss, NaN where a factorisation fails, since every rank must reach the following collective."""
    try:
        return float(evaluate(*arguments))
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        return math.nan
