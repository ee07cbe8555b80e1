"""Probabilistic PCA in closed form and factor analysis by EM, in plain torch.

With latents ``z_i ~ N(0, I)`` and rows ``x_i | z_i ~ N(W z_i + mu, diag(psi))``, rows and latents are jointly normal::

    (x_i, z_i) ~ N((mu, 0), [[W W' + diag(psi), W], [W', I]])

so latents are missing entries of their row, and ``pplgen.exact.em_missing`` with one component computes their posterior
and the likelihood of the observed entries.

If psi is one number, the likelihood is maximised by the leading eigenvectors of the rows' covariance (Tipping and
Bishop 1999, equations 7 to 9). Otherwise, and with missing entries, it is maximised by EM (Rubin and Thayer 1982): the
M-step regresses rows on latents.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from pplgen.errors import InputError, renamed
from pplgen.exact.em import EMResult, GaussianMixtureParameters, em_from_starts
from pplgen.exact.em_missing import Expectations, e_step_missing

__all__ = ["FactorParameters", "FactorPosterior", "em_factor_analysis", "factor_posterior", "ppca"]

__getattr__ = renamed(
    __name__,
    {
        "FilledIn": "FactorPosterior",
        "LinearCodes": "FactorParameters",
        "em_linear_codes": "em_factor_analysis",
        "fill_in": "factor_posterior",
    },
)


class FactorParameters(NamedTuple):
    """Parameters of factor analysis with D features and k latent dimensions."""

    W: Float[Tensor, "features latents"]
    """Loadings; identified up to a rotation of the latents."""
    mu: Float[Tensor, "features"]
    """Means of the columns."""
    psi: Float[Tensor, "features"]
    """Noise variances."""


class FactorPosterior(NamedTuple):
    """Posterior of latents and missing entries given the observed entries and the parameters."""

    latents: Float[Tensor, "rows latents"]
    """``E[z_i | x_i,o]``."""
    latent_covariance: Float[Tensor, "rows latents latents"]
    """``Cov[z_i | x_i,o]``."""
    rows: Float[Tensor, "rows features"]
    """``E[x_i | x_i,o]``."""
    row_covariance: Float[Tensor, "rows features features"]
    """``Cov[x_i | x_i,o]``, zero for observed entries."""
    log_likelihoods: Float[Tensor, "rows"]
    """``log p(x_i,o)`` in nats."""


def factor_posterior(x: Float[Tensor, "rows features"], parameters: FactorParameters) -> FactorPosterior:
    """Compute the posterior of latents and missing entries given the observed entries.

    Parameters
    ----------
    x
        Rows, NaN if missing.
    parameters
        Parameters of the joint distribution.
    """
    D = x.shape[1]
    expected = _expect(x, parameters)
    filled, covariance = expected.completed[:, 0], expected.uncertainty[:, 0]
    return FactorPosterior(
        filled[:, D:], covariance[:, D:, D:], filled[:, :D], covariance[:, :D, :D], expected.log_likelihoods
    )


def ppca(x: Float[Tensor, "rows features"], num_latents: int) -> tuple[FactorParameters, Float[Tensor, ""]]:
    """Maximise the likelihood of probabilistic PCA in closed form (Tipping and Bishop 1999, equations 7 and 8).

    Parameters
    ----------
    x
        Rows without missing entries, float64 for accurate results.
    num_latents
        Number k of latent dimensions, fewer than D.

    Returns
    -------
    parameters : FactorParameters
        Columns of W are orthogonal, in order of decreasing norm; all noise variances are equal.
    log_likelihood : Tensor
        Log-likelihood of all rows in nats, a scalar.

    Raises
    ------
    InputError
        If ``num_latents`` is out of range, or the noise variance would be zero.
    """
    N, D = x.shape
    _check_latents(num_latents, D, fewest=0)
    mu = x.mean(dim=0)
    eigenvalues, U = torch.linalg.eigh((x - mu).T @ (x - mu) / N)
    noise = eigenvalues[: D - num_latents].mean()
    if noise <= torch.finfo(x.dtype).eps * eigenvalues[-1]:
        raise InputError(f"the rows span only {num_latents} dimensions, so the noise variance is zero")
    leading = eigenvalues[D - num_latents :].flip(0)
    W = U[:, D - num_latents :].flip(1) * (leading - noise).sqrt()
    log_determinant = leading.log().sum() + (D - num_latents) * noise.log()
    # tr(C^-1 S) = D at the maximum
    log_likelihood = -0.5 * N * (D * math.log(2 * math.pi) + log_determinant + D)
    return FactorParameters(W, mu, noise.expand(D)), log_likelihood


def em_factor_analysis(
    x: Float[Tensor, "rows features"],
    num_latents: int,
    *,
    shared_noise: bool = False,
    num_starts: int = 1,
    max_iterations: int = 10_000,
    tolerance: float = 1e-9,
    seed: int = 0,
) -> EMResult[FactorParameters]:
    """Fit factor analysis, or probabilistic PCA with missing entries, by EM.

    Parameters
    ----------
    x
        Rows, NaN if missing.
    num_latents
        Number of latent dimensions, fewer than D.
    shared_noise
        Whether all features have the same noise variance, as in probabilistic PCA.
    num_starts
        Number of starts, each from random loadings on the columns' scale and half of their variances as noise.
    max_iterations
        Maximum number of iterations per start.
    tolerance
        Minimum gain of an iteration in nats per row; a smaller gain is convergence.
    seed
        Seed of the generator that draws the loadings.

    Raises
    ------
    InputError
        If ``num_latents`` is not between 1 and D - 1, or every start collapses: the likelihood of factor
        analysis is unbounded if the latents can reproduce a column exactly.
    """
    D = x.shape[1]
    _check_latents(num_latents, D, fewest=1)
    generator = torch.Generator().manual_seed(seed)
    mu = x.nanmean(dim=0)
    variance = (x - mu).square().nanmean(dim=0)

    def start() -> FactorParameters:
        directions = torch.randn(D, num_latents, generator=generator, dtype=x.dtype)
        return FactorParameters((variance / (2 * num_latents)).sqrt()[:, None] * directions, mu, variance / 2)

    def expect(parameters: FactorParameters) -> tuple[Expectations, Tensor]:
        expected = _expect(x, parameters)
        return expected, expected.log_likelihoods.sum()

    return em_from_starts(
        [start() for _ in range(num_starts)],
        expect,
        lambda expected: _regress(expected, D, shared_noise),
        max_iterations=max_iterations,
        tolerance=tolerance * len(x),
    )


def _expect(x: Float[Tensor, "rows features"], parameters: FactorParameters) -> Expectations:
    """Run the E-step on rows extended by their latents as missing entries."""
    W, mu, psi = parameters
    k = W.shape[1]
    top = torch.cat([W @ W.T + torch.diag(psi), W], dim=1)
    Sigma = torch.cat([top, torch.cat([W.T, torch.eye(k, dtype=x.dtype)], dim=1)])
    joint = GaussianMixtureParameters(x.new_ones(1), torch.cat([mu, mu.new_zeros(k)])[None], Sigma[None])
    return e_step_missing(torch.cat([x, x.new_full((len(x), k), torch.nan)], dim=1), joint)


def _regress(expected: Expectations, D: int, shared_noise: bool) -> FactorParameters:
    """Maximise the expected complete-data log-likelihood by regression of rows on latents and a constant."""
    filled = expected.completed[:, 0]
    N = len(filled)
    padded = torch.cat([filled, filled.new_ones(N, 1)], dim=1)
    products = padded.T @ padded
    products[:-1, :-1] += expected.uncertainty[:, 0].sum(dim=0)
    slopes = torch.linalg.solve(products[D:, D:], products[D:, :D]).T
    psi = (products.diagonal()[:D] - (slopes * products[:D, D:]).sum(dim=1)) / N
    return FactorParameters(slopes[:, :-1], slopes[:, -1], psi.mean().expand(D) if shared_noise else psi)


def _check_latents(num_latents: int, D: int, fewest: int) -> None:
    """Raise ``InputError`` unless there are fewer latent dimensions than features."""
    if not fewest <= num_latents < D:
        raise InputError(f"num_latents={num_latents} with {D} features: expected between {fewest} and {D - 1}")
