"""The ELBO averaged over fixed base draws: a deterministic function of the guide's and model's parameters.

Kucukelbir et al. (2017) maximise the ELBO by stochastic gradients; with fixed draws any optimiser of smooth functions
applies, and its optimum has a Monte Carlo error that can be estimated (Giordano, Ingram and Broderick 2024, Black box
variational inference with a deterministic objective).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pplgen.compiler.base_draws import LiftedGraph, lift_random_numbers, to_float64
from pplgen.compiler.graph import Graph
from pplgen.inference.engine import Engine
from pplgen.inference.quasi_random import BaseDraws, draw_blocks
from pplgen.story.isolation import flush_denormals

__all__ = ["Blocks", "FixedDrawsELBO"]

MAX_ENTRIES = 2**22
"""Maximum entries of the largest intermediate result of one call."""


class Blocks(NamedTuple):
    """Means over each block of base draws, for R parameter vectors."""

    losses: Tensor
    """Losses in nats, shape ``(num_blocks, R)``."""
    gradients: Tensor
    """Gradients, shape ``(num_blocks, R, P)``."""
    scores: Tensor
    """Gradients of the guide's log density at fixed draws, shape ``(num_blocks, R, P)``; zero without a score."""


class FixedDrawsELBO:
    """Negative ELBO and its gradient for R parameter vectors, averaged over fixed base draws, in float64.

    Parameters
    ----------
    engine
        Engine of the pair: its verified graph, its constant data and buffers, its ranks.
    score
        Graph of the guide's score, if any.
    seed
        Random seed of the base draws.

    Raises
    ------
    NotReparameterised
        If a random number of the graph is not a differentiable function of base draws.
    """

    def __init__(self, engine: Engine, score: Graph | None, seed: int = 0) -> None:
        assert isinstance(engine.data, tuple), "the ELBO over fixed draws needs the same rows in every step"
        own = [engine.own_buffers] * len(engine.buffers) + [engine.own_data] * len(engine.data)
        self._inputs, self._along = to_float64([*engine.buffers, *engine.data]), [0 if each else None for each in own]
        example = [
            value[0] if each else value for value, each in zip((*engine.buffers, *engine.data), own, strict=True)
        ]
        self.graph = lift_random_numbers(engine.graph, example)
        self.score = None if score is None else lift_random_numbers(score, example)
        self.seed, self.ranks, self.num_evaluations = seed, engine.ranks, 0

    def set_draws(self, num_blocks: int, block_size: int, *, fresh: bool = False) -> None:
        """Draw the base draws; ``fresh`` ones are independent of those that are not."""
        sizes, seed = (self.graph.num_normals, self.graph.num_uniforms), 2 * self.seed + fresh
        if sizes == (0, 0):
            block_size = 1
        device = next((value.device for value in self._inputs), torch.device("cpu"))
        self.draws = draw_blocks(num_blocks, block_size, *sizes, seed=seed, device=device)

    def __call__(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Return losses in nats, shape ``(R,)``, and gradients, shape ``(R, P)``."""
        losses, gradients = self._evaluate(self.graph, self.draws, vectors)
        return losses.mean(0), gradients.mean(0)

    def blocks(self, vectors: Tensor) -> Blocks:
        """Return means over each block of base draws, of losses, gradients and scores."""
        losses, gradients = self._evaluate(self.graph, self.draws, vectors)
        scores = torch.zeros_like(gradients)
        if self.score is not None:
            draws = self.draws.first(self.score.num_normals, self.score.num_uniforms)
            _, scores = self._evaluate(self.score, draws, vectors)
        return Blocks(losses, gradients, scores)

    def derivative_error(self, vectors: Tensor) -> float:
        """Return how far the gradients are from finite differences of the losses along random directions, relative.

        It is not small where a gradient estimator is not the derivative at fixed draws, as the score function's.
        """
        self.set_draws(2, 2)
        vectors = vectors.double()
        generator = torch.Generator().manual_seed(self.seed)
        directions = torch.randn(vectors.shape, generator=generator, dtype=torch.float64).to(vectors)
        step = 1e-6 * (1 + vectors.abs().amax(-1, keepdim=True))
        after, before = (self(vectors + sign * step * directions)[0] for sign in (1, -1))
        losses, gradients = self(vectors)
        expected = (gradients * directions).sum(-1)
        rounding = 1e-14 * losses.abs() / step[:, 0]
        error = ((after - before) / (2 * step[:, 0]) - expected).abs() - rounding
        size = (gradients * directions).norm(dim=-1)
        return float((error / size.clamp(min=1e-8)).nan_to_num(torch.inf).min())

    def variances(self, vectors: Tensor) -> Tensor:
        """Return the variances of the gradient over single draws, shape ``(R, P)``."""
        draws = BaseDraws(self.draws.normals, self.draws.uniforms, len(self.draws))
        return self._evaluate(self.graph, draws, vectors)[1].var(0)

    def _evaluate(self, graph: LiftedGraph, draws: BaseDraws, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate losses and gradients at all base draws; return their means over each block."""
        self.num_evaluations += 1

        def at_draw(normals: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
            def of_vector(vector: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor]:
                return graph.module(vector, normals, uniforms, *inputs)

            if len(vectors) == 1:
                inputs = [v if axis is None else v[0] for v, axis in zip(self._inputs, self._along, strict=True)]
                loss, gradient = of_vector(vectors[0], *inputs)
                return loss[None], gradient[None]
            return torch.func.vmap(of_vector, in_dims=(0, *self._along))(vectors, *self._inputs)

        size = max(1, MAX_ENTRIES // (graph.largest * len(vectors)))
        with torch.no_grad(), flush_denormals():
            losses, gradients = torch.func.vmap(at_draw, chunk_size=size)(draws.normals, draws.uniforms)
        losses, gradients = (value.unflatten(0, (draws.num_blocks, -1)).mean(1) for value in (losses, gradients))
        return self.ranks.mean(losses), self.ranks.mean(gradients)
