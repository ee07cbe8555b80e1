"""Expectation-maximisation for Gaussian mixtures with missing entries (NaN), exactly, in plain torch.

Rows with the same pattern of missing entries are grouped. With o the observed and m the missing entries of a row,
``p(x_o | k)`` is the observed block's normal density, and given the component the missing entries are normal with mean
``mu_m + Sigma_mo Sigma_oo^-1 (x_o - mu_o)`` and covariance ``Sigma_mm - Sigma_mo Sigma_oo^-1 Sigma_om``; both enter the
M-step (Ghahramani and Jordan 1994, Supervised learning from incomplete data via an EM approach).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from pplgen.errors import InputError
from pplgen.exact.em import EMResult, GaussianMixtureParameters, em_from_starts
from pplgen.exact.linear_gaussian import log_normals

__all__ = ["Expectations", "e_step_missing", "em_missing", "m_step_missing"]


class Expectations(NamedTuple):
    """Results of the E-step."""

    responsibilities: Float[Tensor, "rows components"]
    """``p(z_i = k | x_i,o)``."""
    completed: Float[Tensor, "rows components features"]
    """``E[x_i | x_i,o, z_i = k]``."""
    uncertainty: Float[Tensor, "rows components features features"]
    """``Cov[x_i | x_i,o, z_i = k]``, zero for observed entries."""
    log_likelihoods: Float[Tensor, "rows"]
    """``log p(x_i,o)`` in nats."""


def e_step_missing(x: Float[Tensor, "rows features"], parameters: GaussianMixtureParameters) -> Expectations:
    """Compute responsibilities and conditional moments of missing entries.

    Parameters
    ----------
    x
        Rows, NaN if missing.
    parameters
        Current parameters.

    Raises
    ------
    torch.linalg.LinAlgError
        If a covariance is not positive definite: a component has collapsed.
    """
    (N, D), K = x.shape, len(parameters.weights)
    log_joint = parameters.weights.log().repeat(N, 1)
    completed = x[:, None, :].repeat(1, K, 1)
    uncertainty = x.new_zeros(N, K, D, D)
    patterns, pattern_of_row = x.isnan().unique(dim=0, return_inverse=True)
    for index, is_missing in enumerate(patterns):
        rows = pattern_of_row == index
        observed, missing = torch.nonzero(~is_missing).squeeze(1), torch.nonzero(is_missing).squeeze(1)
        L = torch.linalg.cholesky(parameters.Sigma[:, observed][:, :, observed])
        residual = (x[rows][:, None, observed] - parameters.mu[:, observed]).unsqueeze(-1)
        log_joint[rows] += log_normals(residual, L).squeeze(-1)
        if len(missing):
            cross = parameters.Sigma[:, missing][:, :, observed]
            slope = torch.cholesky_solve(cross.mT, L).mT
            centre = parameters.mu[:, missing] + (slope @ residual).squeeze(-1)
            block = parameters.Sigma[:, missing][:, :, missing] - slope @ cross.mT
            row_index = torch.nonzero(rows)
            completed[row_index, :, missing] = centre.transpose(1, 2)
            uncertainty[row_index[:, :, None], :, missing[:, None], missing] = block.permute(1, 2, 0)
    log_marginal = log_joint.logsumexp(dim=1, keepdim=True)
    return Expectations((log_joint - log_marginal).exp(), completed, uncertainty, log_marginal.squeeze(1))


def m_step_missing(expected: Expectations) -> GaussianMixtureParameters:
    """Maximise the expected complete-data log-likelihood."""
    r, filled = expected.responsibilities, expected.completed
    counts = r.sum(dim=0)
    mu = torch.einsum("nk,nkd->kd", r, filled) / counts[:, None]
    residual = filled - mu
    Sigma = torch.einsum("nk,nkd,nke->kde", r, residual, residual) + torch.einsum(
        "nk,nkde->kde", r, expected.uncertainty
    )
    return GaussianMixtureParameters(counts / len(r), mu, Sigma / counts[:, None, None])


def em_missing(
    x: Float[Tensor, "rows features"],
    num_components: int,
    *,
    num_starts: int = 10,
    max_iterations: int = 1000,
    tolerance: float = 1e-7,
    seed: int = 0,
) -> EMResult[GaussianMixtureParameters]:
    """Maximise the likelihood of the observed entries from several random starts; arguments and errors as for ``em``.

    Each start has K rows as means, with missing entries imputed by column means, and the column variances.
    """
    if not 1 <= num_components <= len(x):
        raise InputError(f"{num_components} components for {len(x)} rows; expected between 1 and {len(x)}")
    generator = torch.Generator().manual_seed(seed)
    mean = x.nanmean(dim=0)
    variance = (x - mean).square().nanmean(dim=0)
    weights = x.new_full((num_components,), 1 / num_components)

    def start() -> GaussianMixtureParameters:
        rows = x[torch.randperm(len(x), generator=generator)[:num_components]]
        mu = torch.where(rows.isnan(), mean, rows)
        return GaussianMixtureParameters(weights, mu, torch.diag(variance).expand(num_components, -1, -1))

    def expect(parameters: GaussianMixtureParameters) -> tuple[Expectations, Tensor]:
        expected = e_step_missing(x, parameters)
        return expected, expected.log_likelihoods.sum()

    return em_from_starts(
        [start() for _ in range(num_starts)],
        expect,
        m_step_missing,
        max_iterations=max_iterations,
        tolerance=tolerance * len(x),
    )
