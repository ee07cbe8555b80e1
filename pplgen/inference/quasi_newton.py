"""Maximise the ELBO over fixed draws, to a stationary point whose Monte Carlo error is known.

The number of draws is raised until that error is small, and an optimum counts if it is as good on fresh draws; the
search itself is in ``quasi_newton_search``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pplgen.compiler.vectorisation import MAX_ENTRIES
from pplgen.inference.fixed_draws_elbo import FixedDrawsELBO
from pplgen.inference.quasi_newton_search import QuasiNewtonSearch, depends_on_draws
from pplgen.inference.training_result import Optimum

__all__ = ["BLOCKS", "descend", "maximise"]

BLOCKS = 4
"""Number of independent blocks of draws."""
BLOCK_SIZES = (4, 1024)
"""Minimum and maximum number of draws per block."""
FEW_ENTRIES = 2**14
"""Entries of the largest intermediate result below which sixteen draws take about as long as one."""
MAX_TOTAL = 2**26
"""Entries of the intermediate results of one evaluation, up to which draws are added: a fraction of a second."""
TARGET_ERROR = 0.01
"""Monte Carlo error above which more draws are used, where they fit."""
LARGEST_ERROR = 0.3
"""Monte Carlo error above which an optimum is rejected."""
SLACK = 1e-4
"""Nats by which an optimum may be worse on fresh draws than the start, through rounding."""


def maximise(elbo: FixedDrawsELBO, vectors: Tensor) -> tuple[Tensor, list[Optimum | None]]:
    """Maximise the ELBO from R parameter vectors, shape ``(R, P)``.

    All are maximised as one program over few draws; then those that failed alone over more, and the best over as many
    as its Monte Carlo error needs.

    Parameters
    ----------
    elbo
        The ELBO over fixed draws.
    vectors
        Initial parameters.

    Returns
    -------
    tuple
        New parameters, unchanged where none were found that are as good on fresh draws; and the optimum of each,
        ``None`` where they are not a stationary point.
    """
    found, optima, losses = _maximise(elbo, vectors, grow=len(vectors) == 1)
    if len(vectors) == 1:
        return found, optima
    found = found.clone()

    def refine(index: int, *, grow: bool) -> None:
        known = optima[index] if grow else None
        alone, (refined,), loss = _maximise(elbo.alone(index), found[index : index + 1], grow=grow, known=known)
        if refined is not None:
            found[index], optima[index], losses[index] = alone[0], refined, loss[0]

    for index in range(len(vectors)):
        if optima[index] is None:
            refine(index, grow=False)
    accepted = torch.tensor([optimum is not None for optimum in optima], device=losses.device)
    best = int(torch.where(accepted, losses, math.inf).argmin())
    for index in range(len(vectors)):
        if optima[index] is None or index == best:
            refine(index, grow=True)
    return found, optima


def descend(elbo: FixedDrawsELBO, vectors: Tensor, block_size: int, near: float, limit: int) -> tuple[Tensor, Tensor]:
    """Descend from R parameter vectors by at most ``limit`` steps of L-BFGS, until gradient norms are ``near``.

    Returns
    -------
    tuple
        New parameters, shape ``(R, P)``, and their losses on fresh draws, infinite where not finite, shape ``(R,)``.
    """
    elbo.set_draws(BLOCKS, block_size)
    search = QuasiNewtonSearch(elbo, vectors.double(), *elbo.each_draw(vectors.double()))
    search.approach(near, limit)
    found = search.point.vectors
    elbo.set_draws(BLOCKS, block_size, fresh=True)
    return found, elbo.losses(found).mean(0).nan_to_num(math.inf)


def _maximise(
    elbo: FixedDrawsELBO, vectors: Tensor, *, grow: bool, known: Optimum | None = None
) -> tuple[Tensor, list[Optimum | None], Tensor]:
    """Maximise the ELBO from R vectors in one program; return also their losses on fresh draws.

    With ``grow`` the number of draws is raised until the best optimum's Monte Carlo error is ``TARGET_ERROR``, from
    about as many as a ``known`` optimum over fewer draws needs.
    """
    entries, dimensions = elbo.largest * len(vectors), elbo.graph.num_normals
    size = BLOCK_SIZES[0]
    if entries <= FEW_ENTRIES:  # enough draws for unit covariance, if the dimensions are few
        size = max(16, 4 * dimensions if dimensions <= 8 else 0)
    affordable = min(MAX_ENTRIES // (2 * entries), MAX_TOTAL // (elbo.total * len(vectors))) // BLOCKS
    limit = max(size, min(BLOCK_SIZES[1], affordable)) if grow else size
    if known is not None:
        size = max(
            size, min(limit, math.ceil(known.num_draws * (known.monte_carlo_error / TARGET_ERROR) ** 2) // BLOCKS)
        )
    elbo.set_draws(BLOCKS, size)
    at_each_draw = elbo.each_draw(vectors.double())
    if not depends_on_draws(at_each_draw[0]).any():
        size = limit = 2
        elbo.set_draws(BLOCKS, size)
    search = QuasiNewtonSearch(elbo, vectors.double(), *at_each_draw)
    search.run()
    while search.converged.any():
        error = float(search.error[search.converged].min())
        needed = size * (error / TARGET_ERROR) ** 2
        if needed <= 2 * size or 2 * size > limit:
            break
        while size < needed and 2 * size <= limit:
            size *= 2
        elbo.set_draws(BLOCKS, size)
        search.renew()
        search.run()
    gain, gain_error, losses = _gain(elbo, vectors.double(), search.point.vectors, size)
    accepted = search.converged & (search.error <= LARGEST_ERROR) & (gain >= -2 * gain_error - SLACK)
    improved = accepted | (~search.converged & (gain > 2 * gain_error))
    optima = [search.optimum(index) if accepted[index] else None for index in range(len(vectors))]
    return torch.where(improved[:, None], search.point.vectors.to(vectors), vectors), optima, losses


def _gain(elbo: FixedDrawsELBO, before: Tensor, after: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the ELBO gained on fresh draws, in nats, its standard error, and the losses, shape ``(R,)`` each."""
    elbo.set_draws(BLOCKS, size, fresh=True)
    losses = elbo.losses(after)
    gains = elbo.losses(before) - losses
    error = gains.std(0) / math.sqrt(len(gains))
    return gains.mean(0).nan_to_num(-math.inf), error.nan_to_num(), losses.mean(0).nan_to_num(math.inf)
