"""Isolate a run: seed and restore random generators, copy modules, clone initial values of parameters."""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import os
import random
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyro
import torch
from pyro.infer.autoguide import AutoGuide
from pyro.poutine import runtime
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

__all__ = [
    "CloneInitialValues",
    "Wrapped",
    "collection_paused",
    "copy_pair",
    "exclusive",
    "flush_denormals",
    "generator_states",
    "ignore_nonfinite_warnings",
    "kept_generators",
    "modules_of",
    "overwrite",
    "seeded",
    "set_generator_states",
]


_LOCK = threading.RLock()
_depth = 0
"""Number of contexts of the thread that holds ``_LOCK``."""


def _unlock() -> None:
    """Start anew in a process that was forked while another thread held the lock."""
    global _LOCK, _depth
    if not _LOCK._is_owned():  # type: ignore[attr-defined]
        _LOCK, _depth = threading.RLock(), 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlock)


@contextlib.contextmanager
def exclusive() -> Iterator[None]:
    """Own Pyro's global state: other threads wait, and Pyro's handlers, inference mode and autocast do not apply.

    Those around the caller would change what is computed. Gradients are computed as outside, and not in inference mode.
    """
    global _depth
    with _LOCK:
        context = contextlib.nullcontext() if _depth else _without_outer_context()
        _depth += 1
        try:
            with context:
                yield
        finally:
            _depth -= 1


@contextlib.contextmanager
def _without_outer_context() -> Iterator[None]:
    """Remove Pyro's handlers, and torch's modes that change results."""
    handlers, plates = runtime._PYRO_STACK[:], runtime._DIM_ALLOCATOR._stack[:]
    with contextlib.ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        runtime._PYRO_STACK.clear()
        runtime._DIM_ALLOCATOR._stack.clear()
        try:
            yield
        finally:
            runtime._PYRO_STACK[:], runtime._DIM_ALLOCATOR._stack[:] = handlers, plates


@contextlib.contextmanager
def kept_generators() -> Iterator[None]:
    """Restore the generators of torch, NumPy and Python on exit."""
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch, NumPy and Python with any non-negative number, and restore their generators on exit."""
    with kept_generators():
        pyro.set_rng_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
        yield


@contextlib.contextmanager
def collection_paused() -> Iterator[None]:
    """Pause Python's garbage collector: while a graph is built, it would run through all modules many times."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextlib.contextmanager
def flush_denormals() -> Iterator[None]:
    """Flush denormal numbers to zero: CPUs are several times slower on them.

    Adam's moments become denormal where gradients vanish, as for pixels that are always zero. Applies to the calling
    thread and to threads that it starts.
    """
    before = bool(torch.tensor(1e-40) * 1 == 0)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


@contextlib.contextmanager
def ignore_nonfinite_warnings() -> Iterator[None]:
    """Suppress Pyro's warnings of a non-finite loss, for callers that handle one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Encountered (NaN|[+-]?inf)", UserWarning)
        yield


def generator_states() -> list[Tensor]:
    """Return the states of torch's generators: the CPU's, then those of all devices in use."""
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return [torch.get_rng_state(), *devices]


def set_generator_states(states: list[Tensor]) -> None:
    """Set the states of torch's generators."""
    torch.set_rng_state(states[0])
    if states[1:]:
        torch.cuda.set_rng_state_all(states[1:])


class CloneInitialValues(Messenger):
    """Clone the initial value of every ``pyro.param``, which Pyro would train in place if unconstrained."""

    def _pyro_param(self, msg: Any) -> None:
        name, *rest = msg["args"]
        if rest:
            msg["args"] = (name, _clone(rest[0]), *rest[1:])
        elif "init_tensor" in msg["kwargs"]:
            msg["kwargs"]["init_tensor"] = _clone(msg["kwargs"]["init_tensor"])


def _clone(value: Any) -> Any:
    """Clone a plain tensor, or a function's result; return a module's parameter unchanged."""
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        return value.detach().clone()
    if callable(value) and not isinstance(value, Tensor):
        return lambda: _clone(value())
    return value


def copy_pair(model: Any, guide: Any) -> tuple[Any, Any]:
    """Deep-copy a model and a guide, which may share modules; functions are not copied."""
    automatic = [
        part for module in modules_of(model, guide) for part in module.modules() if isinstance(part, AutoGuide)
    ]
    attributes = [(part, part._model, part.master) for part in automatic]
    copies: dict[int, Any] = {}
    own_model, own_guide = copy.deepcopy(model, copies), copy.deepcopy(guide, copies)
    for part, wrapped, master in attributes:
        # copying removes the model from an AutoGuide and from its copy
        part._model, part.master = wrapped, master
        copies[id(part)]._model = (copy.deepcopy(wrapped[0], copies),)
    return own_model, own_guide


def modules_of(*parts: Any) -> list[nn.Module]:
    """Return the modules among callables; a bound method is replaced by its module."""
    owners = [getattr(part, "__self__", part) for part in parts]
    return [owner for owner in owners if isinstance(owner, nn.Module)]


class Wrapped:
    """Base of callables that call another function: they have its name, and own its parameters like a bound method.

    Parameters
    ----------
    function
        The other function.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self.__self__ = getattr(function, "__self__", function)

    def __call__(self, *data: Any) -> Any:
        """Call the other function."""
        return self.function(*data)


def overwrite(values: dict[Tensor, Tensor]) -> None:
    """Set parameters and buffers in place."""
    for tensor, value in values.items():
        tensor.data.copy_(value)
