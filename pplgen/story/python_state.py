"""Python state that functions reach: attributes, closures, globals and the containers in them."""

from __future__ import annotations

import itertools
import sys
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
from pyro.nn import PyroModule
from torch import Tensor, nn

__all__ = ["changed_state", "reachable_buffers", "reachable_state"]

LIBRARIES = frozenset({"arviz", "numpy", "pandas", "pplgen", "pyro", "scipy", "sklearn", "torch", "xarray"})
"""Packages whose functions and objects are not examined, beside the standard library; their modules' children are."""
MAX_DEPTH, MAX_ITEMS = 8, 1000
"""Maximum depth of nesting, and number of items of a container, that are examined."""
PLAIN = (bool, int, float, complex, str, bytes, type(None))
LEAVES = (*PLAIN, Tensor, np.ndarray, itertools.count)
INTERNAL = frozenset(vars(PyroModule()))
"""Attributes that every module has."""


def reachable_state(*functions: Callable[..., Any]) -> dict[str, Any]:
    """Return the numbers, strings, lengths and identities that functions reach, by a readable name of the place."""
    state: dict[str, Any] = {}
    for name, value in _reached(functions):
        place = name
        while place in state:  # of the same name, such as in the closures of model and guide
            place += "'"
        if isinstance(value, (*PLAIN, itertools.count)):
            state[place] = repr(value)
        elif isinstance(value, Tensor):
            state[place] = id(value), value._version
        elif isinstance(value, np.ndarray):
            state[place] = id(value), value.tobytes() if value.size <= MAX_ITEMS else None
        elif isinstance(value, (list, tuple, set, frozenset, deque, Mapping)):
            state[f"len({place})"] = len(value)
    return state


def reachable_buffers(*functions: Callable[..., Any]) -> list[Tensor]:
    """Return the buffers of modules that functions reach, such as in their closures."""
    modules = (value for _, value in _reached(functions) if isinstance(value, nn.Module))
    return list({id(buffer): buffer for module in modules for buffer in module.buffers()}.values())


def _reached(functions: Iterable[Callable[..., Any]]) -> Iterator[tuple[str, Any]]:
    """Iterate over what functions reach, breadth first, each object once, with a name of its place."""
    seen: set[int] = set()
    pending: deque[tuple[str, Any, int]] = deque((_name(function), function, 0) for function in functions)
    while pending:
        place, value, depth = pending.popleft()
        if isinstance(value, LEAVES):
            yield place, value
        elif id(value) not in seen and depth < MAX_DEPTH:
            seen.add(id(value))
            yield place, value
            pending.extend((inner, each, depth + 1) for inner, each in _parts(place, value))


def changed_state(before: Mapping[str, Any], after: Mapping[str, Any]) -> str | None:
    """Return the first place whose state has changed, ``None`` if none has."""
    places = [*before, *(place for place in after if place not in before)]
    return next((place for place in places if before.get(place) != after.get(place)), None)


def _parts(place: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Iterate over what a value holds, with names."""
    if isinstance(value, Mapping):
        yield from ((f"{place}[{key!r}]", each) for key, each in itertools.islice(value.items(), MAX_ITEMS))
    elif isinstance(value, (list, tuple, deque)):
        yield from ((f"{place}[{index}]", each) for index, each in enumerate(itertools.islice(value, MAX_ITEMS)))
    elif isinstance(value, partial):
        yield from ((place, value.func), (f"{place}.args", value.args), (f"{place}.keywords", value.keywords))
    elif isinstance(value, types.MethodType):
        yield from ((place.rpartition(".")[0] or "self", value.__self__), (place, value.__func__))
    elif isinstance(value, types.FunctionType):
        if not _of_library(value.__module__):
            yield from _variables(value)
    elif isinstance(value, type):
        if not _of_library(value.__module__):
            own = ((name, each) for name, each in vars(value).items() if _is_state(name, each))
            yield from ((f"{value.__name__}.{name}", each) for name, each in own)
    elif not isinstance(value, types.ModuleType):
        yield from _attributes(place, value)


def _attributes(place: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Iterate over the attributes of an object and of its class, and over the children of a module."""
    kind, is_module = type(value), isinstance(value, nn.Module)
    if is_module:
        inside = value._modules | {name: each for name, each in value._buffers.items() if each is not None}
        yield from ((f"{place}.{name}", each) for name, each in inside.items())
    if _of_library(kind.__module__, besides="pplgen" if is_module else ""):
        return
    slots = (name for cls in kind.__mro__ for name in getattr(cls, "__slots__", ()))
    own = {name: getattr(value, name) for name in slots if hasattr(value, name)} | getattr(value, "__dict__", {})
    yield from (
        (f"{place}.{name}", each) for name, each in own.items() if name not in INTERNAL and _is_state(name, each)
    )
    yield kind.__name__, kind


def _is_state(name: str, value: Any) -> bool:
    """Whether an attribute may be state of its owner, or a method of a class."""
    return isinstance(value, types.FunctionType) or not (name.startswith("__") or isinstance(value, types.ModuleType))


def _variables(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """Iterate over a function's closure, the globals that its code names, its defaults and its attributes."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not yet assigned
            continue
    yield from (
        (name, function.__globals__[name]) for name in _names(function.__code__) if name in function.__globals__
    )
    name = function.__name__
    yield from ((f"{name}'s defaults", function.__defaults__), (f"{name}'s keyword defaults", function.__kwdefaults__))
    yield from ((f"{name}.{key}", each) for key, each in vars(function).items() if key != "__wrapped__")
    if wrapped := vars(function).get("__wrapped__"):
        yield name, wrapped


def _names(code: types.CodeType) -> list[str]:
    """Names in a function's code and the functions inside it."""
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return list(dict.fromkeys([*code.co_names, *(name for each in inner for name in _names(each))]))


def _of_library(module: str | None, besides: str = "") -> bool:
    """Whether a module is of the standard library or of ``LIBRARIES``, except ``besides``."""
    root = (module or "builtins").partition(".")[0]
    return root != besides and (root in LIBRARIES or (root in sys.stdlib_module_names and root != "__main__"))


def _name(function: Callable[..., Any]) -> str:
    """Return a name for a function or a module."""
    return getattr(function, "__qualname__", None) or type(function).__name__
