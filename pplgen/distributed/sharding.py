"""Rows shared out over ranks: which rows each has, how many of them a step takes, and what cannot be shared out."""

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
from pplgen.story.pair import Pair, select_rows

__all__ = ["AveragedELBO", "Shard", "broadcast_parameters", "check_same_on_all_ranks", "check_shardable", "shard_rows"]

_SUMS = (Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO, TraceGraph_ELBO)
"""Bounds that are sums over rows, and those derived from them."""


@dataclass(frozen=True)
class Shard:
    """The rows of one rank.

    With the log densities of its rows multiplied by the number of ranks, the mean over ranks is the bound of all rows:
    what the rows share counts once, each row once, however uneven the shards.

    Attributes
    ----------
    rank
        Whose.
    sizes
        Rows of each rank; those in memory are shared out in order.
    """

    rank: int
    sizes: tuple[int, ...]

    @property
    def num_rows(self) -> int:
        """Rows of this rank."""
        return self.sizes[self.rank]

    @property
    def rows(self) -> slice:
        """Which rows in memory are this rank's."""
        ends = tuple(accumulate(self.sizes))
        return slice(ends[self.rank] - self.num_rows, ends[self.rank])

    def local_batch_size(self, batch_size: int) -> int:
        """Return this rank's part of a batch, in proportion to its rows and one row at least.

        Raises
        ------
        InputError
            Where a batch has fewer rows than there are ranks.
        """
        if batch_size < len(self.sizes):
            raise InputError(f"batch_size={batch_size}: expected one row at least for each of {len(self.sizes)} ranks")
        total = sum(self.sizes)
        shares = [max(1, batch_size * size // total) for size in self.sizes]
        # what is left goes where most was rounded away
        order = sorted(range(len(shares)), key=lambda rank: shares[rank] - batch_size * self.sizes[rank] / total)
        for rank in order[: max(0, batch_size - sum(shares))]:
            shares[rank] += 1
        return shares[self.rank]

    def local_seed(self, seed: int) -> int:
        """Return a seed of this rank's own."""
        return int(spawned_generator(seed, 0, self.rank).integers(2**63))


def shard_rows(pair: Pair, ranks: Ranks) -> Shard | None:
    """Share out a pair's rows; ``None`` where there is one rank.

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
        raise InputError(f"{pair.num_rows} rows cannot be shared by {ranks.size} ranks; shard='restarts' shares these")
    each, more = divmod(pair.num_rows, ranks.size)
    return Shard(ranks.rank, tuple(each + (rank < more) for rank in range(ranks.size)))


def broadcast_parameters(pair: Pair, ranks: Ranks, source: int = 0) -> None:
    """Give a pair on all ranks the parameters and buffers that it has on one."""
    if ranks.size == 1:
        return
    with pair.isolated(), torch.no_grad():
        own = pair.snapshot()
        buffers = buffers_of(pair)
        parameters = ranks.broadcast([own[name] for name in sorted(own)], source)
        pair.restore(dict(zip(sorted(own), parameters, strict=True)))
        for buffer, value in zip(buffers, ranks.broadcast(buffers, source), strict=True):
            buffer.copy_(value)


def check_same_on_all_ranks(pair: Pair, ranks: Ranks) -> None:
    """Raise ``InputError`` on all ranks where names or shapes of the parameters, or the data, differ between them."""
    if ranks.size == 1:
        return
    with pair.isolated():
        parameters = {name: (tuple(value.shape), str(value.dtype)) for name, value in sorted(pair.snapshot().items())}
    source = pair.source and [pair.source.name, pair.source.columns, pair.source.shard_sizes(ranks.size)]
    data = content_digest({}, tensors_of(pair.data))
    for what, value in (("parameters", parameters), ("files", source), ("data", data)):
        if not ranks.all_equal(value):
            raise InputError(f"ranks have different {what}; all of them call fit with the same arguments")


@torch.no_grad()
def check_shardable(pair: Pair, bound: ELBO) -> None:
    """Raise ``InputError`` where the bound is no sum over rows, so that ranks cannot each compute a part of it."""
    if not isinstance(bound, _SUMS):
        raise InputError(f"{type(bound).__name__} is no sum over rows for ranks to share; shard='restarts' runs it")
    plate = pair.structure.row_plate
    if plate is None:
        raise InputError("rows are shared by ranks, and the model has no full pyro.plate('data', ...) over them")
    terms = [name for name in (*pair.structure.observed, *pair.structure.factors) if name not in pair.structure.per_row]
    with pair.isolated(), pyro.validation_enabled(False):
        pair.check_amortised()
        if not terms and not pair.structure.shared_latent:
            return
        fewer = tuple(select_rows(value, slice(-(-len(pair.data[0]) // 2)), len(pair.data[0])) for value in pair.data)
        whole, half = (_densities(pair, data, terms) for data in (pair.data, fewer))
    for name in whole:
        if whole[name].shape != half[name].shape or not torch.allclose(whole[name], half[name], equal_nan=True):
            raise InputError(
                f"site {name!r} depends on the rows outside pyro.plate({plate!r}), so ranks cannot share them"
            )


def _densities(pair: Pair, data: tuple[Any, ...], names: list[str]) -> dict[str, Tensor]:
    """Return log densities of sites and of shared latents, given draws of these that are the same for all rows.

    Those of the guide are named so.
    """
    rows = list(pair.structure.row_latent)
    with seeded(0):
        shared = poutine.trace(poutine.block(pair.guide, hide=rows)).get_trace(*pair.data)
        values = {name: shared.nodes[name]["value"] for name in pair.structure.shared_latent}
        trace = poutine.trace(poutine.condition(pair.model, values)).get_trace(*data)
        guide = poutine.trace(poutine.block(poutine.condition(pair.guide, values), hide=rows)).get_trace(*data)
    trace.compute_log_prob(lambda name, _: name in names or name in values)
    guide.compute_log_prob(lambda name, _: name in values)
    found = {name: trace.nodes[name]["log_prob"] for name in (*names, *values)}
    return found | {f"{name} of the guide": guide.nodes[name]["log_prob"] for name in values}


class AveragedELBO:
    """A bound of Pyro's, its value and gradients averaged over ranks, all of which evaluate it at the same time.

    Parameters
    ----------
    bound
        Of one rank's rows.
    ranks
        All of them.
    """

    def __init__(self, bound: ELBO, ranks: Ranks) -> None:
        self.bound, self.ranks = bound, ranks

    def loss(self, model: Any, guide: Any, *data: Any) -> float:
        """Return the loss in nats, NaN on all ranks where a factorisation broke down on one."""
        return float(self.ranks.mean(torch.tensor([_finite_or_nan(self.bound.loss, model, guide, *data)]).double()))

    def loss_and_grads(self, model: Any, guide: Any, *data: Any) -> float:
        """Return the loss likewise, and leave averaged gradients with the parameters in the order of their names."""
        for _, value in pyro.get_param_store().named_parameters():
            value.grad = None  # of a step whose factorisation broke down, in which not all were moved
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
    """Evaluate a loss; every rank must reach what follows, so that a factorisation that broke down is NaN."""
    try:
        return float(evaluate(*arguments))
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        return math.nan
