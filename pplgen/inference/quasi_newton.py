"""Maximise the ELBO over fixed draws by L-BFGS, to a stationary point whose Monte Carlo error is known.

The gradient over fixed draws is that of the ELBO plus noise. Most of the noise is the guide's score, whose mean is
zero: a multiple of it, estimated from the spread over blocks of draws, is subtracted. L-BFGS comes near the minimum,
and Newton steps to the zero of that gradient follow. The noise that remains gives the Monte Carlo error of the optimum:
with noise e and inverse Hessian H, the expected loss of ELBO is ``E[e' H e] / 2``. The number of draws is raised until
that error is small.

Gradient norm and Monte Carlo error are root mean squares over parameters, in the metric of H: for a Gaussian guide
distances of its means in posterior standard deviations.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pplgen.inference.fixed_draws_elbo import MAX_ENTRIES, FixedDrawsELBO
from pplgen.inference.lbfgs import ROUNDING, DenseInverseHessian, InverseHessian, Point, line_search
from pplgen.inference.training_result import Optimum

__all__ = ["maximise"]

BLOCKS = 4
"""Number of independent blocks of draws."""
BLOCK_SIZES = (4, 1024)
"""Minimum and maximum number of draws per block."""
FEW_ENTRIES = 2**14
"""Entries of the largest intermediate result below which sixteen draws take about as long as one."""
TOLERANCE = 1e-3
"""Largest gradient norm of a stationary point."""
TARGET_ERROR = 0.01
"""Monte Carlo error above which more draws are used, where they fit."""
LARGEST_ERROR = 0.3
"""Monte Carlo error above which an optimum is rejected."""
MAX_ITERATIONS, MAX_REFINEMENTS = 1000, 100
"""Maximum numbers of steps of L-BFGS, and of Newton steps after it."""
MIN_ITERATIONS = 3
"""Minimum number of steps of L-BFGS: they approximate the inverse Hessian."""
NEAR = 0.05
"""Gradient norm at which Newton steps begin."""
MAX_HESSIAN_ENTRIES = 2**26
"""Entries of the largest intermediate results of all evaluations, up to which Hessians are computed."""
SHORTEST = 2**-8
"""Shortest length of a Newton step, as a fraction."""


def maximise(
    elbo: FixedDrawsELBO, vectors: Tensor, report: Callable[[float], None] | None = None
) -> tuple[Tensor, list[Optimum | None]]:
    """Maximise the ELBO from R parameter vectors, shape ``(R, P)``.

    Parameters
    ----------
    elbo
        The ELBO over fixed draws.
    vectors
        Initial parameters.
    report
        Called after each iteration with the best ELBO over the fixed draws, in nats.

    Returns
    -------
    tuple
        New parameters, unchanged where none were found that are as good on fresh draws; and the optimum of each,
        ``None`` where they are not a stationary point.
    """
    entries = elbo.graph.largest * len(vectors)
    size = BLOCK_SIZES[0]
    if entries <= FEW_ENTRIES:  # enough draws for unit covariance, if the dimensions are few
        size = max(16, 2 ** math.ceil(math.log2(4 * min(elbo.graph.num_normals, 16) + 1)))
    limit = max(size, min(BLOCK_SIZES[1], MAX_ENTRIES // (2 * entries * BLOCKS)))
    elbo.set_draws(BLOCKS, size)
    if not _is_random(elbo, vectors.double()).any():
        size = limit = 2
        elbo.set_draws(BLOCKS, size)
    search = _Search(elbo, vectors.double())
    while True:
        search.run(report)
        best = int(torch.where(search.converged, search.point.values, math.inf).argmin())
        error = float(search.error[best])
        needed = size * (error / TARGET_ERROR) ** 2 if math.isfinite(error) else math.inf
        if not search.converged.any() or needed <= 1.5 * size or 2 * size > limit:
            break
        while size < needed and 2 * size <= limit:
            size *= 2
        elbo.set_draws(BLOCKS, size)
        search.renew()
    gain, gain_error = _gain(elbo, vectors.double(), search.point.vectors, size)
    better = gain >= -2 * gain_error
    accepted = search.converged & (search.error <= LARGEST_ERROR) & better
    improved = accepted | (~search.converged & (gain > 2 * gain_error))
    optima = [
        Optimum(
            num_draws=BLOCKS * size,
            num_iterations=search.num_iterations,
            num_evaluations=elbo.num_evaluations,
            gradient_norm=float(search.norm[index]),
            tolerance=TOLERANCE,
            monte_carlo_error=float(search.error[index]),
        )
        if accepted[index]
        else None
        for index in range(len(vectors))
    ]
    return torch.where(improved[:, None], search.point.vectors.to(vectors), vectors), optima


def _is_random(elbo: FixedDrawsELBO, vectors: Tensor) -> Tensor:
    """Whether the loss depends on the draws beyond rounding, shape ``(R,)``; an exact guide's does not."""
    losses, _ = elbo.each_draw(vectors)
    return losses.std(0) > 1e-10 * losses.mean(0).abs()


def _gain(elbo: FixedDrawsELBO, before: Tensor, after: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the ELBO gained on fresh draws, in nats, and its standard error, shape ``(R,)`` each."""
    elbo.set_draws(BLOCKS, size, fresh=True)
    gains = elbo.blocks(before).losses - elbo.blocks(after).losses
    error = gains.std(0) / math.sqrt(len(gains))
    return gains.mean(0).nan_to_num(-math.inf), error.nan_to_num()


class _Search:
    """L-BFGS for R parameter vectors, and Newton steps on the gradient without the noise of the guide's score."""

    def __init__(self, elbo: FixedDrawsELBO, vectors: Tensor) -> None:
        self.elbo, self.num_iterations = elbo, 0
        self.point = self._evaluate(vectors)
        # at an optimum the variance of a parameter's gradient over draws is about its curvature
        variances = elbo.each_draw(vectors)[1].var(0).nan_to_num()
        mean = variances.mean(-1, keepdim=True)
        self._random = _is_random(elbo, vectors) & (mean[:, 0] > 0)
        self.inverse = InverseHessian(torch.where(self._random[:, None], 1 / (variances + 1e-3 * mean), 1.0))
        self.renew()

    def renew(self) -> None:
        """Continue with other draws."""
        if self.num_iterations:
            self.point = self._evaluate(self.point.vectors)
        self.error, self.norm = (torch.full_like(self.point.values, math.inf) for _ in range(2))
        self._failed = ~self.point.values.isfinite()
        self.converged = torch.zeros_like(self._failed)

    def run(self, report: Callable[[float], None] | None) -> None:
        """Iterate until every vector has converged or failed."""
        stuck = torch.zeros_like(self._failed)
        for _ in range(MAX_ITERATIONS):
            self.norm = self._norm(self.point.gradients)
            near = self.norm <= torch.where(self._random, NEAR, self._tolerance)
            moving = ~(near | self._failed)
            if not moving.any() and self.num_iterations >= MIN_ITERATIONS:
                break
            stuck = self._descend(~self._failed, stuck)
            if report:
                report(-float(self.point.values.nan_to_num(math.inf).min()))
        self._failed = self._failed | ~near
        self._refine()

    def _descend(self, moving: Tensor, stuck: Tensor) -> Tensor:
        """Take a step of L-BFGS; where no lower value is found, first forget the curvature, then stop."""
        self.num_iterations += 1
        after, found = line_search(self._evaluate, self.point, -self.inverse.times(self.point.gradients), moving)
        self.inverse.update(self.point, after)
        self.point = after
        failing = moving & ~found
        self._failed = self._failed | (failing & stuck)
        if failing.any():
            self.inverse.forget(failing)
        return failing

    def _refine(self) -> None:
        """Solve for the zero of the gradient without the score's noise, by damped Newton steps near the minimum."""
        if self._dense():
            self.inverse = DenseInverseHessian(torch.stack([self.elbo.hessian(each) for each in self.point.vectors]))
        gradients, self.error = self._without_score(self.point.vectors)
        self.norm = self._norm(gradients)
        length = torch.ones_like(self.norm)
        for _ in range(MAX_REFINEMENTS):
            self.converged = ~self._failed & (self.norm <= self._tolerance)
            moving = ~(self._failed | self.converged)
            if not moving.any():
                return
            self.num_iterations += 1
            steps = torch.where(moving, length, 0.0)[:, None] * self.inverse.times(gradients)
            before = Point(self.point.vectors, self.norm, gradients)
            vectors = before.vectors - steps
            trial, error = self._without_score(vectors)
            norm = self._norm(trial)
            better = moving & (norm < (1 - 0.1 * length) * self.norm)
            after = Point(vectors, norm, trial).where(better, before)
            self.inverse.update(before, after)
            gradients = after.gradients
            self.point = Point(after.vectors, self.point.values, gradients)
            self.error = torch.where(better, error, self.error)
            self.norm = self._norm(gradients)
            length = torch.where(better, 1.0, length / 2)
            self._failed = self._failed | (length < SHORTEST)

    def _dense(self) -> bool:
        """Whether Hessians of all vectors, by finite differences, take little time."""
        R, P = self.point.vectors.shape
        evaluations = 2 * R * P * len(self.elbo.draws)
        return self.elbo.shares_inputs and evaluations * self.elbo.graph.largest <= MAX_HESSIAN_ENTRIES

    def _without_score(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Return gradients minus the multiple of the score that reduces their noise most, and the Monte Carlo error."""
        _, gradients, scores = self.elbo.blocks(vectors)
        noise, score_noise = gradients - gradients.mean(0), scores - scores.mean(0)
        scaled = self.inverse.times(score_noise)
        size = (scaled * score_noise).sum((0, -1))
        multiple = torch.where(size > 0, (scaled * noise).sum((0, -1)) / size, 0.0).clamp(0, 1)[:, None]
        rest = noise - multiple * score_noise
        loss = self.inverse.decrement(rest).sum(0) / (len(rest) * (len(rest) - 1))
        return gradients.mean(0) - multiple * scores.mean(0), (2 * loss / rest.shape[-1]).sqrt()

    def _norm(self, gradients: Tensor) -> Tensor:
        norm = (2 * self.inverse.decrement(gradients) / gradients.shape[-1]).sqrt()
        return norm.nan_to_num(math.inf, math.inf)

    @property
    def _tolerance(self) -> Tensor:
        """Tolerance of the gradient norm, not below the rounding error of the ELBO."""
        rounding = (4 * ROUNDING * self.point.values.abs() / self.point.vectors.shape[-1]).sqrt()
        return rounding.clamp(min=TOLERANCE)

    def _evaluate(self, vectors: Tensor) -> Point:
        return Point(vectors, *self.elbo(vectors))
