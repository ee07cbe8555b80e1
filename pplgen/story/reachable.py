"""What functions reach: their closures, the globals that their code names, and what these hold, with readable names."""

from __future__ import annotations

import datetime
import dis
import io
import itertools
import marshal
import os
import sys
import time
import types
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from functools import lru_cache, partial
from typing import Any

import numpy as np
from pyro.nn import PyroModule
from torch import Tensor, nn

__all__ = ["CLOCKS", "PLAIN", "is_library", "reached"]

LIBRARIES = frozenset({"arviz", "numpy", "pandas", "pplgen", "pyro", "scipy", "sklearn", "torch", "xarray"})
"""Packages whose functions are not examined, beside the standard library; their modules' children are."""
OPAQUE = frozenset({"logging", "pplgen", "pyro", "torch"})
"""Packages whose objects are not examined either: some cache results, and all loggers hold each other."""
CLOCKS = frozenset(
    {getattr(time, name) for name in ("time", "time_ns", "monotonic", "monotonic_ns", "perf_counter")}
    | {time.perf_counter_ns, time.process_time, time.process_time_ns, os.urandom}
    | {vars(datetime.datetime)["now"], vars(datetime.datetime)["utcnow"], vars(datetime.date)["today"]}
)
"""Functions whose results nothing determines."""
MAX_ITEMS, MAX_PLACES = 100, 10_000
"""Number of items up to which those of a container are named, and number of places that are examined, nearest first."""
PLAIN = (bool, int, float, complex, str, bytes, type(None))
INTERNAL = frozenset({*vars(PyroModule()), "max_plate_nesting"}) - {"training"}
"""Attributes of every module, and that which an ELBO guesses at its first evaluation."""
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""Attributes of modules with functions that are called besides their own."""
LINKS = ("__self__", "__func__", "__wrapped__")
"""Attributes of methods, wrappers and decorators with what they call."""
PICKLING = frozenset({"__reduce__", "__reduce_ex__", "__getstate__"})
"""Methods that say what is kept of an object."""
EXAMINED = (partial, types.MethodType, np.ndarray, Iterator, io.IOBase)
"""Kinds of objects whose state is seen without them."""
EMPTY = types.CellType()
"""A closure's variable that is not yet assigned."""
BY_STRINGS = frozenset({"getattr", "globals", "setattr", "sys", "vars"})
"""Functions and modules that find variables by strings."""


def reached(functions: Iterable[Callable[..., Any]]) -> Iterator[tuple[str, Any]]:
    """Iterate over what functions reach, breadth first, with a name of its place; what is in an object only once."""
    seen: dict[int, Any] = {}  # holds the objects, so that no other gets their identity
    pending = [(_name(function), function) for function in functions]
    for place, value in itertools.islice(pending, MAX_PLACES):
        yield place, value
        if not isinstance(value, PLAIN) and id(value) not in seen:
            seen[id(value)] = value
            pending += _parts(place, value)


def is_library(module: str | None) -> bool:
    """Whether a module is of the standard library or of ``LIBRARIES``."""
    root = _root(module)
    return root in LIBRARIES or (root in sys.stdlib_module_names and root != "__main__")


def _parts(place: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Iterate over what a value holds, with names."""
    if isinstance(value, types.FunctionType):
        if not is_library(value.__module__):
            yield from _variables(value)
    elif isinstance(value, type):
        if not is_library(value.__module__):
            own = ((name, each) for name, each in vars(value).items() if _is_state(name, each))
            yield from ((f"{value.__name__}.{name}", each) for name, each in own)
            yield from ((base.__name__, base) for base in (*value.__bases__, type(value)))
    elif isinstance(value, types.ModuleType):
        if _is_state(place, value):
            yield from ((f"{place}.{name}", each) for name, each in vars(value).items() if _is_state(name, each))
    elif isinstance(value, types.GeneratorType):
        if value.gi_frame is not None:
            yield from ((f"{place}'s {name}", each) for name, each in value.gi_frame.f_locals.items())
            yield place, value.gi_yieldfrom
            yield from _globals(value.gi_code, value.gi_frame.f_globals)
    else:
        yield from _items(place, value)
        yield from _attributes(place, value)


def _items(place: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Iterate over the items of a container; of a long one whose items are plain, in any nesting, over their digest."""
    if isinstance(value, (list, tuple, deque, set, frozenset, Mapping)):
        items = list(value.items() if isinstance(value, Mapping) else value)
        if len(items) > MAX_ITEMS:
            try:
                yield place, zlib.crc32(marshal.dumps(items, 2))  # later versions depend on counts of references
                return
            except ValueError:
                yield place, hash(tuple(map(id, value.values() if isinstance(value, Mapping) else items)))
        named = items if isinstance(value, Mapping) else enumerate(items)
        yield from ((f"{place}[{key!r}]", each) for key, each in itertools.islice(named, MAX_PLACES))
    elif isinstance(value, np.ndarray) and value.dtype.hasobject:
        yield place, value.ravel().tolist()
    elif isinstance(value, ContextVar):
        yield place, value.get(None)


def _attributes(place: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Iterate over the attributes of an object, its class, and the children, buffers and hooks of a module."""
    kind: Any = type(value)
    is_module = isinstance(value, nn.Module)
    if is_module:
        hooks = {name: each for name in HOOKS if (each := getattr(value, name))}
        yield from ((f"{place}.{name}", each) for name, each in (value._modules | value._buffers | hooks).items())
    pickled = _pickled(value)
    yield from ((place, each) for each in pickled if not isinstance(each, dict))
    own = {name: each for part in pickled if isinstance(part, dict) for name, each in part.items()}
    if not (pickled and is_library(kind.__module__)):
        own |= getattr(value, "__dict__", {})
        own |= {name: getattr(value, name) for name in _members(kind) if hasattr(value, name)}
    opaque = not isinstance(value, (partial, Tensor)) and _root(kind.__module__) in OPAQUE
    opaque = opaque and not (is_module and _root(kind.__module__) == "pplgen")
    for name, each in own.items():
        if name in LINKS:
            yield (place.rpartition(".")[0] or place) if name == "__self__" else place, each
        elif not opaque and name not in INTERNAL and _is_state(str(name), each):
            yield f"{place}.{name}", each
    if not is_library(kind.__module__):
        yield kind.__name__, kind


@lru_cache(maxsize=1024)
def _members(kind: type) -> tuple[str, ...]:
    """Return the names of attributes outside an object's dictionary, such as slots."""
    each = (item for cls in kind.__mro__ for item in vars(cls).items())
    return tuple(name for name, member in each if isinstance(member, types.MemberDescriptorType))


@lru_cache(maxsize=1024)
def _is_pickled(kind: type) -> bool:
    """Whether a class that is not the user's says what is kept of an object when it is pickled."""
    owner = next(cls for cls in kind.__mro__ if not PICKLING.isdisjoint(vars(cls)))
    own = any(isinstance(vars(owner).get(name), types.FunctionType) for name in PICKLING)
    if owner is object or _root(owner.__module__) in OPAQUE or issubclass(kind, EXAMINED):
        return False
    return is_library(owner.__module__) or not own


def _pickled(value: Any) -> tuple[Any, ...]:
    """Return what a library's class keeps of an object when it is pickled: the state of a generator, but no caches."""
    kind: Any = type(value)
    try:
        reduced = value.__reduce_ex__(4) if _is_pickled(kind) else ""
    except Exception:  # classes refuse with errors of any kind
        return ()
    return () if isinstance(reduced, str) else tuple(reduced[1:3])


def _is_state(name: str, value: Any) -> bool:
    """Whether an attribute may be state of its owner, or a method of a class."""
    if isinstance(value, types.ModuleType):
        return not (_is_installed(value) or is_library(value.__name__))
    return isinstance(value, types.FunctionType) or not name.startswith("__")


def _variables(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """Iterate over a function's closure, the globals that its code names, its defaults and its attributes."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        if cell != EMPTY:
            yield from _named(name, cell.cell_contents, function.__code__, function.__module__)
    yield from _globals(function.__code__, function.__globals__)
    name = function.__name__
    yield from ((f"{name}'s defaults", function.__defaults__), (f"{name}'s keyword defaults", function.__kwdefaults__))
    yield from ((f"{name}.{key}", each) for key, each in vars(function).items() if key != "__wrapped__")
    if wrapped := vars(function).get("__wrapped__"):
        yield name, wrapped


def _globals(code: types.CodeType, variables: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Iterate over the globals that code names, and the modules that it imports."""
    module = variables.get("__name__")
    for name in _names(code):
        value = variables.get(name)
        is_attribute = isinstance(value, types.ModuleType) and name not in _operands(code, "LOAD_GLOBAL")
        if name in variables and not is_attribute:
            yield from _named(name, value, code, module)
    for name in _operands(code, "IMPORT_NAME"):
        if imported := sys.modules.get(name) or sys.modules.get(f"{variables.get('__package__')}.{name}".rstrip(".")):
            yield from _named(name, imported, code, module)


def _named(place: str, value: Any, code: types.CodeType, module: str | None) -> Iterator[tuple[str, Any]]:
    """Iterate over a variable, or over what code names of a module: the rest of it may be large."""
    pending, seen = [(place, value)], set()
    for inner, each in pending:
        if not (isinstance(each, types.ModuleType) or each is datetime.date or each is datetime.datetime):
            yield inner, each
        elif id(each) not in seen and (not _is_installed(each) or _root(each.__name__) == _root(module)):
            seen.add(id(each))
            pending += [(f"{inner}.{name}", vars(each)[name]) for name in _names(code) if name in vars(each)]


@lru_cache(maxsize=4096)
def _names(code: types.CodeType) -> tuple[str, ...]:
    """Names in a function's code and the functions inside it; strings too, where they may name variables."""
    names = dict.fromkeys([*code.co_names, *(name for inner in _inner(code) for name in _names(inner))])
    if not BY_STRINGS.isdisjoint(names):
        names |= dict.fromkeys(constant for constant in code.co_consts if isinstance(constant, str))
    return tuple(names)


@lru_cache(maxsize=4096)
def _operands(code: types.CodeType, operation: str) -> frozenset[str]:
    """Names on which a function's code and the functions inside it perform an operation."""
    own = dis.get_instructions(code) if dis.opmap[operation] in code.co_code[::2] else ()
    names = frozenset(each.argval for each in own if each.opname == operation)
    return names.union(*(_operands(inner, operation) for inner in _inner(code)))


def _inner(code: types.CodeType) -> list[types.CodeType]:
    """Return the code of functions inside a function."""
    return [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]


def _is_installed(module: Any) -> bool:
    """Whether a module is of an installed package, rather than the user's own."""
    place = getattr(module, "__file__", None) or ""
    return "site-packages" in place or "dist-packages" in place


def _root(module: str | None) -> str:
    """Return the package of a module."""
    return module.partition(".")[0] if isinstance(module, str) else "builtins"


def _name(function: Callable[..., Any]) -> str:
    """Return a name for a function or a module."""
    return getattr(function, "__qualname__", None) or type(function).__name__
