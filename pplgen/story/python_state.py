"""Python state that functions reach, in a form in which two points in time can be compared."""

from __future__ import annotations

import io
import itertools
import operator
import random
import types
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pplgen.story.reachable import CLOCKS, PLAIN, is_library, reached

__all__ = ["changed_state", "reachable_buffers", "reachable_state"]

ROW, LARGE, LARGEST = 1 << 12, 1 << 24, 1 << 28
"""Bytes: memory above ``LARGE`` is summed by ``ROW`` before it is digested, above ``LARGEST`` only some of its rows."""


def reachable_state(*functions: Callable[..., Any]) -> dict[str, Any]:
    """Return what may change between two calls of functions, by a readable name of the place.

    These are the values, lengths and identities that functions reach (``pplgen.story.reachable``), digests of the
    memory of tensors and arrays, positions of iterators, and the global random generators of NumPy and Python. What
    cannot be compared, such as a clock, is described as different each time.
    """
    generator: Any = np.random.get_state()  # noqa: NPY002
    state: dict[str, Any] = {
        "NumPy's global random generator": (generator[1].tobytes(), *generator[2:]),
        "Python's global random generator": random.getstate(),
    }
    digests: dict[int, int] = {}
    for name, value in reached(functions):
        for place, description in _descriptions(name, value, digests):
            while place in state:  # of the same name, such as in the closures of model and guide
                place += "'"
            state[place] = description
    return state


def reachable_buffers(*functions: Callable[..., Any]) -> list[Tensor]:
    """Return the buffers of modules that functions reach, such as in their closures."""
    modules = (value for _, value in reached(functions) if isinstance(value, nn.Module))
    return list({id(buffer): buffer for module in modules for buffer in module.buffers()}.values())


def changed_state(before: Mapping[str, Any], after: Mapping[str, Any]) -> str | None:
    """Return the first place whose state has changed, ``None`` if none has."""
    places = [*before, *(place for place in after if place not in before)]
    return next((place for place in places if before.get(place) != after.get(place)), None)


def _descriptions(place: str, value: Any, digests: dict[int, int]) -> Iterator[tuple[str, Any]]:
    """Iterate over comparable descriptions of one value, without what it holds; ``digests`` are those of memory."""
    if isinstance(value, PLAIN):
        yield place, repr(value)
    elif isinstance(value, Tensor):
        yield place, (id(value), value._version, _tensor_digest(value, digests))
    elif isinstance(value, np.ndarray):
        yield place, (value.shape, value.dtype.str, _array_digest(value, digests))
    elif isinstance(value, (set, frozenset)):
        yield f"len({place})", len(value)
        yield place, hash(frozenset(value))
    elif isinstance(value, (list, tuple, deque, Mapping)):
        yield f"len({place})", len(value)
    elif isinstance(value, (types.FunctionType, type)):
        yield place, id(value)
    elif isinstance(value, types.BuiltinFunctionType | types.ClassMethodDescriptorType):
        if value in CLOCKS:
            yield f"{place}, a clock", object()
    elif isinstance(value, types.GeneratorType):
        yield place, None if value.gi_frame is None else value.gi_frame.f_lasti
    elif isinstance(value, io.IOBase):
        if not value.closed and value.readable():
            yield place, value.tell() if value.seekable() else object()
    elif isinstance(value, Iterator) and is_library(type(value).__module__):
        yield f"{place}, an iterator", _position(value)


def _position(iterator: Iterator[Any]) -> Any:
    """Describe the position of an iterator that is not a generator's."""
    if isinstance(iterator, (itertools.count, itertools.repeat)):
        return repr(iterator)
    return operator.length_hint(iterator) if hasattr(iterator, "__length_hint__") else object()


def _tensor_digest(value: Tensor, digests: dict[int, int]) -> int | None:
    """Digest the memory of a tensor, which changes also where its version does not; ``None`` where it has none."""
    try:
        storage = value.untyped_storage()
        if (key := storage.data_ptr()) not in digests:
            digests[key] = _digest(torch.empty(0, dtype=torch.uint8, device=value.device).set_(storage))
        return digests[key]
    except (NotImplementedError, RuntimeError):
        return None


def _array_digest(value: np.ndarray, digests: dict[int, int]) -> int | None:
    """Digest the memory of an array; that of objects is examined where they are reached."""
    while isinstance(value.base, np.ndarray):
        value = value.base
    if value.dtype.hasobject or not value.nbytes:
        return None
    if (key := value.ctypes.data) not in digests:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            digests[key] = _digest(torch.from_numpy(np.asarray(value).ravel(order="K").view(np.uint8)))
    return digests[key]


def _digest(memory: Tensor) -> int:
    """Digest bytes; of ``LARGE`` memory, one sum per row of it, which reads it at several times the speed."""
    rest = memory[memory.numel() // ROW * ROW :]
    if memory.numel() > LARGE:
        rows = memory[: memory.numel() - len(rest)].view(torch.int64).view(-1, ROW // 8)
        memory = torch.cat([rows[:: 1 + memory.numel() // LARGEST].sum(1).view(torch.uint8), rest])
    return zlib.crc32(memory.cpu().numpy().data)
