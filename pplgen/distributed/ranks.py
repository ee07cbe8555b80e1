"""Processes that fit together: what they tell one another through ``torch.distributed``, and how they join and end.

All ranks call the collectives below in the same order. Code in which only some could fail runs in ``shared_errors``,
which makes all of them raise the error; a rank that ends otherwise is noticed by the others within a minute.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, fx

from pplgen.compiler.tracing import NotTraceable
from pplgen.data.streams import spawned_generator
from pplgen.distributed.heartbeat import Heartbeat, RankLost
from pplgen.errors import InputError, first_line

__all__ = ["SINGLE_PROCESS", "Ranks", "communicates", "process_group", "without_communication"]

T = TypeVar("T")

_watches = itertools.count()
_communication_off = False


class _Disconnected(RuntimeError):
    """A collective failed, because another rank has gone or something is wrong between them."""


@contextlib.contextmanager
def without_communication() -> Iterator[None]:
    """Let each rank go by itself: means over ranks are its own values meanwhile, as while a step is traced."""
    global _communication_off
    before, _communication_off = _communication_off, True
    try:
        yield
    finally:
        _communication_off = before


@torch.library.custom_op("pplgen::mean_over_ranks", mutates_args=())
def _mean_over_ranks(values: Tensor) -> Tensor:
    """Average over all ranks; one operation in graphs, which compiled code calls as it is."""
    total = values.clone(memory_format=torch.contiguous_format)
    if _communication_off:
        return total
    with _talking():
        dist.all_reduce(total)
    return total / dist.get_world_size()


@_mean_over_ranks.register_fake
def _(values: Tensor) -> Tensor:
    return torch.empty_like(values, memory_format=torch.contiguous_format)


def communicates(module: fx.GraphModule) -> bool:
    """Whether a graph averages over ranks."""
    return any(node.target is torch.ops.pplgen.mean_over_ranks.default for node in module.graph.nodes)


@dataclass(frozen=True)
class Ranks:
    """The processes of a fit, as one of them sees them; a fit in one process has one rank.

    Attributes
    ----------
    rank, size
        Which of how many.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> Ranks:
        """Return the ranks of the process group that is initialised; this process alone without one."""
        if not (dist.is_available() and dist.is_initialized()):
            return SINGLE_PROCESS
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes files and talks to the user."""
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """Average a tensor over ranks; to the last digit the same on all of them."""
        return values if self.size == 1 else torch.ops.pplgen.mean_over_ranks(values)

    def broadcast(self, values: Sequence[Tensor], source: int = 0) -> list[Tensor]:
        """Return the tensors of one rank, on all of them."""
        if self.size == 1:
            return list(values)
        own = [value.detach().clone(memory_format=torch.contiguous_format) for value in values]
        with _talking():
            for value in own:
                dist.broadcast(value, source)
        return own

    def all_gather(self, value: T) -> list[T]:
        """Return the values of all ranks, in their order."""
        if self.size == 1:
            return [value]
        every: list[Any] = [None] * self.size
        with _talking():
            dist.all_gather_object(every, value)
        return every

    def first_not_none(self, value: T | None) -> T | None:
        """Return the value of the first rank that has one."""
        return next((each for each in self.all_gather(value) if each is not None), None)

    def on_first_rank(self, function: Callable[[], T]) -> T:
        """Return what a function returns on the first rank, which alone calls it, or raise what it raises there."""
        found: list[Any] = [None]
        with self.shared_errors():
            if self.first:
                found = [function()]
        if self.size > 1:
            with _talking():
                dist.broadcast_object_list(found)
        return found[0]

    def first_rank_first(self, function: Callable[[], T]) -> T:
        """Call a function on the first rank, and then on the others, which find what it has downloaded."""
        found: list[T] = []
        for now in (self.first, not self.first):
            with self.shared_errors():
                if now:
                    found.append(function())
        return found[0]

    @contextlib.contextmanager
    def shared_errors(self) -> Iterator[None]:
        """Let all ranks fail where one does: no collective may stand inside, for not all ranks might reach it.

        Raises
        ------
        InputError, NotTraceable
            What any rank has raised, on all of them.
        """
        problem: InputError | NotTraceable | None = None
        try:
            yield
        except (InputError, NotTraceable) as error:
            if self.size == 1:
                raise
            problem = error
        if self.size == 1:
            return
        told = self.all_gather(None if problem is None else (isinstance(problem, InputError), str(problem)))
        for rank, found in enumerate(told):
            if found is not None:
                mistake, what = found
                if not mistake:
                    raise NotTraceable(what) from None
                raise InputError(f"rank {rank}: {what}" if rank else what) from None

    def all_equal(self, value: Any) -> bool:
        """Whether a JSON-able value is the same on all ranks; these compare digests."""
        digest = hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()
        return len(set(self.all_gather(digest))) == 1

    def reseed(self, seed: int, step: int, *, per_rank: bool) -> None:
        """Seed torch's generators by the place in the run, so that nothing of them need be kept; alone, do nothing.

        Parameters
        ----------
        seed
            Of the run.
        step
            Steps taken.
        per_rank
            Whether ranks draw on their own, as latents of their rows need, or all draw the same.
        """
        if self.size > 1:
            place = (step, self.rank + 1) if per_rank else (step, 0)
            torch.manual_seed(int(spawned_generator(seed, *place).integers(2**63)))

    @contextlib.contextmanager
    def monitored(self) -> Iterator[None]:
        """Notice ranks that are lost meanwhile; tell the others why where this one cannot go on.

        Raises
        ------
        RankLost
            Where another rank has died or stopped. A process that goes on waiting for it, as NCCL does, is ended.
        """
        if self.size == 1:
            yield
            return
        store = dist.distributed_c10d._get_default_store()
        watch = Heartbeat(store, f"pplgen/{next(_watches)}", self.rank, self.size)
        try:
            yield
        except _Disconnected as error:
            lost = watch.failure() or f"the ranks have lost their connection, so the run ends: {first_line(error)}"
            watch.stop(lost)
            raise RankLost(lost) from None
        except BaseException as error:
            kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
            watch.stop(kind + first_line(error) if str(error) else type(error).__name__)  # type: ignore[arg-type]
            raise
        watch.stop()


SINGLE_PROCESS = Ranks()
"""This process, whatever process group there is."""


@contextlib.contextmanager
def process_group(device: str | None = None) -> Iterator[Ranks]:
    """Join the processes that ``torchrun`` has started, and leave them when all is done; one process is alone.

    They talk through gloo, and those that compute on GPUs, one each, through NCCL.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ or dist.is_initialized():
        yield Ranks.current()
        return
    on_gpu = device is not None and device.startswith("cuda")
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
    yield Ranks.current()
    dist.destroy_process_group()  # not where something went wrong: it would wait for ranks that are gone


@contextlib.contextmanager
def _talking() -> Iterator[None]:
    """Tell trouble between ranks from other errors."""
    try:
        yield
    except RuntimeError as error:
        raise _Disconnected(first_line(error)) from error
