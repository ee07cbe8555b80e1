"""The operations that a function runs, as a graph: what ``make_fx`` does, for plain tensors and in a fifth of its time.

``make_fx`` serves symbolic shapes, subclasses and decompositions as well, and pays for them at every operation.
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

__all__ = ["leaves_of", "pause_recording", "record_operations"]

aten = torch.ops.aten


def record_operations(function: Callable[..., Any], *inputs: Tensor) -> fx.GraphModule:
    """Run a function once and return the ATen operations that it ran, as a graph of its inputs.

    Tensors that it takes from elsewhere are constants of the graph. Every node has in its ``meta`` a tensor ``val`` of
    its shape without entries, and its ``device``.

    Raises
    ------
    RuntimeError
        Where Python asks for a number or a decision that depends on the entries of an input.
    """
    recorder = _Recorder()
    for place, value in enumerate(inputs):
        recorder.note(value, recorder.graph.placeholder(f"input_{place}"))
    with recorder:
        result = function(*inputs)
    recorder.graph.output(recorder.as_output(result))
    return _LazyGraphModule(recorder.root, recorder.graph)  # most are rewritten before they run


def leaves_of(arguments: Any) -> list[Any]:
    """Return all that stands in the arguments of an operation, however nested."""
    leaves: list[Any] = []
    map_aggregate(arguments, leaves.append)
    return leaves


@contextlib.contextmanager
def pause_recording() -> Iterator[None]:
    """Compute here and now; what comes of it is a constant of a graph that is being recorded."""
    before, _Recorder.paused = _Recorder.paused, True
    try:
        yield
    finally:
        _Recorder.paused = before


class _Recorder(TorchDispatchMode):
    """Notes every operation as a node, and which node each tensor that is still alive came from."""

    paused = False

    def __init__(self) -> None:
        super().__init__()
        self.graph, self.root = fx.Graph(), nn.Module()
        self._nodes = WeakTensorKeyDictionary()
        self._constants: set[fx.Node] = set()
        """Of single numbers that do not depend on inputs."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else it is imported, which takes most of a second

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and note it."""
        kwargs = kwargs or {}
        if self.paused:
            return func(*args, **kwargs)
        if torch.Tag.data_dependent_output in func.tags:
            if any(isinstance(leaf, Tensor) and self._depends(leaf) for leaf in leaves_of((args, kwargs))):
                raise RuntimeError(f"{func} asks for a value that depends on the inputs")
            return func(*args, **kwargs)
        if func is aten.lift_fresh.default:  # else what changes the fresh tensor would change the constant
            func = aten.lift_fresh_copy.default
        node = self.graph.call_function(func, *map_aggregate((args, kwargs), self.as_node))
        result = func(*args, **kwargs)
        if isinstance(result, Tensor):
            self.note(result, node)
            if result.numel() == 1 and self._is_constant(node):
                self._constants.add(node)
        elif isinstance(result, tuple | list):
            for place, value in enumerate(result):
                if isinstance(value, Tensor):
                    self.note(value, self.graph.call_function(operator.getitem, (node, place)))
        return result

    def note(self, value: Tensor, node: fx.Node) -> None:
        """Say which node a tensor came from."""
        like = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
        node.meta |= {"val": like, "device": value.device}
        self._nodes[value] = node

    def as_node(self, value: Any) -> Any:
        """Return the node that a tensor came from, one from elsewhere becoming a constant; other values as they are."""
        if not isinstance(value, Tensor):
            return value
        node = self._nodes.get(value)
        if node is None:
            name = f"constant_{len(self.root._buffers)}"
            self.root.register_buffer(name, value)
            node = self.graph.get_attr(name)
            self.note(value, node)
        return node

    def as_output(self, value: Any) -> Any:
        """Return nodes in place of tensors, however nested; the graph makes named tuples itself."""
        if isinstance(value, dict):
            return {name: self.as_output(part) for name, part in value.items()}
        if not isinstance(value, tuple | list):
            return self.as_node(value)
        parts = [self.as_output(part) for part in value]
        if hasattr(value, "_fields"):
            return self.graph.call_function(type(value), tuple(parts))
        return type(value)(parts)

    def _depends(self, value: Tensor) -> bool:
        """Whether a tensor's entries may differ with the inputs."""
        node = self._nodes.get(value)
        return not (node is None or node.op == "get_attr" or node in self._constants)

    def _is_constant(self, node: Any) -> bool:
        """Whether the result of an operation is the same for all inputs."""
        if node.target is aten.lift_fresh_copy.default:
            return True
        known = bool(node.all_input_nodes) and self._constants.issuperset(node.all_input_nodes)
        return known and torch.Tag.nondeterministic_seeded not in node.target.tags
