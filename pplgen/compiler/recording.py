"""Record the operations of a function as a graph, as ``make_fx`` does, for plain tensors and in a fifth of its time.

``make_fx`` also supports symbolic shapes, subclasses and decompositions, at a cost for every operation.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx._lazy_graph_module import _LazyGraphModule
from torch.fx.node import map_aggregate
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["flatten_arguments", "pause_recording", "record_operations", "result_sizes"]

aten = torch.ops.aten


def record_operations(function: Callable[..., Any], *inputs: Tensor) -> fx.GraphModule:
    """Run a function once and return its ATen operations as a graph of its inputs.

    Tensors other than the inputs become constants of the graph. The ``meta`` of every node holds a meta tensor ``val``
    of its shape and dtype, and its ``device``.

    Raises
    ------
    RuntimeError
        If a Python number or branch depends on the entries of an input.
    """
    recorder = _Recorder()
    for place, value in enumerate(inputs):
        recorder.assign(value, recorder.graph.placeholder(f"input_{place}"))
    with recorder:
        result = function(*inputs)
    recorder.graph.output(recorder.as_output(result))
    return _LazyGraphModule(recorder.root, recorder.graph)  # most are transformed before they run


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

    def __init__(self) -> None:
        super().__init__()
        self.graph, self.root = fx.Graph(), nn.Module()
        self._nodes = WeakTensorKeyDictionary()
        self._constants: set[fx.Node] = set()
        """Nodes of single numbers that do not depend on inputs."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # avoids importing dynamo, which takes most of a second

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run and record an operation."""
        kwargs = kwargs or {}
        if self.paused:
            return func(*args, **kwargs)
        if torch.Tag.data_dependent_output in func.tags:
            if any(isinstance(leaf, Tensor) and self._depends(leaf) for leaf in flatten_arguments((args, kwargs))):
                raise RuntimeError(f"{func} requires a value that depends on the inputs")
            return func(*args, **kwargs)
        if func is aten.lift_fresh.default:  # in-place operations on the result would change the constant
            func = aten.lift_fresh_copy.default
        node = self.graph.call_function(func, *map_aggregate((args, kwargs), self.as_node))
        result = func(*args, **kwargs)
        if isinstance(result, Tensor):
            self.assign(result, node)
            if result.numel() == 1 and self._is_constant(node):
                self._constants.add(node)
        elif isinstance(result, tuple | list):
            for place, value in enumerate(result):
                if isinstance(value, Tensor):
                    self.assign(value, self.graph.call_function(operator.getitem, (node, place)))
        return result

    def assign(self, value: Tensor, node: fx.Node) -> None:
        """Assign a tensor to its node."""
        like = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
        node.meta |= {"val": like, "device": value.device}
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

    def _depends(self, value: Tensor) -> bool:
        """Whether a tensor's entries may depend on the inputs."""
        node = self._nodes.get(value)
        return not (node is None or node.op == "get_attr" or node in self._constants)

    def _is_constant(self, node: Any) -> bool:
        """Whether the result of an operation is the same for all inputs."""
        if node.target is aten.lift_fresh_copy.default:
            return True
        is_constant = bool(node.all_input_nodes) and self._constants.issuperset(node.all_input_nodes)
        return is_constant and torch.Tag.nondeterministic_seeded not in node.target.tags
