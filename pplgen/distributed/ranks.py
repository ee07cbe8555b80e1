"""Ranks: collectives of ``torch.distributed``, joint error handling, and the process group of ``torchrun``.

All ranks call the collectives below in the same order. Code in which only some could fail runs in ``shared_errors``,
which makes all of them raise the error; other failures of a rank are detected by its heartbeat within a minute.
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

from pplgen.compiler.traceable_pyro import NotTraceable
from pplgen.data.streams import spawned_generator
from pplgen.distributed.heartbeat import Heartbeat, RankLost
from pplgen.errors import InputError, first_line

__all__ = ["SINGLE_PROCESS", "Ranks", "communicates", "process_group", "without_communication"]

T = TypeVar("T")

_heartbeats = itertools.count()
_communication_off = False


class _Disconnected(RuntimeError):
    """A collective failed because a rank or the connection to it was lost."""


@contextlib.contextmanager
def without_communication() -> Iterator[None]:
    """Disable communication, as during tracing: means over ranks return the rank's own values."""
    global _communication_off
    before, _communication_off = _communication_off, True
    try:
        yield
    finally:
        _communication_off = before


@torch.library.custom_op("pplgen::mean_over_ranks", mutates_args=())
def _mean_over_ranks(values: Tensor) -> Tensor:
    """Average over all ranks; a single opaque operation in graphs and compiled code."""
    total = values.clone(memory_format=torch.contiguous_format)
    if _communication_off:
        return total
    with _convert_errors():
        dist.all_reduce(total)
    return total / dist.get_world_size()


@_mean_over_ranks.register_fake
def _(values: Tensor) -> Tensor:
    return torch.empty_like(values, memory_format=torch.contiguous_format)


def communicates(module: fx.GraphModule) -> bool:
    """Whether a graph contains an average over ranks."""
    return any(node.target is torch.ops.pplgen.mean_over_ranks.default for node in module.graph.nodes)


@dataclass(frozen=True)
class Ranks:
    """Rank of this process, number of ranks, and their collectives; without a process group there is one rank.

    Attributes
    ----------
    rank, size
        Rank of this process, and number of ranks.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> Ranks:
        """Return the ranks of the initialised process group, or a single rank."""
        if not (dist.is_available() and dist.is_initialized()):
            return SINGLE_PROCESS
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes files and prints."""
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """Average a tensor over ranks (all-reduce); the result is bitwise identical on all ranks."""
        return values if self.size == 1 else torch.ops.pplgen.mean_over_ranks(values)

    def broadcast(self, values: Sequence[Tensor], source: int = 0) -> list[Tensor]:
        """Return the tensors of the rank ``source`` on all ranks."""
        if self.size == 1:
            return list(values)
        copies = [value.detach().clone(memory_format=torch.contiguous_format) for value in values]
        with _convert_errors():
            for value in copies:
                dist.broadcast(value, source)
        return copies

    def all_gather(self, value: T) -> list[T]:
        """Return the values of all ranks, in the order of ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with _convert_errors():
            dist.all_gather_object(values, value)
        return values

    def first_not_none(self, value: T | None) -> T | None:
        """Return the value of the first rank whose value is not ``None``."""
        return next((each for each in self.all_gather(value) if each is not None), None)

    def on_first_rank(self, function: Callable[[], T]) -> T:
        """Call a function on the first rank only; return its result, or raise its error, on all ranks."""
        result: list[Any] = [None]
        with self.shared_errors():
            if self.first:
                result = [function()]
        if self.size > 1:
            with _convert_errors():
                dist.broadcast_object_list(result)
        return result[0]

    def first_rank_first(self, function: Callable[[], T]) -> T:
        """Call a function on the first rank, then on the others, which can use files that it downloaded."""
        results: list[T] = []
        for is_turn in (self.first, not self.first):
            with self.shared_errors():
                if is_turn:
                    results.append(function())
        return results[0]

    @contextlib.contextmanager
    def shared_errors(self) -> Iterator[None]:
        """Raise the error of one rank on all ranks; the block must not contain collectives, as not all may reach them.

        Raises
        ------
        InputError, NotTraceable
            The error of the first rank that raised one.
        """
        raised: InputError | NotTraceable | None = None
        try:
            yield
        except (InputError, NotTraceable) as error:
            if self.size == 1:
                raise
            raised = error
        if self.size == 1:
            return
        errors = self.all_gather(None if raised is None else (isinstance(raised, InputError), str(raised)))
        for rank, description in enumerate(errors):
            if description is not None:
                is_input_error, message = description
                if not is_input_error:
                    raise NotTraceable(message) from None
                raise InputError(f"rank {rank}: {message}" if rank else message) from None

    def all_equal(self, value: Any) -> bool:
        """Whether a JSON-serialisable value is equal on all ranks, compared by digest."""
        digest = hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()
        return len(set(self.all_gather(digest))) == 1

    def reseed(self, seed: int, step: int, *, per_rank: bool) -> None:
        """Seed torch's generators by seed and step, so that their state need not be saved; a single rank does nothing.

        Parameters
        ----------
        seed
            Seed of the run.
        step
            Number of steps taken.
        per_rank
            Whether ranks draw independently, as per-row latent variables require, or identically.
        """
        if self.size > 1:
            key = (step, self.rank + 1) if per_rank else (step, 0)
            torch.manual_seed(int(spawned_generator(seed, *key).integers(2**63)))

    @contextlib.contextmanager
    def monitored(self) -> Iterator[None]:
        """Detect lost ranks during the block, and report an error of this rank to the others.

        Raises
        ------
        RankLost
            Where another rank has died or stopped. A process that keeps waiting for it, as NCCL does, is terminated.
        """
        if self.size == 1:
            yield
            return
        store = dist.distributed_c10d._get_default_store()
        heartbeat = Heartbeat(store, f"pplgen/{next(_heartbeats)}", self.rank, self.size)
        try:
            yield
        except _Disconnected as error:
            lost = heartbeat.failure() or f"the ranks lost their connection, so the run ends: {first_line(error)}"
            heartbeat.stop(lost)
            raise RankLost(lost) from None
        except BaseException as error:
            kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
            heartbeat.stop(kind + first_line(error) if str(error) else type(error).__name__)  # type: ignore[arg-type]
            raise
        heartbeat.stop()


SINGLE_PROCESS = Ranks()
"""A single rank, regardless of any process group."""


@contextlib.contextmanager
def process_group(device: str | None = None) -> Iterator[Ranks]:
    """Initialise the process group of ``torchrun`` and destroy it at the end; otherwise yield a single rank.

    The backend is gloo, and NCCL for tensors on GPUs, one GPU per rank.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ or dist.is_initialized():
        yield Ranks.current()
        return
    on_gpu = device is not None and device.startswith("cuda")
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
    yield Ranks.current()
    dist.destroy_process_group()  # not after an error: it would wait for lost ranks


@contextlib.contextmanager
def _convert_errors() -> Iterator[None]:
    """Raise errors of collectives as ``_Disconnected``."""
    try:
        yield
    except RuntimeError as error:
        raise _Disconnected(first_line(error)) from error
