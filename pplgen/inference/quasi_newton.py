"""Maximise the ELBO over fixed draws by L-BFGS, to a stationary point whose Monte Carlo error is known.

The gradient over fixed draws is that of the ELBO plus noise. Most of the noise is the guide's score, whose mean is
zero: a multiple of it, estimated from the spread over blocks of draws, is subtracted as a linear term, and renewed as
the search converges. What remains gives the Monte Carlo error of the optimum: with noise e and inverse Hessian H, the
expected loss of ELBO is ``E[e' H e] / 2``. The number of draws is raised until that error is small.

Gradient norm and Monte Carlo error are root mean squares over parameters, in the metric of H: for a Gaussian guide
distances of its means in posterior standard deviations.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pplgen.inference.fixed_draws_elbo import MAX_ENTRIES, FixedDrawsELBO
from pplgen.inference.lbfgs import ROUNDING, InverseHessian, Point, line_search
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
MAX_ITERATIONS = 1000
MIN_ITERATIONS = 3
"""Minimum number of iterations before the first linear term: they approximate the inverse Hessian."""
FIRST_CORRECTION = 0.05
"""Gradient norm at which the linear term is first estimated."""
REDUCTION = 0.3
"""Gradient norm at which the term is renewed, relative to its last change."""
MAX_CORRECTIONS = 10
"""Maximum number of times that the linear term is renewed."""


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
    size = 16 if entries <= FEW_ENTRIES else BLOCK_SIZES[0]
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
    """L-BFGS for R parameter vectors, with a linear term that removes the noise of the guide's score."""

    def __init__(self, elbo: FixedDrawsELBO, vectors: Tensor) -> None:
        self.elbo, self.num_iterations = elbo, 0
        self.point = self._evaluate(vectors)
        # at an optimum the variance of a parameter's gradient over draws is about its curvature
        variances = elbo.each_draw(vectors)[1].var(0).nan_to_num()
        mean = variances.mean(-1, keepdim=True)
        random = _is_random(elbo, vectors)[:, None] & (mean > 0)
        self.inverse = InverseHessian(torch.where(random, 1 / (variances + 1e-3 * mean), 1.0))
        self.renew()

    def renew(self) -> None:
        """Continue with other draws."""
        if self.num_iterations:
            self.point = self._evaluate(self.point.vectors)
        number = len(self.point.values)
        self.slopes = torch.zeros_like(self.point.vectors)
        self.error, self.norm = (torch.full_like(self.point.values, math.inf) for _ in range(2))
        self.converged = torch.zeros(number, dtype=torch.bool, device=self.slopes.device)
        self._failed = ~self.point.values.isfinite()
        self._pending = torch.full_like(self.error, FIRST_CORRECTION / REDUCTION)
        """Norm of the last change of the linear term."""
        self._corrections = torch.zeros_like(self.error)

    def run(self, report: Callable[[float], None] | None) -> None:
        """Iterate until every vector has converged or failed."""
        for _ in range(MAX_ITERATIONS):
            self._correct()
            moving = ~(self.converged | self._failed)
            if not moving.any():
                return
            self._step(moving)
            if report:
                report(-float(self.point.values.nan_to_num(math.inf).min()))

    def _step(self, moving: Tensor) -> None:
        """Take a step; where no lower value is found, first forget the curvature, then stop."""
        self.num_iterations += 1
        gradients = self.point.tilted(self.slopes).gradients
        directions = -self.inverse.times(gradients)
        after, found = line_search(self._evaluate, self.point, directions, self.slopes, moving)
        self.inverse.update(self.point, after)
        self.point = after
        stuck = moving & ~found
        if stuck.any():
            self._failed = self._failed | (stuck & self._stuck_before(stuck))
            self.inverse.forget(stuck)

    def _stuck_before(self, stuck: Tensor) -> Tensor:
        """Whether a vector was stuck in the previous step too."""
        before = getattr(self, "_last_stuck", (-1, stuck))
        self._last_stuck = (self.num_iterations, stuck)
        return before[1] if before[0] == self.num_iterations - 1 else torch.zeros_like(stuck)

    def _correct(self) -> None:
        """Where the search has converged for the current linear term, renew the term, or stop if it stays the same."""
        self.norm = self._norm(self.point.tilted(self.slopes).gradients)
        ready = self.norm <= torch.maximum(self._tolerance, REDUCTION * self._pending)
        ready = ready & ~(self.converged | self._failed)
        if self.num_iterations < MIN_ITERATIONS or not ready.any():
            return
        slopes, error = self._linear_term()
        change = self._norm(slopes - self.slopes)
        self.error = torch.where(ready, error, self.error)
        settled = change <= torch.maximum(self._tolerance, 0.1 * error)
        settled = settled | (self._corrections >= MAX_CORRECTIONS)
        self.converged = self.converged | (ready & settled & (self.norm <= self._tolerance))
        renewed = ready & ~settled
        self.slopes = torch.where(renewed[:, None], slopes, self.slopes)
        self._pending = torch.where(ready, torch.where(settled, 0.0, change), self._pending)
        self._corrections = self._corrections + renewed
        self.norm = self._norm(self.point.tilted(self.slopes).gradients)

    def _linear_term(self) -> tuple[Tensor, Tensor]:
        """Return the multiple of the mean score that reduces the noise most, and the Monte Carlo error with it."""
        _, gradients, scores = self.elbo.blocks(self.point.vectors)
        noise, score_noise = gradients - gradients.mean(0), scores - scores.mean(0)
        scaled = self.inverse.times(score_noise)
        size = (scaled * score_noise).sum((0, -1))
        multiple = torch.where(size > 0, (scaled * noise).sum((0, -1)) / size, 0.0).clamp(0, 1)[:, None]
        rest = noise - multiple * score_noise
        loss = self.inverse.decrement(rest).sum(0) / (len(rest) * (len(rest) - 1))
        return multiple * scores.mean(0), (2 * loss / rest.shape[-1]).sqrt()

    def _norm(self, gradients: Tensor) -> Tensor:
        return (2 * self.inverse.decrement(gradients) / gradients.shape[-1]).sqrt()

    @property
    def _tolerance(self) -> Tensor:
        """Tolerance of the gradient norm, not below the rounding error of the ELBO."""
        rounding = (4 * ROUNDING * self.point.values.abs() / self.slopes.shape[-1]).sqrt()
        return rounding.clamp(min=TOLERANCE)

    def _evaluate(self, vectors: Tensor) -> Point:
        return Point(vectors, *self.elbo(vectors))
