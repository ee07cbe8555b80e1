"""Keeping a run apart: generators seeded and put back, modules copied, initial values of parameters never shared."""

from __future__ import annotations

import contextlib
import copy
import random
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyro
import torch
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

__all__ = [
    "CloneInitialValues",
    "copy_pair",
    "flush_denormals",
    "generator_states",
    "ignore_nonfinite_warnings",
    "modules_of",
    "overwrite",
    "seeded",
    "set_generator_states",
]


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run with torch, NumPy and Python seeded by any non-negative number, and put their generators back afterwards."""
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng():
        pyro.set_rng_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002


@contextlib.contextmanager
def flush_denormals() -> Iterator[None]:
    """Take numbers for zero that are below single precision's normal range, for which CPUs are several times slower.

    Adam's moments decay into that range where gradients vanish, as those of pixels that are never on do. It holds for
    the calling thread, and for threads that it starts.
    """
    before = bool(torch.tensor(1e-40) * 1 == 0)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


@contextlib.contextmanager
def ignore_nonfinite_warnings() -> Iterator[None]:
    """Leave out what Pyro warns of a loss that is not finite, where the caller heeds it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Encountered (NaN|[+-]?inf)", UserWarning)
        yield


def generator_states() -> list[Tensor]:
    """Return where torch's generators are: the CPU's, and those of all devices in use."""
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return [torch.get_rng_state(), *devices]


def set_generator_states(states: list[Tensor]) -> None:
    """Put torch's generators where they were."""
    torch.set_rng_state(states[0])
    if states[1:]:
        torch.cuda.set_rng_state_all(states[1:])


class CloneInitialValues(Messenger):
    """Clone the initial value of every ``pyro.param``: Pyro would train an unconstrained one in place."""

    def _pyro_param(self, msg: Any) -> None:
        name, *rest = msg["args"]
        if rest:
            msg["args"] = (name, _own(rest[0]), *rest[1:])
        elif "init_tensor" in msg["kwargs"]:
            msg["kwargs"]["init_tensor"] = _own(msg["kwargs"]["init_tensor"])


def _own(value: Any) -> Any:
    """Clone a plain tensor, or what a function returns; a module's parameter stays itself."""
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        return value.detach().clone()
    if callable(value) and not isinstance(value, Tensor):
        return lambda: _own(value())
    return value


def copy_pair(model: Any, guide: Any) -> tuple[Any, Any]:
    """Copy a model and a guide, which may share modules; functions stay themselves."""
    automatic = [
        part for module in modules_of(model, guide) for part in module.modules() if isinstance(part, AutoGuide)
    ]
    held = [(part, part._model, part.master) for part in automatic]
    copies: dict[int, Any] = {}
    own_model, own_guide = copy.deepcopy(model, copies), copy.deepcopy(guide, copies)
    for part, wrapped, master in held:
        # being copied empties an AutoGuide of its model, and its copy with it
        part._model, part.master = wrapped, master
        copies[id(part)]._model = (copy.deepcopy(wrapped[0], copies),)
    return own_model, own_guide


def modules_of(*parts: Any) -> list[nn.Module]:
    """Return the modules among callables, bound methods counting as the module that they are bound to."""
    owners = [getattr(part, "__self__", part) for part in parts]
    return [owner for owner in owners if isinstance(owner, nn.Module)]


def overwrite(values: dict[nn.Parameter, Tensor]) -> None:
    """Set parameters in place."""
    for parameter, value in values.items():
        parameter.data.copy_(value)
