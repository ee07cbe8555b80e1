"""The ELBO averaged over fixed base draws: a deterministic function of the guide's and model's parameters.

Kucukelbir et al. (2017) maximise the ELBO by stochastic gradients; with fixed draws any optimiser of smooth functions
applies, and its optimum has a Monte Carlo error that can be estimated (Giordano, Ingram and Broderick 2024, Black box
variational inference with a deterministic objective).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from pplgen.compiler.base_draws import LiftedGraph, lift_random_numbers, to_float64
from pplgen.compiler.graph import Graph
from pplgen.compiler.vectorisation import MAX_ENTRIES
from pplgen.distributed.ranks import SINGLE_PROCESS, Ranks
from pplgen.inference.engine import Engine
from pplgen.inference.quasi_random import BaseDraws, draw_blocks
from pplgen.story.isolation import flush_denormals

__all__ = ["Blocks", "FixedDrawsAverage", "FixedDrawsELBO"]

STEP = 1e-4
"""Step of central differences of gradients and means, in unconstrained parameters."""


class Blocks(NamedTuple):
    """Means over each block of base draws, for R parameter vectors."""

    losses: Tensor
    """Losses in nats, shape ``(num_blocks, R)``."""
    gradients: Tensor
    """Gradients, shape ``(num_blocks, R, P)``."""
    scores: Tensor
    """Gradients of the guide's log density at fixed draws, shape ``(num_blocks, R, P)``; zero without a score."""


class FixedDrawsAverage:
    """A number and a vector that depend on R parameter vectors and on base draws, averaged over them, in float64.

    Parameters
    ----------
    graph
        Graph that returns both, such as the loss and its gradient.
    inputs
        Further inputs of the graph: buffers, and tensors of the data.
    own
        Whether each input has a first axis of length R.
    seed
        Random seed of the base draws.
    ranks
        Processes over whose rows the averages are averaged.

    Raises
    ------
    NotReparameterised
        If a random number of the graph is not a differentiable function of base draws.
    """

    draws: BaseDraws

    def __init__(
        self,
        graph: Graph,
        inputs: Sequence[Tensor],
        own: Sequence[bool] = (),
        *,
        seed: int = 0,
        ranks: Ranks = SINGLE_PROCESS,
    ) -> None:
        own = own or [False] * len(inputs)
        self._inputs, self._along = to_float64(inputs), [0 if each else None for each in own]
        self._example = [value[0] if each else value for value, each in zip(inputs, own, strict=True)]
        self.graph = lift_random_numbers(graph, self._example)
        self.seed, self.ranks, self.num_evaluations = seed, ranks, 0
        sizes = ranks.all_gather((self.graph.largest, self.graph.total))  # ranks decide alike, whatever their rows
        self.largest, self.total = (max(size) for size in zip(*sizes, strict=True))

    def with_inputs(self, inputs: Sequence[Tensor]) -> Self:
        """Return the same averages at other inputs, of the same shapes for each vector."""
        other = copy.copy(self)
        other._inputs = to_float64(inputs)
        return other

    def set_draws(self, num_blocks: int, block_size: int, *, fresh: bool = False) -> None:
        """Draw the base draws; ``fresh`` ones are independent of those that are not."""
        sizes, seed = (self.graph.num_normals, self.graph.num_uniforms), 2 * self.seed + fresh
        if sizes == (0, 0):
            block_size = 2
        device = next((value.device for value in self._inputs), torch.device("cpu"))
        self.draws = draw_blocks(num_blocks, block_size, *sizes, seed=seed, device=device)

    def __call__(self, vectors: Tensor, which: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the average numbers, shape ``(R,)``, and vectors, shape ``(R, length)``; zero where not ``which``."""
        numbers, results = self._evaluate(self.graph, self.draws, vectors, which)
        return numbers.mean(0), results.mean(0)

    def each_draw(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Return numbers and vectors at each base draw, shape ``(num_draws, R)`` and ``(num_draws, R, length)``."""
        draws = BaseDraws(self.draws.normals, self.draws.uniforms, len(self.draws))
        return self._evaluate(self.graph, draws, vectors)

    def jacobian(self, vector: Tensor) -> Tensor:
        """Return the derivative of the average vector at one parameter vector, shape ``(length, P)``.

        Central differences in float64 have a relative error of about 1e-8 and need no second derivatives.
        """
        return self._differentiate(self.graph, self.draws, vector)

    def _differentiate(
        self, graph: LiftedGraph, draws: BaseDraws, vector: Tensor, scales: Tensor | None = None
    ) -> Tensor:
        """Differentiate the average vector of a graph."""
        scales = torch.ones_like(vector, dtype=torch.float64) if scales is None else scales
        together = BaseDraws(draws.normals, draws.uniforms, 1)
        steps = STEP * scales.diag()
        parts = steps.split(max(1, MAX_ENTRIES // self.largest))
        after, before = (
            torch.cat([self._evaluate(graph, together, vector.double() + sign * part)[1][0] for part in parts])
            for sign in (1, -1)
        )
        return ((after - before) / (2 * STEP * scales[:, None])).mT

    def _evaluate(
        self, graph: LiftedGraph, draws: BaseDraws, vectors: Tensor, which: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Evaluate a graph at base draws; return its averages over each block, with a first axis of blocks.

        With ``which``, shape ``(R,)``, only those vectors are evaluated, and the others' averages are zero.
        """
        self.num_evaluations += 1
        if which is not None and not which.all():
            some = self.with_inputs(
                [v if axis is None else v[which] for v, axis in zip(self._inputs, self._along, strict=True)]
            )
            numbers, results = some._evaluate(graph, draws, vectors[which])
            return _spread(numbers, which), _spread(results, which)

        def at_draw(normals: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
            def of_vector(vector: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor]:
                return graph.module(vector, normals, uniforms, *inputs)

            if len(vectors) == 1:
                inputs = [v if axis is None else v[0] for v, axis in zip(self._inputs, self._along, strict=True)]
                number, result = of_vector(vectors[0], *inputs)
                return number[None], result[None]
            return torch.func.vmap(of_vector, in_dims=(0, *self._along))(vectors, *self._inputs)

        most = max(1, MAX_ENTRIES // (graph.largest * len(vectors)))
        size = -(-len(draws) // -(-len(draws) // most))  # chunks of equal sizes
        with torch.no_grad(), flush_denormals():
            numbers, results = torch.func.vmap(at_draw, chunk_size=size)(draws.normals, draws.uniforms)
        numbers, results = (value.unflatten(0, (draws.num_blocks, -1)).mean(1) for value in (numbers, results))
        return self.ranks.mean(numbers), self.ranks.mean(results)


def _spread(averages: Tensor, which: Tensor) -> Tensor:
    """Return averages of all R vectors, given those of some along the second axis; the others are zero."""
    spread = averages.new_zeros(len(averages), len(which), *averages.shape[2:])
    spread[:, which] = averages
    return spread


class FixedDrawsELBO(FixedDrawsAverage):
    """Negative ELBO in nats and its gradient, averaged over fixed base draws.

    Parameters are those of ``FixedDrawsAverage``, and ``score``, the graph of the guide's score, if any.
    """

    def __init__(self, graph: Graph, score: Graph | None, inputs: Sequence[Tensor], *args: Any, **options: Any) -> None:
        super().__init__(graph, inputs, *args, **options)
        self.score = None if score is None else lift_random_numbers(score, self._example)

    @classmethod
    def of_engine(cls, engine: Engine, score: Graph | None, seed: int) -> FixedDrawsELBO:
        """Return the ELBO of an engine's pair, on its constant data."""
        assert isinstance(engine.data, tuple), "the ELBO over fixed draws needs the same rows in every step"
        own = [engine.own_buffers] * len(engine.buffers) + [engine.own_data] * len(engine.data)
        return cls(engine.graph, score, (*engine.buffers, *engine.data), own, seed=seed, ranks=engine.ranks)

    def blocks(self, vectors: Tensor, which: Tensor | None = None) -> Blocks:
        """Return averages over each block of base draws, of losses, gradients and scores; zero where not ``which``."""
        losses, gradients = self._evaluate(self.graph, self.draws, vectors, which)
        scores = torch.zeros_like(gradients)
        if self.score is not None:
            _, scores = self._evaluate(self.score, self._draws_of(self.score, self.draws), vectors, which)
        return Blocks(losses, gradients, scores)

    def losses(self, vectors: Tensor) -> Tensor:
        """Return losses averaged over each block of base draws, shape ``(num_blocks, R)``."""
        return self._evaluate(self.graph, self.draws, vectors)[0]

    def curvature(self, vectors: Tensor, directions: Tensor) -> Tensor:
        """Return products of the Hessians over each block of draws with one direction each.

        ``directions`` and the products have shape ``(num_blocks, R, P)``.
        """
        products = []
        for block, direction in enumerate(directions):
            draws, step = self.draws.blocks(block, block + 1), STEP * direction
            after, before = (self._evaluate(self.graph, draws, vectors + sign * step)[1][0] for sign in (1, -1))
            products.append((after - before) / (2 * STEP))
        return torch.stack(products)

    def hessian(self, vector: Tensor, scales: Tensor | None = None, draws: BaseDraws | None = None) -> Tensor:
        """Return the Hessian of the loss at one parameter vector, shape ``(P, P)``.

        ``scales`` are distances over which the parameters matter, by default 1; steps of differences are relative.
        ``draws`` are the base draws, by default all.
        """
        jacobian = self._differentiate(self.graph, self.draws if draws is None else draws, vector, scales)
        return (jacobian + jacobian.mT) / 2

    def alone(self, index: int) -> FixedDrawsELBO:
        """Return the ELBO of one of the R parameter vectors, at the same draws."""
        one = copy.copy(self)
        one._inputs = [v if axis is None else v[index] for v, axis in zip(self._inputs, self._along, strict=True)]
        one._along = [None] * len(self._along)
        return one

    def derivatives(self, vector: Tensor, num_blocks: int) -> tuple[Tensor, Tensor]:
        """Return the Hessian of the loss over the first blocks, and the derivative of the score, zero without one."""
        draws = self.draws.blocks(0, num_blocks)
        hessian = self.hessian(vector, draws=draws)
        if self.score is None:
            return hessian, torch.zeros_like(hessian)
        return hessian, self._differentiate(self.score, self._draws_of(self.score, draws), vector)

    def _draws_of(self, score: LiftedGraph, draws: BaseDraws) -> BaseDraws:
        """Return the base draws of the score, the first of the loss's."""
        return draws.first(score.num_normals, score.num_uniforms)

    def derivative_error(self, vectors: Tensor) -> float:
        """Return how far the gradients are from finite differences of the losses along random directions, relative.

        It is not small where a gradient estimator is not the derivative at fixed draws, as the score function's.
        """
        self.set_draws(2, 2)
        vectors = vectors.double()
        generator = torch.Generator().manual_seed(self.seed)
        directions = torch.randn(vectors.shape, generator=generator, dtype=torch.float64).to(vectors)
        vectors = vectors + 0.1 * directions  # at an optimum there is no slope to compare
        step = 1e-6 * (1 + vectors.abs().amax(-1, keepdim=True))
        after, before = (self(vectors + sign * step * directions)[0] for sign in (1, -1))
        losses, gradients = self(vectors)
        expected = (gradients * directions).sum(-1)
        rounding = 1e-14 * losses.abs() / step[:, 0]
        error = ((after - before) / (2 * step[:, 0]) - expected).abs() - rounding
        size = (gradients * directions).norm(dim=-1)
        return float((error / size.clamp(min=1e-8)).nan_to_num(torch.inf).min())
