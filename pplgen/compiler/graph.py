"""A model and a guide as one pure ATen graph of (loss, gradients)(parameters, data).

Pyro's ELBO and its backward pass are recorded in one run, which reduces handlers, constraints, plates, enumeration and
automatic guides to a few hundred ATen operations. Before it is used, the graph is compared with Pyro's loss and
gradients at perturbed parameters and resampled data.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro.infer import ELBO, JitTrace_ELBO, JitTraceEnum_ELBO, JitTraceGraph_ELBO, JitTraceMeanField_ELBO
from torch import Tensor, fx

from pplgen.compiler.functionalisation import canonicalise, lift_constants
from pplgen.compiler.recording import record_operations
from pplgen.compiler.traceable_pyro import NotTraceable, require_equal, traceable
from pplgen.errors import first_line
from pplgen.story.isolation import collection_paused, ignore_nonfinite_warnings, modules_of, seeded
from pplgen.story.pair import Pair
from pplgen.story.python_state import changed_state, reachable_state
from pplgen.story.rows import RowAxes

__all__ = [
    "Graph",
    "arguments_with",
    "buffers_of",
    "gradients_of",
    "record",
    "require_stateless",
    "resample_rows",
    "tensors_of",
    "trace",
    "unconstrained_parameters",
]

_JIT_ELBOS = (JitTrace_ELBO, JitTraceEnum_ELBO, JitTraceGraph_ELBO, JitTraceMeanField_ELBO)


@dataclass(frozen=True)
class Graph:
    """Loss and gradients of a pair as a pure function.

    Attributes
    ----------
    module
        Takes every parameter, in the order of ``names``, the ``buffers``, and the tensors among the pair's arguments;
        returns the loss and the list of gradients. Random numbers are drawn from torch's generator.
    names
        Names of the pair's unconstrained parameters.
    shapes
        Their shapes.
    buffers
        Buffers of the pair's modules at the time of tracing, such as priors set from the data.
    specialised
        Whether branches or shapes depend on the entries of the data at which it was traced.
    """

    module: fx.GraphModule
    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    buffers: tuple[Tensor, ...]
    specialised: bool = False

    def pack(self, values: dict[str, Tensor]) -> Tensor:
        """Flatten a pair's ``snapshot`` to one vector."""
        return torch.cat([values[name].reshape(-1) for name in self.names])

    def unpack(self, vector: Tensor) -> dict[str, Tensor]:
        """Split a vector into parameters by name, as ``Pair.restore`` takes them."""
        return dict(zip(self.names, self.split(vector), strict=True))

    def loss_and_gradient(self, vector: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate loss and gradient at one parameter vector; ``inputs`` are buffers, then tensors of the data."""
        loss, gradients = self.module(*self.split(vector), *inputs)
        return loss, torch.cat([gradient.reshape(-1) for gradient in gradients])

    def split(self, vector: Tensor) -> list[Tensor]:
        """Split a vector into parameters of their shapes, in the order of ``names``."""
        parts = vector.split([shape.numel() for shape in self.shapes])
        return [part.reshape(shape) for part, shape in zip(parts, self.shapes, strict=True)]


def tensors_of(data: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """Return the tensors among a pair's arguments: the inputs of its graph."""
    return tuple(value for value in data if isinstance(value, Tensor))


def buffers_of(pair: Pair) -> list[Tensor]:
    """Return the distinct buffers of a pair's modules, and its KL weight."""
    buffers = [buffer for module in modules_of(pair.model, pair.guide) for buffer in module.buffers()]
    buffers += [] if pair.kl_weight is None else [pair.kl_weight]
    return list({id(buffer): buffer for buffer in buffers}.values())


@collection_paused()
def trace(
    pair: Pair,
    bound: ELBO,
    data: tuple[Any, ...],
    scale: contextlib.AbstractContextManager[Any] | None = None,
    *,
    fixed: bool = False,
) -> Graph:
    """Trace a pair's loss and gradients and verify the graph; call it inside ``pair.isolated``.

    Parameters
    ----------
    pair
        The pair; its parameters are unchanged on return.
    bound
        Pyro's ELBO estimator.
    data
        Arguments of model and guide, of the shapes of the graph's future inputs.
    scale
        Handler around every evaluation, such as the one that rescales a minibatch to all rows.
    fixed
        Whether the graph will only be evaluated on these data, so that branches and shapes may depend on them.

    Raises
    ------
    NotTraceable
        If the pair branches on values, keeps state in Python or in buffers, or the graph's loss or gradients differ
        from Pyro's.
    """
    scale = scale or contextlib.nullcontext()
    parameters = list(unconstrained_parameters().values())
    if not parameters:
        raise NotTraceable("the pair has no parameters")
    if isinstance(bound, _JIT_ELBOS):
        raise NotTraceable(f"{type(bound).__name__} is compiled by torch.jit")

    def evaluate(*tensors: Tensor) -> tuple[Tensor, list[Tensor]]:
        return _pyro_loss_and_gradients(pair, bound, arguments_with(data, tensors), scale, parameters)

    graph = record(pair, evaluate, tensors_of(data), require_stateless(pair, bound), fixed=fixed)
    samples = [data] if graph.specialised else [data, resample_rows(data, pair.structure.row_axes)]
    for sample in samples:
        _verify(graph, pair, bound, sample, scale, parameters)
    return graph


def unconstrained_parameters() -> dict[str, Tensor]:
    """Return the parameters of Pyro's store, in the order of a graph's."""
    return dict(sorted(pyro.get_param_store().named_parameters()))


def record(
    pair: Pair,
    evaluate: Callable[..., tuple[Tensor, list[Tensor]]],
    inputs: tuple[Tensor, ...],
    context: contextlib.AbstractContextManager[Any] | None = None,
    *,
    fixed: bool = False,
) -> Graph:
    """Record a function of ``inputs``, which reads a pair's parameters and buffers, as a graph; it is not verified.

    It runs once, inside ``context``; ``fixed`` is that of ``record_operations``.

    Raises
    ------
    NotTraceable
        If it cannot be recorded.
    """
    parameters, buffers = unconstrained_parameters(), buffers_of(pair)
    try:
        with context or contextlib.nullcontext(), traceable():
            raw = record_operations(evaluate, *inputs, fixed=fixed, learned=[*parameters.values(), *buffers])
    except NotTraceable:
        raise
    except Exception as error:
        raise NotTraceable(f"tracing failed: {type(error).__name__}: {first_line(error)}") from error
    lift_constants(raw, [*parameters.values(), *buffers])
    shapes = tuple(value.shape for value in parameters.values())
    try:
        module = canonicalise(raw, [*parameters.values(), *buffers, *inputs])
    except Exception as error:
        raise NotTraceable(f"simplification failed: {type(error).__name__}: {first_line(error)}") from error
    return Graph(module, tuple(parameters), shapes, tuple(buffers), raw.meta["specialised"])


def arguments_with(data: tuple[Any, ...], tensors: tuple[Tensor, ...]) -> tuple[Any, ...]:
    """Insert tensors in the places of those among the arguments."""
    remaining = iter(tensors)
    return tuple(next(remaining) if isinstance(value, Tensor) else value for value in data)


def _pyro_loss_and_gradients(
    pair: Pair, bound: ELBO, data: tuple[Any, ...], scale: Any, parameters: list[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Compute loss and gradients by Pyro, and clear the parameters' gradients."""
    with torch.enable_grad(), scale, gradients_of(parameters) as gradients:
        loss = bound.loss_and_grads(pair.model, pair.guide, *data)
    return torch.as_tensor(loss), gradients


@contextlib.contextmanager
def gradients_of(parameters: list[Tensor]) -> Iterator[list[Tensor]]:
    """Collect the gradients that are accumulated inside, zero if none, and clear them."""
    for parameter in parameters:
        parameter.grad = None
    gradients: list[Tensor] = []
    yield gradients
    gradients += [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    for parameter in parameters:  # one may be there under two names
        parameter.grad = None


@contextlib.contextmanager
def require_stateless(pair: Pair, bound: ELBO | None = None) -> Iterator[None]:
    """Raise ``NotTraceable`` if the evaluation inside changes buffers (restored), Pyro's store or Python state."""
    reaching = pair.model, pair.guide, bound, *(value for value in pair.data if not isinstance(value, Tensor))
    buffers = [
        (name, buffer, buffer.clone())
        for module in modules_of(pair.model, pair.guide)
        for name, buffer in module.named_buffers()
    ]
    stored, state = pair.snapshot(), reachable_state(*reaching)
    yield
    place = changed_state(state, reachable_state(*reaching))
    changed = [name for name, buffer, before in buffers if not torch.equal(buffer, before)]
    for _, buffer, before in buffers:
        buffer.copy_(before)
    after = pair.snapshot()
    changed += [name for name in after if name not in stored or not torch.equal(after[name], stored[name])]
    if changed or place:
        raise NotTraceable(
            f"evaluating the pair changes {changed[0] if changed else place!r}, so it is not a pure function"
        )


def resample_rows(data: tuple[Any, ...], axes: RowAxes) -> tuple[Any, ...]:
    """Draw rows with replacement, the same for every argument with rows."""
    rows = axes.count(data)
    return axes.select(data, torch.randint(rows, (rows,))) if rows else data


def _verify(graph: Graph, pair: Pair, bound: ELBO, data: tuple[Any, ...], scale: Any, parameters: list[Tensor]) -> None:
    """Compare the graph with Pyro at perturbed parameters and a shared seed, or raise ``NotTraceable``."""
    before = [parameter.detach().clone() for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
        seed = int(torch.randint(2**31, ()))
        with pyro.validation_enabled(False), ignore_nonfinite_warnings():
            with seeded(seed):
                again, gradients_again = _pyro_loss_and_gradients(pair, bound, data, scale, parameters)
            with seeded(seed):
                loss, gradients = _pyro_loss_and_gradients(pair, bound, data, scale, parameters)
        with seeded(seed), torch.no_grad():
            detached = [parameter.detach() for parameter in parameters]
            traced = graph.module(*detached, *graph.buffers, *tensors_of(data))
    finally:
        for parameter, value in zip(parameters, before, strict=True):
            parameter.data.copy_(value)
    if not loss.is_cuda and not all(map(_identical, (loss, *gradients), (again, *gradients_again))):
        raise NotTraceable("two evaluations at the same parameters and seed differ, so the pair keeps state")
    require_equal("loss", traced[0], loss)
    for name, ours, theirs in zip(graph.names, traced[1], gradients, strict=True):
        require_equal(f"gradient of {name!r}", ours, theirs)


def _identical(ours: Tensor, theirs: Tensor) -> bool:
    """Whether two results are equal to the bit, NaN counting as equal."""
    return torch.equal(ours.nan_to_num(), theirs.nan_to_num()) and torch.equal(ours.isnan(), theirs.isnan())
