"""A normal distribution on the unconstrained scale of a pair's latents, in whose coordinates its log joint is given."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pplgen.errors import InputError
from pplgen.inference.potential import Potential

__all__ = ["NormalProposal"]

MAX_LATENTS = 1000
"""Maximum number of scalar latents."""
DRAWS_PER_LATENT = 3
"""Minimum number of draws for each scalar latent, for a covariance."""


class NormalProposal:
    """Normal distribution with the mean and covariance of draws; its coordinates are standard normal.

    Parameters
    ----------
    potential
        The pair's negative log joint density.
    draws
        Vectors of unconstrained latents, shape ``(num_draws, P)``.
    width
        Standard deviations relative to those of the draws.

    Raises
    ------
    InputError
        If there are too many latents, or too few draws for their covariance.
    """

    def __init__(self, potential: Potential, draws: Tensor, width: float = 1.0) -> None:
        number, P = draws.shape
        if P > MAX_LATENTS:
            raise InputError(f"log_evidence: the model has {P:,} scalar latents; expected at most {MAX_LATENTS:,}")
        if number < DRAWS_PER_LATENT * P:
            raise InputError(
                f"log_evidence: {number:,} draws are too few for the covariance of {P:,} latents; expected at least "
                f"{DRAWS_PER_LATENT * P:,}"
            )
        self.potential = potential
        self.mean = draws.double().mean(0)
        self.factor = width * torch.linalg.cholesky(draws.double().T.cov().reshape(P, P))
        self._log_volume = float(self.factor.diagonal().log().sum())

    def vectors(self, coordinates: Tensor) -> Tensor:
        """Return unconstrained latents, shape ``(number, P)``."""
        return (self.mean + coordinates @ self.factor.mT).to(self.potential.dtype)

    def coordinates(self, vectors: Tensor) -> Tensor:
        """Return standardised coordinates, shape ``(number, P)``."""
        return torch.linalg.solve_triangular(self.factor, (vectors.double() - self.mean).mT, upper=False).mT

    def log_density(self, coordinates: Tensor) -> Tensor:
        """Log density of the proposal in its coordinates, in nats, shape ``(number,)``."""
        return -0.5 * coordinates.square().sum(-1) - 0.5 * coordinates.shape[-1] * math.log(2 * math.pi)

    def log_joint(self, coordinates: Tensor) -> tuple[Tensor, Tensor]:
        """Log joint density as one of the coordinates, in nats, shape ``(number,)``, and its gradient.

        Where it is not finite, it is minus infinity and the gradient zero.
        """
        potentials, gradients = self.potential.at_vectors(self.vectors(coordinates))
        gradients = -gradients.double() @ self.factor
        values = self._log_volume - potentials.double()
        finite = values.isfinite() & gradients.isfinite().all(-1)
        return torch.where(finite, values, -math.inf), torch.where(finite[:, None], gradients, 0.0)
