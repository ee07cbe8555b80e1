"""Turn the random numbers of a graph into inputs, its base draws: the ELBO at fixed draws is a plain function.

Standard normals stay what they are; every other reparameterised draw becomes the quantile of a uniform number. The
graph is converted to float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate

from pplgen.compiler import gamma_operations  # noqa: F401
from pplgen.compiler.graph import Graph
from pplgen.compiler.recording import record_operations, result_sizes
from pplgen.compiler.simplify import RANDOM
from pplgen.story.isolation import collection_paused

__all__ = ["LiftedGraph", "NotReparameterised", "lift_random_numbers", "random_numbers", "to_float64"]

aten = torch.ops.aten

NORMAL = (aten.randn, aten.randn_like, aten.normal)
UNIFORM = (
    aten.rand,
    aten.rand_like,
    torch.ops.pplgen.exponential,
    torch.ops.pplgen.cauchy,
    aten._standard_gamma,
    aten._sample_dirichlet,
)


class NotReparameterised(Exception):
    """A graph draws random numbers that are not a differentiable function of base draws; the message names them."""


@dataclass(frozen=True)
class LiftedGraph:
    """Loss and gradients in float64, as a function of the parameters, the base draws and other inputs.

    Attributes
    ----------
    module
        Takes the flat parameter vector, normal and uniform base draws, buffers, and the tensors of the data; returns
        the loss in nats, and its flat gradient.
    num_normals, num_uniforms
        Numbers of base draws.
    largest, total
        Number of entries of the largest intermediate result, and of all together.
    """

    module: fx.GraphModule
    num_normals: int
    num_uniforms: int
    largest: int
    total: int


@collection_paused()
def lift_random_numbers(graph: Graph, tensors: Sequence[Tensor]) -> LiftedGraph:
    """Lift the random numbers of a pair's graph to inputs; ``tensors`` are example inputs after the parameters.

    Raises
    ------
    NotReparameterised
        If a draw that is used has no reparameterisation here, such as a discrete one.
    """
    sizes = [0, 0]
    for kind, size in random_numbers(graph.module):
        sizes[kind in UNIFORM] += size

    def evaluate(vector: Tensor, normals: Tensor, uniforms: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        loss, gradients = _Lifter(graph.module, normals, uniforms).run(*graph.split(vector), *inputs)
        return loss, torch.cat([gradient.reshape(-1) for gradient in gradients])

    inputs = to_float64(tensors)
    like: dict[str, Any] = {"dtype": torch.float64, "device": inputs[0].device if inputs else None}
    num_parameters = sum(shape.numel() for shape in graph.shapes)
    uniforms = torch.full((sizes[1],), 0.5, **like)
    with torch.no_grad():
        module = record_operations(
            evaluate, torch.zeros(num_parameters, **like), torch.zeros(sizes[0], **like), uniforms, *inputs
        )
    module.graph.eliminate_dead_code()
    module.recompile()
    entries = result_sizes(module)
    return LiftedGraph(module, sizes[0], sizes[1], max(entries), sum(entries))


def random_numbers(module: fx.GraphModule) -> list[tuple[Any, int]]:
    """Return operation and number of entries of each random draw that a graph uses, in order.

    Raises
    ------
    NotReparameterised
        If one is neither normal nor the quantile of a uniform number.
    """
    draws = []
    for node in module.graph.nodes:
        packet = _random_operation(node)
        if packet is None or not node.users:
            continue
        if packet not in NORMAL + UNIFORM:
            raise NotReparameterised(f"draws of {packet.__name__} are not reparameterised")
        draws.append((packet, node.meta["val"].numel()))
    return draws


def to_float64(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Convert floating-point tensors to float64, and leave others unchanged."""
    return [value.double() if value.is_floating_point() else value for value in tensors]


def _random_operation(node: fx.Node) -> Any:
    """Return the operation of a node that draws random numbers, ``None`` for any other node."""
    packet = getattr(node.target, "overloadpacket", None)
    return packet if node.op == "call_function" and packet in RANDOM else None


class _Lifter(fx.Interpreter):
    """Runs a graph in float64 with given base draws."""

    def __init__(self, module: fx.GraphModule, normals: Tensor, uniforms: Tensor) -> None:
        super().__init__(module)
        self._normals, self._uniforms = _Entries(normals), _Entries(uniforms)
        self._gammas: dict[int, tuple[Tensor, ...]] = {}
        """By identity of a gamma or Dirichlet draw: concentration, gamma draws, normalising sum, the draw itself."""

    def run_node(self, n: fx.Node) -> Any:
        """Run a node; unused draws are skipped."""
        return super().run_node(n) if n.users or _random_operation(n) is None else None

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Return a constant of the graph."""
        value = super().get_attr(target, args, kwargs)
        return to_float64([value])[0] if isinstance(value, Tensor) else value

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Run an operation in float64, draws as functions of base draws."""
        args, kwargs = map_aggregate((args, kwargs), lambda leaf: torch.float64 if leaf is torch.float32 else leaf)
        packet = getattr(target, "overloadpacket", None)
        if packet in RANDOM:
            return self._draw(packet, *args)
        if target is torch.ops.pplgen.standard_gamma_grad.default:
            concentration, gammas, _ = self._gamma(args[1])
            return torch.ops.pplgen.gamma_quantile_grad(concentration, gammas)
        if target is torch.ops.pplgen.dirichlet_grad.default:
            concentration, gammas, total = self._gamma(args[0])
            return torch.ops.pplgen.gamma_quantile_grad(concentration, gammas) / total
        return super().call_function(target, args, kwargs)

    def _draw(self, packet: Any, *args: Any) -> Tensor:
        """Compute a draw from base draws."""
        if packet in (aten.randn, aten.rand):
            return (self._normals if packet is aten.randn else self._uniforms).take(args[0])
        shape = torch.broadcast_shapes(*(value.shape for value in args if isinstance(value, Tensor)))
        if packet is aten.randn_like:
            return self._normals.take(shape)
        if packet is aten.normal:
            return args[0] + args[1] * self._normals.take(shape)
        uniforms = self._uniforms.take(shape)
        if packet is aten.rand_like:
            return uniforms
        if packet is torch.ops.pplgen.exponential:
            return -uniforms.log() / args[1]
        if packet is torch.ops.pplgen.cauchy:
            return args[1] + args[2] * (math.pi * (uniforms - 0.5)).tan()
        gammas = torch.ops.pplgen.gamma_quantile(args[0], uniforms)
        total = torch.ones_like(gammas)
        draw = gammas
        if packet is aten._sample_dirichlet:
            total = gammas.sum(-1, keepdim=True)
            draw = gammas / total
        self._gammas[id(draw)] = (args[0], gammas, total, draw)
        return draw

    def _gamma(self, draw: Tensor) -> tuple[Tensor, ...]:
        """Return concentration, gamma draws and normalising sum of a draw."""
        if id(draw) not in self._gammas:
            raise NotReparameterised("the derivative of a gamma draw is taken at another value")
        return self._gammas[id(draw)][:3]


class _Entries:
    """Entries of a vector, taken one after the other."""

    def __init__(self, values: Tensor) -> None:
        self._rest = values

    def take(self, shape: Sequence[int]) -> Tensor:
        """Take the next entries, in a shape."""
        size = math.prod(shape)
        part, self._rest = self._rest[:size], self._rest[size:]
        return part.reshape(tuple(shape))
