"""Many parameter sets, one program: the graph mapped over restarts, the optimiser inside, compiled where that pays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pplgen.compiler.functionalisation import last_output
from pplgen.compiler.graph import Graph
from pplgen.compiler.inductor import compile_graph, why_not_compiled
from pplgen.compiler.recording import record_operations
from pplgen.compiler.traceable_pyro import NotTraceable, require_equal
from pplgen.distributed.ranks import SINGLE_PROCESS, Ranks, communicates, without_communication
from pplgen.errors import first_line
from pplgen.inference.optimisers import Optimiser
from pplgen.story.isolation import collection_paused, flush_denormals, seeded

__all__ = ["Engine", "State"]

ROUNDING = 1e-5
"""Size of a gradient's entry, relative to the largest, that may be a rounding error."""
NODES_PER_CALL = 1000
"""Maximum number of graph nodes per compiled call, which limits the steps unrolled into it."""


class State(NamedTuple):
    """State of an optimiser of R parameter vectors."""

    vectors: Tensor
    """Unconstrained parameters, shape ``(R, P)``."""
    mean: Tensor
    """First moment of the gradient, shape ``(R, P)``."""
    square: Tensor
    """Second moment of the gradient, shape ``(R, P)``."""
    average: Tensor
    """Mean of the vectors since the moments were zero, shape ``(R, P)``."""
    since: Tensor
    """Steps since the moments were zero, shape ``(R, 1)``."""
    taken: Tensor
    """Steps taken, a scalar."""

    @classmethod
    def start(cls, vectors: Tensor) -> State:
        """Return the initial state."""
        mean, square, average = (torch.zeros_like(vectors) for _ in range(3))
        return cls(vectors, mean, square, average, vectors.new_zeros((len(vectors), 1)), vectors.new_zeros(()))

    def reset_moments(self, index: int) -> None:
        """Let the optimiser start again from one vector, in place."""
        for part in (self.mean, self.square, self.average, self.since):
            part[index] = 0.0


@dataclass(frozen=True)
class _Program:
    """A callable that takes several steps per call."""

    call: Any
    num_steps: int


class Engine:
    """Optimisation steps for R parameter vectors at once.

    A step is a pure function of ``(state, rates, buffers, tensors)``: it evaluates the graph for every vector with
    separate random numbers, and updates each at its own rate; a rate of zero leaves a vector unchanged.

    Parameters
    ----------
    graph
        Validated graph.
    state
        Example state with R vectors.
    data
        Tensors of every step; or an infinite iterator over minibatches, the tensors of one step each.
    optimiser
        Update rule, gradient clipping, and learning rates by parameter and step, as factors on the rates of a call.
    buffers
        Buffers of each vector, shape ``(R, ...)`` each; ``None`` for the graph's.
    own_data
        Whether each vector has its own data: every tensor of ``data`` has shape ``(R, ...)``.
    warm_up
        Steps over which some of the buffers, scalar weights, rise to one, by their index.
    ranks
        Processes whose gradients and losses are averaged; all take the same steps.
    """

    def __init__(
        self,
        graph: Graph,
        state: State,
        data: tuple[Tensor, ...] | Iterator[tuple[Tensor, ...]],
        *,
        optimiser: Optimiser = Optimiser(),  # noqa: B008 - frozen
        buffers: tuple[Tensor, ...] | None = None,
        own_data: bool = False,
        warm_up: Mapping[int, int] = MappingProxyType({}),
        ranks: Ranks = SINGLE_PROCESS,
    ) -> None:
        self.ranks = ranks
        self.graph, self.data, self.optimiser, self.warm_up = graph, data, optimiser, warm_up
        relative = [optimiser.relative_rate(name) for name in graph.names]
        sizes = [shape.numel() for shape in graph.shapes]
        self.relative_rates = None
        """Learning rate of each entry relative to its vector's, shape ``(P,)``; ``None`` if all are 1."""
        if any(rate != 1 for rate in relative):
            self.relative_rates = torch.tensor(np.repeat(relative, sizes)).to(state.vectors)
        self.own_data, self.own_buffers = own_data, buffers is not None
        self.buffers = graph.buffers if buffers is None else buffers
        self.num_traces = 0
        self._example = state
        self._single = self._traced(1)
        self._block = self._single

    @property
    def block_size(self) -> int:
        """Number of steps per compiled call; 1 before ``compile``."""
        return self._block.num_steps

    def run(
        self, state: State, rates: Tensor, num_steps: int, callback: Callable[[int, Tensor], None] | None = None
    ) -> tuple[State, Tensor]:
        """Take ``num_steps`` steps.

        Parameters
        ----------
        state
            Initial state.
        rates
            Learning rate of each vector, shape ``(R, 1)``.
        num_steps
            Number of steps.
        callback
            Called after each call of the program with the number of steps taken and the vectors, on their device.

        Returns
        -------
        tuple
            Final state, and losses in nats, shape ``(num_steps, R)``.
        """
        losses = []
        taken, before = 0, int(state.taken)
        with torch.no_grad(), flush_denormals():
            while taken < num_steps:
                fits = num_steps - taken >= self._block.num_steps
                program = self._block if fits else self._single
                *moved, loss = program.call(*state, *self._inputs(rates, program.num_steps, before + taken))
                state = State(*moved)
                losses.append(loss)
                taken += program.num_steps
                if callback:
                    callback(taken, state.vectors)
            # code compiled for another number of rows may round Adam's steps differently
            return State(*self.ranks.broadcast(state)), self.ranks.mean(torch.cat(losses))

    def evaluate(self, vectors: Tensor, num_times: int) -> Tensor:
        """Return repeated evaluations of the losses at parameter vectors, in nats, shape ``(num_times, R)``."""
        state, rates = State.start(vectors.clone()), vectors.new_zeros((len(vectors), 1))
        if self.warm_up:
            state = state._replace(taken=state.taken + max(self.warm_up.values()))
        if self._block is not self._single:
            return self.run(state, rates, num_times)[1]
        losses_alone = last_output(self._single.call)
        with torch.no_grad():
            losses = torch.cat([losses_alone(*state, *self._inputs(rates, 1)) for _ in range(num_times)])
            return self.ranks.mean(losses)

    def compile(self, rates: Tensor) -> None:
        """Compile several steps per call, and validate them against the graph.

        Raises
        ------
        NotTraceable
            If the compiler is missing or fails, or the compiled code differs from the graph.
        """
        if reason := why_not_compiled():
            raise NotTraceable(reason)
        nodes = len(self.graph.module.graph.nodes)
        num_steps = max(n for n in (1, 2, 5, 10, 20) if n == 1 or n * nodes <= NODES_PER_CALL)
        traced = self._traced(num_steps)
        # perturbed, because near an optimum the first step of Adam is the sign of a gradient of rounding errors
        perturbed = self._example._replace(
            vectors=self._example.vectors + 0.1 * torch.randn_like(self._example.vectors)
        )
        if self.warm_up:
            perturbed = perturbed._replace(taken=perturbed.taken + max(self.warm_up.values()) // 2)
        arguments = (*perturbed, *self._inputs(rates, num_steps))
        try:
            compiled = compile_graph(traced.call, arguments, cudagraphs=not communicates(traced.call))
            for seed in range(2):
                with seeded(seed), without_communication(), torch.no_grad():
                    expected = traced.call(*arguments)
                with seeded(seed), without_communication(), torch.no_grad():
                    actual = compiled(*arguments)
                # Adam normalises gradients, also those that are rounding errors
                sizes = State(*expected[:-1]).square.sqrt()
                matter = sizes > ROUNDING * sizes.amax(-1, keepdim=True)
                for what, ours, theirs in zip((*State._fields, "losses"), actual, expected, strict=True):
                    ours = torch.where(matter, ours, theirs) if what in ("vectors", "average") else ours
                    require_equal(f"compiled step's {what}", ours, theirs, "the graph's")
        except NotTraceable:
            raise
        except Exception as error:
            raise NotTraceable(f"compilation failed: {type(error).__name__}: {first_line(error)}") from error
        self._block = _Program(compiled, num_steps)

    def discard_compiled(self) -> None:
        """Continue with the uncompiled graph, such as when another rank could not compile it."""
        self._block = self._single

    @collection_paused()
    def _traced(self, num_steps: int) -> _Program:
        """Unroll ``num_steps`` steps into one graph of ATen operations."""
        self.num_traces += 1
        rates = self._example.vectors.new_zeros((len(self._example.vectors), 1))

        def steps(*inputs: Tensor) -> tuple[Tensor, ...]:
            state, losses = State(*inputs[: len(State._fields)]), []
            rates, *others = inputs[len(State._fields) :]
            buffers, tensors = others[: len(self.buffers)], others[len(self.buffers) :]
            for index in range(num_steps):
                batch = tensors if isinstance(self.data, tuple) else [value[index] for value in tensors]
                state, loss = self._step(state, rates[index], buffers, batch)
                losses.append(loss)
            return (*state, torch.stack(losses))

        try:
            with torch.no_grad(), without_communication():
                return _Program(record_operations(steps, *self._example, *self._inputs(rates, num_steps)), num_steps)
        except Exception as error:
            raise NotTraceable(
                f"a batch of restarts cannot be traced: {type(error).__name__}: {first_line(error)}"
            ) from error

    def _inputs(self, rates: Tensor, num_steps: int, taken: int = 0) -> tuple[Tensor, ...]:
        """Return the inputs of a call in addition to the state; rates and minibatches are stacked, one per step."""
        factors = [self.optimiser.factor(taken + step + 1) for step in range(num_steps)]
        rates = torch.stack([rates if factor == 1 else rates * factor for factor in factors])
        if isinstance(self.data, tuple):
            return (rates, *self.buffers, *self.data)
        batches = [next(self.data) for _ in range(num_steps)]
        return (rates, *self.buffers, *(torch.stack(values) for values in zip(*batches, strict=True)))

    def _step(
        self, state: State, rates: Tensor, buffers: Sequence[Tensor], tensors: Sequence[Tensor]
    ) -> tuple[State, Tensor]:
        """Evaluate the gradient for every vector and update it by the optimiser's rule."""
        buffers = list(buffers)
        for which, steps in self.warm_up.items():
            weight = ((state.taken + 1) / steps).clamp(max=1).to(buffers[which].dtype)
            buffers[which] = weight.expand_as(buffers[which])
        if len(state.vectors) == 1 and not (self.own_data or self.own_buffers):
            loss, gradient = self.graph.loss_and_gradient(state.vectors[0], *buffers, *tensors)
            losses, gradients = loss[None], gradient[None]
        else:
            own = [self.own_buffers] * len(buffers) + [self.own_data] * len(tensors)
            along = (0, *(0 if each else None for each in own))
            mapped = torch.func.vmap(self.graph.loss_and_gradient, in_dims=along, randomness="different")
            losses, gradients = mapped(state.vectors, *buffers, *tensors)
        gradients = self.ranks.mean(gradients)
        if self.optimiser.clip is not None:
            gradients = gradients.clamp(-self.optimiser.clip, self.optimiser.clip)
        since, moving = state.since + 1, rates > 0
        moved, mean, square = self.optimiser.rule.moved(
            state.vectors,
            gradients,
            rates if self.relative_rates is None else rates * self.relative_rates,
            (state.mean, state.square, since),
        )
        average = state.average + (moved - state.average) / since
        vectors, average = torch.where(moving, moved, state.vectors), torch.where(moving, average, state.average)
        return State(vectors, mean, square, average, torch.where(moving, since, state.since), state.taken + 1), losses
