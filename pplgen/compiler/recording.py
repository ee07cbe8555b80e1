"""Record the operations of a function as a graph, as ``make_fx`` does, for plain tensors and in a fifth of its time.

``make_fx`` also supports symbolic shapes, subclasses and decompositions, at a cost for every operation.
"""

from __future__ import annotations

import contextlib
import operator
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from pyro.ops.provenance import detach_provenance
from torch import Tensor, fx, nn
from torch.fx._lazy_graph_module import _LazyGraphModule
from torch.fx.node import map_aggregate
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = [
    "description",
    "flatten_arguments",
    "is_known",
    "name_value",
    "named_source",
    "pause_recording",
    "record_operations",
    "refusal",
    "result_sizes",
]

aten = torch.ops.aten
_SHAPED_BY_VALUES = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


def record_operations(
    function: Callable[..., Any], *inputs: Tensor, fixed: bool = False, learned: Iterable[Tensor] = ()
) -> fx.GraphModule:
    """Run a function once and return its ATen operations as a graph of its inputs.

    Tensors other than the inputs become constants of the graph. The ``meta`` of every node holds a meta tensor ``val``
    of its shape and dtype, and its ``device``. Python numbers, branches and shapes may depend on the entries of
    constants: they are those of this run.

    Parameters
    ----------
    function
        Function of the inputs; returns tensors, in any nesting.
    inputs
        Tensors at which it is run.
    fixed
        Whether the graph will only be evaluated at inputs with these entries, so that numbers, branches and shapes may
        also depend on them. ``meta["specialised"]`` of the graph says whether some do.
    learned
        Constants whose entries will change.

    Raises
    ------
    RuntimeError
        If a Python number, branch or shape depends on the entries of an input that is not fixed, or of a learned
        tensor, also where the function catches it.
    """
    recorder = _Recorder({value.untyped_storage().data_ptr() for value in learned})
    for place, value in enumerate(inputs):
        node = recorder.graph.placeholder(f"input_{place}")
        recorder.assign(value, node)
        if fixed:
            recorder.known[node] = True
    outer, _Recorder.active = _Recorder.active, recorder
    try:
        with recorder:
            result = function(*inputs)
    finally:
        _Recorder.active = outer
    if recorder.refusal is not None:
        raise recorder.refusal
    recorder.graph.output(recorder.as_output(result))
    recorder.graph.on_generate_code(lambda _: _look_up_once)
    module = _LazyGraphModule(recorder.root, recorder.graph)  # most are transformed before they run
    module.meta["specialised"] = recorder.specialised
    return module


def description(value: Tensor) -> dict[str, Any]:
    """Return what a node's ``meta`` says of a tensor: one without entries of its shape and type, and its device."""
    like = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    return {"val": like, "device": value.device}


def _look_up_once(lines: list[str]) -> list[str]:
    """Look up each operation once in generated code, not at every call, which takes a tenth of a small model's step."""
    names: dict[str, str] = {}
    code = re.sub(
        r"\btorch\.ops(?:\.\w+){3}(?=\()",
        lambda path: names.setdefault(path[0], f"_operation_{len(names)}"),
        "".join(lines),
    )
    return [f"{name} = {path}\n" for path, name in names.items()] + [code]


def is_known(value: Tensor) -> bool:
    """Whether the graph that is being recorded may depend on a tensor's entries; if so, it does from here on."""
    recorder, value = _Recorder.active, detach_provenance(value)
    if recorder is None or not recorder.is_known(value):
        return False
    recorder.specialise([value])
    return True


def refusal(error: Exception) -> Exception:
    """Return an error to be raised, with which the recording ends even if the recorded function catches it."""
    if _Recorder.active is not None:
        _Recorder.active.refusal = _Recorder.active.refusal or error
    return error


def name_value(value: Any, name: str) -> None:
    """Name a tensor in the graph that is being recorded, for messages."""
    if _Recorder.active is not None and isinstance(value, Tensor):
        _Recorder.active.names[_Recorder.active.as_node(detach_provenance(value))] = name


def named_source(value: Tensor) -> str | None:
    """Return the nearest named tensor from which one was computed in the graph that is being recorded."""
    recorder = _Recorder.active
    queue = [] if recorder is None else [recorder.as_node(detach_provenance(value))]
    seen = set(queue)
    for node in queue:
        if node in recorder.names:  # type: ignore[union-attr]
            return recorder.names[node]  # type: ignore[union-attr]
        queue += [each for each in node.all_input_nodes if each not in seen]
        seen.update(node.all_input_nodes)
    return None


def flatten_arguments(arguments: Any) -> list[Any]:
    """Return the leaves of an operation's arguments, in any nesting."""
    leaves: list[Any] = []
    map_aggregate(arguments, leaves.append)
    return leaves


def result_sizes(module: fx.GraphModule) -> list[int]:
    """Return the number of entries of each intermediate result of a recorded graph."""
    values = (node.meta.get("val") for node in module.graph.nodes)
    return [value.numel() for value in values if isinstance(value, Tensor)]


@contextlib.contextmanager
def pause_recording() -> Iterator[None]:
    """Compute eagerly: results are constants of a graph that is being recorded."""
    previous, _Recorder.paused = _Recorder.paused, True
    try:
        yield
    finally:
        _Recorder.paused = previous


class _Recorder(TorchDispatchMode):
    """Records every operation as a node, and the node of each live tensor."""

    paused = False
    active: _Recorder | None = None

    def __init__(self, learned: set[int]) -> None:
        super().__init__()
        self.graph, self.root = fx.Graph(), nn.Module()
        self._nodes = WeakTensorKeyDictionary()
        self.known: dict[fx.Node, bool] = {}
        """Nodes whose entries are the same in all evaluations, and whether they depend on fixed inputs."""
        self.specialised = False
        """Whether the graph depends on entries of fixed inputs."""
        self.names: dict[fx.Node, str] = {}
        self.refusal: Exception | None = None
        """The first error for which the function cannot be recorded."""
        self._changing = learned
        """Memory with entries that change."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # avoids importing dynamo, which takes most of a second

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run and record an operation."""
        kwargs = kwargs or {}
        if self.paused:
            return func(*args, **kwargs)
        leaves = flatten_arguments((args, kwargs))
        if any(isinstance(leaf, torch._C.Generator) for leaf in leaves):
            raise refusal(RuntimeError(f"{func} draws from a torch.Generator other than the default one"))
        leaves = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if func is aten.index.Tensor:
            args = (args[0], [each for index in args[1] for each in self._without_mask(func, index)])
        elif not _SHAPED_BY_VALUES.isdisjoint(func.tags):
            if all(map(self.is_known, leaves)):
                self.specialise(leaves)
                result = func(*args, **kwargs)
                return self._copied(result) if isinstance(result, Tensor) else result
            raise refusal(_depends_on_values(func))
        if func is aten.lift_fresh.default:  # in-place operations on the result would change the constant
            func = aten.lift_fresh_copy.default
        nodes = {id(leaf): self.as_node(leaf) for leaf in leaves}  # a look-up takes as long as a small operation
        inputs = map_aggregate((args, kwargs), lambda value: nodes.get(id(value)) or self.as_node(value))
        node = self.graph.call_function(func, *inputs)
        result = func(*args, **kwargs)
        self._propagate(node, leaves, list(nodes.values()))
        if isinstance(result, Tensor):
            self.assign(result, node)
        elif isinstance(result, tuple | list):
            for place, value in enumerate(result):
                if isinstance(value, Tensor):
                    part = self.graph.call_function(operator.getitem, (node, place))
                    self.assign(value, part)
                    if node in self.known:
                        self.known[part] = self.known[node]
        return result

    def assign(self, value: Tensor, node: fx.Node) -> None:
        """Assign a tensor to its node."""
        node.meta |= description(value)
        self._nodes[value] = node

    def as_node(self, value: Any) -> Any:
        """Return the node of a tensor, a constant if it is not recorded; return other values unchanged."""
        if not isinstance(value, Tensor):
            return value
        node = self._nodes.get(value)
        if node is None:
            name = f"constant_{len(self.root._buffers)}"
            self.root.register_buffer(name, value)
            node = self.graph.get_attr(name)
            self.assign(value, node)
            if value.untyped_storage().data_ptr() not in self._changing:
                self.known[node] = False
        return node

    def as_output(self, value: Any) -> Any:
        """Replace tensors by nodes, in any nesting; named tuples are constructed by a node."""
        if isinstance(value, dict):
            return {name: self.as_output(part) for name, part in value.items()}
        if not isinstance(value, tuple | list):
            return self.as_node(value)
        parts = [self.as_output(part) for part in value]
        if hasattr(value, "_fields"):
            return self.graph.call_function(type(value), tuple(parts))
        return type(value)(parts)

    def is_known(self, value: Tensor) -> bool:
        """Whether a tensor has the same entries in all evaluations."""
        return self.as_node(value) in self.known and value.untyped_storage().data_ptr() not in self._changing

    def specialise(self, values: Iterable[Tensor]) -> None:
        """Let the graph depend on the entries of known tensors."""
        self.specialised |= any(self.known[self.as_node(value)] for value in values)

    def _propagate(self, node: fx.Node, inputs: list[Tensor], nodes: list[fx.Node]) -> None:
        """Record whether the result of an operation is known, and what it changes in place."""
        target: Any = node.target
        known = all(each in self.known for each in nodes)
        known = known and not any(value.untyped_storage().data_ptr() in self._changing for value in inputs)
        if known and torch.Tag.nondeterministic_seeded not in target.tags:
            self.known[node] = any(self.known[each] for each in nodes)
        elif target._schema.is_mutable:
            self._changing.add(inputs[0].untyped_storage().data_ptr())

    def _without_mask(self, func: Any, index: Tensor | None) -> list[Tensor | None]:
        """Replace a known mask by the places where it is true, whose number is then fixed."""
        if index is None or index.dtype not in (torch.bool, torch.uint8):
            return [index]
        if not self.is_known(index):
            raise refusal(_depends_on_values(func))
        self.specialise([index])
        return [self._copied(places.contiguous()) for places in index.nonzero().unbind(1)]

    def _copied(self, value: Tensor) -> Tensor:
        """Record a result as a copy of a constant, which in-place operations do not change."""
        name = f"constant_{len(self.root._buffers)}"
        self.root.register_buffer(name, value.clone())
        constant = self.graph.get_attr(name)
        self.assign(value, constant)
        node = self.graph.call_function(aten.lift_fresh_copy.default, (constant,))
        self.assign(value, node)
        self.known[node] = True
        return value


def _depends_on_values(func: Any) -> RuntimeError:
    """Return the error of an operation whose result is a Python value, or a tensor whose shape is one."""
    what = "value" if torch.Tag.data_dependent_output in func.tags else "shape"
    return RuntimeError(f"the {what} that {func} returns depends on values of the inputs")
