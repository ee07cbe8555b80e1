"""Expectation-maximisation for Gaussian mixtures with full covariances, in plain torch.

The log-likelihood is ``sum_i log sum_k pi_k N(x_i; mu_k, Sigma_k)``. Each iteration computes the responsibilities
``r_ik = p(z_i = k | x_i)`` (E-step) and maximises the expected complete-data log-likelihood under them (M-step); the
log-likelihood never decreases (Bishop 2006, section 9.2, equations 9.23 to 9.28).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from pplgen.errors import InputError, renamed
from pplgen.exact.linear_gaussian import log_normal

__all__ = ["EMResult", "GaussianMixtureParameters", "e_step", "em", "em_from_starts", "m_step"]

__getattr__ = renamed(__name__, {"climb_from": "em_from_starts"})

Parameters = TypeVar("Parameters")


class GaussianMixtureParameters(NamedTuple):
    """Parameters of a Gaussian mixture with K components in D dimensions."""

    weights: Float[Tensor, "components"]
    """pi, on the simplex."""
    mu: Float[Tensor, "components features"]
    """Means."""
    Sigma: Float[Tensor, "components features features"]
    """Covariances, positive definite."""


@dataclass(frozen=True)
class EMResult(Generic[Parameters]):
    """The best of several runs of EM."""

    parameters: Parameters
    log_likelihoods: Float[Tensor, "iterations"]
    """Log-likelihood in nats after each iteration of the best run, non-decreasing."""
    converged: bool
    """Whether the best run reached the tolerance within its iterations."""


def e_step(
    x: Float[Tensor, "rows features"], parameters: GaussianMixtureParameters
) -> tuple[Float[Tensor, "rows components"], Float[Tensor, ""]]:
    """Compute the responsibilities and the log-likelihood.

    Parameters
    ----------
    x
        Rows.
    parameters
        Current parameters.

    Returns
    -------
    responsibilities : Tensor
        ``r_ik = p(z_i = k | x_i)``.
    log_likelihood : Tensor
        ``sum_i log p(x_i)`` in nats, a scalar.

    Raises
    ------
    torch.linalg.LinAlgError
        If a covariance is not positive definite: a component has collapsed.
    """
    L = torch.linalg.cholesky(parameters.Sigma)
    log_joint = parameters.weights.log() + log_normal(x[:, None, :] - parameters.mu, L)
    log_marginal = log_joint.logsumexp(dim=1, keepdim=True)
    return (log_joint - log_marginal).exp(), log_marginal.sum()


def m_step(
    x: Float[Tensor, "rows features"], responsibilities: Float[Tensor, "rows components"]
) -> GaussianMixtureParameters:
    """Maximise the expected complete-data log-likelihood by weighted counts, means and covariances.

    Parameters
    ----------
    x
        Rows.
    responsibilities
        Probabilities of the components, rows summing to one.
    """
    counts = responsibilities.sum(dim=0)
    mu = responsibilities.T @ x / counts[:, None]
    residual = x[:, None, :] - mu
    Sigma = torch.einsum("nk,nkd,nke->kde", responsibilities, residual, residual) / counts[:, None, None]
    return GaussianMixtureParameters(counts / len(x), mu, Sigma)


def em(
    x: Float[Tensor, "rows features"],
    num_components: int,
    *,
    num_starts: int = 10,
    max_iterations: int = 1000,
    tolerance: float = 1e-9,
    seed: int = 0,
) -> EMResult[GaussianMixtureParameters]:
    """Maximise the likelihood by EM from several random starts; a start that collapses is discarded.

    Parameters
    ----------
    x
        Rows, float64 for accurate results.
    num_components
        Number of components K.
    num_starts
        Number of starts, each from K distinct rows as means, the covariance of the data and equal weights.
    max_iterations
        Maximum number of iterations per start.
    tolerance
        Minimum gain of an iteration in nats per row; a smaller gain is convergence.
    seed
        Seed of the generator that chooses the rows.

    Raises
    ------
    InputError
        If there are fewer rows than components, or every start collapses: the likelihood of a full-covariance
        mixture is unbounded, and with ties in the data and many components it may have no proper maximum.
    """
    if not 1 <= num_components <= len(x):
        raise InputError(f"{num_components} components for {len(x)} rows; expected between 1 and {len(x)}")
    generator = torch.Generator().manual_seed(seed)
    starts = [_start(x, num_components, generator) for _ in range(num_starts)]
    return em_from_starts(
        starts,
        lambda parameters: e_step(x, parameters),
        lambda responsibilities: m_step(x, responsibilities),
        max_iterations=max_iterations,
        tolerance=tolerance * len(x),
    )


def em_from_starts(
    starts: Sequence[Parameters],
    expect: Callable[[Parameters], tuple[Any, Tensor]],
    maximise: Callable[[Any], Parameters],
    *,
    max_iterations: int,
    tolerance: float,
) -> EMResult[Parameters]:
    """Run EM from each start and return the best result; a start that collapses is discarded.

    Parameters
    ----------
    starts
        Initial parameters.
    expect
        The E-step: returns the input of the M-step, and the log-likelihood in nats.
    maximise
        The M-step.
    max_iterations
        Maximum number of iterations per start.
    tolerance
        Minimum gain of an iteration in nats; a smaller gain is convergence.

    Raises
    ------
    InputError
        If every start collapses.
    """
    best: EMResult[Parameters] | None = None
    for start in starts:
        try:
            result = _run_em(start, expect, maximise, max_iterations, tolerance)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            continue
        if best is None or result.log_likelihoods[-1] > best.log_likelihoods[-1]:
            best = result
    if best is None:
        raise InputError(f"all {len(starts)} starts collapsed: the likelihood has no proper maximum")
    return best


def _start(
    x: Float[Tensor, "rows features"], num_components: int, generator: torch.Generator
) -> GaussianMixtureParameters:
    """Return K distinct rows as means, with the covariance of all rows for each."""
    rows = torch.randperm(len(x), generator=generator)[:num_components]
    weights = x.new_full((num_components,), 1 / num_components)
    covariance = x.T.cov(correction=0).reshape(x.shape[1], x.shape[1])
    return GaussianMixtureParameters(weights, x[rows], covariance.expand(num_components, -1, -1))


def _run_em(
    parameters: Parameters,
    expect: Callable[[Parameters], tuple[Any, Tensor]],
    maximise: Callable[[Any], Parameters],
    max_iterations: int,
    tolerance: float,
) -> EMResult[Parameters]:
    """Alternate the two steps until an iteration gains less than ``tolerance`` nats."""
    history: list[Tensor] = []
    converged = False
    expected, previous = expect(parameters)
    while not converged and len(history) < max_iterations:
        parameters = maximise(expected)
        expected, current = expect(parameters)
        history.append(current)
        converged = bool(current - previous < tolerance)
        previous = current
    return EMResult(parameters, torch.stack(history), converged)
