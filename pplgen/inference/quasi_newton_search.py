"""Search for a stationary point of the ELBO over fixed draws, by L-BFGS and Newton steps, for many vectors at once.

The gradient over fixed draws is that of the ELBO plus noise. Most of the noise is the guide's score, whose mean is
zero: a multiple of it, estimated from the spread over blocks of draws, is subtracted. L-BFGS comes near the minimum,
and Newton steps to the zero of that gradient follow. The noise that remains gives the Monte Carlo error of the optimum:
with noise e and inverse Hessian H, the expected loss of ELBO is ``E[e' H e] / 2``.

Gradient norm and Monte Carlo error are root mean squares over parameters, in the metric of H: for a Gaussian guide
distances of its means in posterior standard deviations.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pplgen.inference.fixed_draws_elbo import Blocks, FixedDrawsELBO
from pplgen.inference.lbfgs import (
    ROUNDING,
    DenseInverseHessian,
    InverseHessian,
    LimitedMemoryInverseHessian,
    Point,
    line_search,
)
from pplgen.inference.training_result import Optimum

__all__ = ["QuasiNewtonSearch", "depends_on_draws"]

TOLERANCE = 1e-3
"""Largest gradient norm of a stationary point, unless the Monte Carlo error is larger."""
MAX_ITERATIONS, MAX_EXACT_ITERATIONS, MAX_REFINEMENTS = 200, 1000, 50
"""Maximum numbers of steps of L-BFGS, if the ELBO depends on the draws or not, and of Newton steps after it."""
PATIENCE = 8
"""Number of Newton steps in which the gradient norm must halve."""
NEAR = (0.2, 0.05, 0.005, 0.0)
"""Gradient norms at which Newton steps are tried."""
MAX_HESSIAN_TOTAL = 2**29
"""Entries of the intermediate results of all evaluations, up to which Hessians are computed: a second or two."""
NEGLIGIBLE = 0.1
"""Gradient norm relative to the Monte Carlo error that is small enough."""
HESSIAN_DRAWS = 16
"""Number of draws of a first Hessian, at least one block; of each further one twice as many."""
CURVATURES = (0.05, 20.0)
"""Range of the estimated ratios of curvatures to variances."""
SHORTEST = 2**-2
"""Shortest length of a Newton step, as a fraction."""


def depends_on_draws(losses: Tensor) -> Tensor:
    """Whether losses at each draw, shape ``(num_draws, R)``, differ beyond rounding; an exact guide's do not."""
    return losses.std(0) > 1e-10 * losses.mean(0).abs()


class QuasiNewtonSearch:
    """L-BFGS for R parameter vectors, and Newton steps on the gradient without the noise of the guide's score.

    Parameters
    ----------
    elbo
        The ELBO over fixed draws.
    vectors
        Initial parameters, shape ``(R, P)``.
    losses, gradients
        What ``elbo.each_draw`` returns there.
    """

    def __init__(self, elbo: FixedDrawsELBO, vectors: Tensor, losses: Tensor, gradients: Tensor) -> None:
        self.elbo, self.num_iterations = elbo, 0
        self._exact: DenseInverseHessian | None = None
        self._hessian_draws = HESSIAN_DRAWS
        self._renewed = False
        # at an optimum the variance of a parameter's gradient over draws is about its curvature
        variances = gradients.var(0).nan_to_num()
        mean = variances.mean(-1, keepdim=True)
        self._random = depends_on_draws(losses) & (mean[:, 0] > 0)
        diagonal = torch.where(self._random[:, None], 1 / (variances + 1e-3 * mean), 1.0)
        if not self._dense(len(vectors), vectors.shape[-1]):
            diagonal = diagonal / self._relative_curvature(vectors, diagonal.sqrt())
        self._descent = LimitedMemoryInverseHessian(diagonal)
        self._begin(vectors)

    def renew(self) -> None:
        """Continue with other draws; the optimum is near, and the Hessians there are known."""
        self._begin(self.point.vectors)
        self._renewed = True

    def _begin(self, vectors: Tensor) -> None:
        """Evaluate vectors at the present draws; none has converged there."""
        self.point = self._evaluate(vectors)
        self.error, self.norm = (torch.full_like(self.point.values, math.inf) for _ in range(2))
        self._failed = ~self.point.values.isfinite()
        self.converged = torch.zeros_like(self._failed)

    def run(self) -> None:
        """Iterate until every vector has converged or failed.

        Where Newton steps find no zero of the gradient without the score, the minimum over the draws is taken, with
        all of its noise.
        """
        for near in NEAR:
            self.approach(near)
            self._refine()
            left = ~(self.converged | self._failed)
            if not left.any():
                return
        none = torch.zeros_like(self.norm[:, None])
        gradients, error = self._without_score(self.elbo.blocks(self.point.vectors), none)
        norm = self._norm(gradients)
        self.norm, self.error = torch.where(left, norm, self.norm), torch.where(left, error, self.error)
        self.converged = self.converged | (left & (norm <= torch.maximum(self._tolerance, NEGLIGIBLE * error)))
        self._failed = ~self.converged

    def approach(self, near: float, limit: int | None = None) -> None:
        """Descend by L-BFGS until gradient norms are ``near``, or the tolerance where the loss has no noise.

        There are at most ``limit`` steps; default: as many as a fit takes.
        """
        self.inverse: InverseHessian = self._descent
        stuck = torch.zeros_like(self._failed)
        limit = limit or (MAX_ITERATIONS if self._random.any() else MAX_EXACT_ITERATIONS)
        for _ in range(limit):
            norm = self._norm(self.point.gradients)
            arrived = norm <= torch.where(self._random, near, 0.0).maximum(self._tolerance)
            moving = ~(arrived | self._failed | self.converged)
            if not moving.any():
                break
            stuck = self._descend(moving, stuck)
        self._failed = self._failed | ~(arrived | self.converged)

    def optimum(self, index: int) -> Optimum:
        """Return the result of one vector."""
        error = float(self.error[index])
        return Optimum(
            num_draws=len(self.elbo.draws),
            num_iterations=self.num_iterations,
            num_evaluations=self.elbo.num_evaluations,
            gradient_norm=float(self.norm[index]),
            tolerance=max(TOLERANCE, NEGLIGIBLE * error),
            monte_carlo_error=error,
        )

    def _descend(self, moving: Tensor, stuck: Tensor) -> Tensor:
        """Take a step of L-BFGS; where no lower value is found, first forget the curvature, then stop."""
        self.num_iterations += 1
        after, found = line_search(self._evaluate, self.point, -self._descent.times(self.point.gradients), moving)
        self._descent.update(self.point, after)
        self.point = after
        failing = moving & ~found
        self._failed = self._failed | (failing & stuck)
        if failing.any():
            self._descent.forget(failing)
        return failing

    def _refine(self) -> None:
        """Solve for the zero of the gradient without the score's noise, from the present point or not at all."""
        start = self.point
        left = ~(self.converged | self._failed)
        if not left.any():
            return
        blocks = self.elbo.blocks(start.vectors, left)
        if self._dense(int(left.sum()), start.vectors.shape[-1]) and not self._renewed:
            self._exact = self._exact_inverse(self._multiples(blocks), left)
            self._hessian_draws *= 2
        if self._exact is not None:  # over fewer draws, if those at present are many
            self.inverse = self._exact
        self._renewed = False
        self._solve(blocks)
        self.point = self.point.where(self.converged, start)

    def _solve(self, blocks: Blocks) -> None:
        """Take damped Newton steps to the zeros of the gradients without multiples of the scores.

        The multiples are estimated again after each step, because other noise becomes less near the solution.
        """
        multiples = self._multiples(blocks)
        gradients, error = self._without_score(blocks, multiples)
        self.error = torch.where(self.converged, self.error, error)
        self.norm = torch.where(self.converged, self.norm, self._norm(gradients))
        stalled = torch.zeros_like(self._failed)
        length, earlier = torch.ones_like(self.norm), torch.full_like(self.norm, math.inf)
        for iteration in range(MAX_REFINEMENTS):
            if iteration % PATIENCE == 0:
                stalled = stalled | (self.norm > earlier / 2)
                earlier = self.norm
            near = self.norm <= torch.maximum(self._tolerance, NEGLIGIBLE * self.error)
            self.converged = self.converged | (near & ~self._failed)
            moving = ~(self._failed | self.converged | stalled)
            if not moving.any():
                break
            self.num_iterations += 1
            steps = torch.where(moving, length, 0.0)[:, None] * self.inverse.step(gradients)
            before = Point(self.point.vectors, self.norm, gradients)
            vectors = before.vectors - steps
            blocks = self.elbo.blocks(vectors, moving)
            trial, error = self._without_score(blocks, multiples)
            norm = self._norm(trial)
            better = moving & (norm < (1 - 0.1 * length) * self.norm)
            self.inverse.update(before, Point(vectors, norm, trial).where(better, before))
            multiples = torch.where(better[:, None], self._multiples(blocks), multiples)
            trial, error = self._without_score(blocks, multiples)
            gradients = torch.where(better[:, None], trial, gradients)
            self.point = Point(torch.where(better[:, None], vectors, before.vectors), self.point.values, gradients)
            self.error = torch.where(better, error, self.error)
            self.norm = torch.where(moving, self._norm(gradients), self.norm)
            length = torch.where(better, 1.0, length / 2)
            stalled = stalled | (moving & (length < SHORTEST))

    def _exact_inverse(self, multiples: Tensor, which: Tensor) -> DenseInverseHessian:
        """Return inverses of Hessians, and of the derivatives of the gradients without the score; others are 1."""
        hessians = torch.eye(self.point.vectors.shape[-1]).to(self.point.vectors).repeat(len(which), 1, 1)
        derivatives = hessians.clone()
        for index in which.nonzero()[:, 0].tolist():
            elbo = self.elbo.alone(index)
            hessians[index], score = elbo.derivatives(self.point.vectors[index], self._hessian_blocks())
            derivatives[index] = hessians[index] - multiples[index] * score
        return DenseInverseHessian(hessians, derivatives)

    def _relative_curvature(self, vectors: Tensor, scales: Tensor) -> Tensor:
        """Estimate the Hessians' diagonals in units of ``scales``, shape ``(R, P)``, from products with vectors.

        The vectors have random signs (Bekas, Kokiopoulou and Saad 2007): exact where Hessians are diagonal.
        """
        generator = torch.Generator().manual_seed(self.elbo.seed)
        shape = (self.elbo.draws.num_blocks, *vectors.shape)
        directions = (2.0 * torch.randint(2, shape, generator=generator).to(vectors) - 1) * scales
        curvature = (directions * self.elbo.curvature(vectors, directions)).mean(0)
        return curvature.nan_to_num(1.0).clamp(*CURVATURES)

    def _hessian_blocks(self) -> int:
        """Return the number of blocks of draws over which Hessians are averaged: they need not be precise."""
        size = len(self.elbo.draws) // self.elbo.draws.num_blocks
        return min(self.elbo.draws.num_blocks, -(-self._hessian_draws // size))

    def _dense(self, R: int, P: int) -> bool:
        """Whether R Hessians, by finite differences, take little time."""
        draws = len(self.elbo.draws) // self.elbo.draws.num_blocks * self._hessian_blocks()
        return 2 * R * P * draws * self.elbo.total <= MAX_HESSIAN_TOTAL

    def _multiples(self, blocks: Blocks) -> Tensor:
        """Return the multiples of the scores that reduce the noise of the gradients most, shape ``(R, 1)``."""
        _, gradients, scores = blocks
        noise, score_noise = gradients - gradients.mean(0), scores - scores.mean(0)
        scaled = self.inverse.times(score_noise)
        size = (scaled * score_noise).sum((0, -1))
        return torch.where(size > 0, (scaled * noise).sum((0, -1)) / size, 0.0).clamp(0, 1)[:, None]

    def _without_score(self, blocks: Blocks, multiples: Tensor) -> tuple[Tensor, Tensor]:
        """Return gradients minus multiples of the scores, and the Monte Carlo error."""
        each = blocks.gradients - multiples * blocks.scores
        noise = each - each.mean(0)
        loss = self.inverse.decrement(noise).sum(0) / (len(noise) * (len(noise) - 1))
        return each.mean(0), (2 * loss / noise.shape[-1]).sqrt()

    def _norm(self, gradients: Tensor) -> Tensor:
        norm = (2 * self.inverse.decrement(gradients) / gradients.shape[-1]).sqrt()
        return norm.nan_to_num(math.inf, math.inf)

    @property
    def _tolerance(self) -> Tensor:
        """Tolerance of the gradient norm, not below the rounding error of the ELBO."""
        rounding = (4 * ROUNDING * self.point.values.abs() / self.point.vectors.shape[-1]).sqrt()
        return rounding.clamp(min=TOLERANCE)

    def _evaluate(self, vectors: Tensor, which: Tensor | None = None) -> Point:
        return Point(vectors, *self.elbo(vectors, which))
