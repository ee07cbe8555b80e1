"""Log densities of rows, with their estimator and Monte Carlo error."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pyro
import torch
from torch import Tensor

from pplgen.inference.empirical_guide import StoredDraws
from pplgen.posterior.chain_draws import ChainDraws, effective_sample_size
from pplgen.posterior.draws import row_densities
from pplgen.posterior.latent_variables import is_encoded, log_weights, row_blocks
from pplgen.story.latent import LatentStory
from pplgen.story.pair import Pair

__all__ = ["EXACT", "IMPORTANCE", "LogLikelihood", "density_estimator", "latent_densities", "row_log_likelihood"]

EXACT, IMPORTANCE = "exact", "importance-weighted"
"""Names of the estimators of row densities."""
BLOCK_NUMBERS = 2**24
"""Largest number of values computed for a block of rows with latent variables: 64 MiB."""


class LogLikelihood(Tensor):
    """Log density of each row in nats, shape ``(num_rows,)``, with its estimator and standard error.

    Results of torch operations on it are plain tensors.

    Attributes
    ----------
    estimator : str
        ``exact``: all but the parameters is summed or integrated out; ``importance-weighted``: per-row latents are
        drawn from the guide; ``Gaussian sum smoother``: importance-weighted, with regimes and states drawn from sums of
        Gaussians; ``Kim's filter``: an approximation; ``particle filter``.
    standard_error : Tensor
        Monte Carlo standard error of each row in nats, by the delta method, shape ``(num_rows,)``.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    estimator: str
    standard_error: Tensor

    @classmethod
    def from_draws(cls, log_densities: Tensor, estimator: str, num_chains: int | None = None) -> LogLikelihood:
        """Average densities over draws, shape ``(num_draws, num_rows)``.

        Draws are independent, or those of ``num_chains`` Markov chains, concatenated: their number is then replaced by
        the effective sample size of each row's densities (Vehtari et al. 2021, https://doi.org/10.1214/20-BA1221), and
        the error is NaN for chains of fewer than four draws.
        """
        top = log_densities.amax(dim=0)
        top = torch.where(top.isfinite(), top, 0.0)  # zero density at every draw
        relative = (log_densities - top).exp()
        mean = relative.mean(dim=0)
        error = torch.zeros_like(mean)
        if len(relative) > 1:
            number = effective_sample_size(relative, num_chains)
            error = relative.std(dim=0) / (mean.clamp_min(torch.finfo(mean.dtype).tiny) * number.sqrt())
        elif estimator != "exact":
            error = torch.full_like(mean, math.nan)
        return cls.with_error(top + mean.log(), error, estimator)

    @classmethod
    def with_error(cls, values: Tensor, standard_error: Tensor, estimator: str) -> LogLikelihood:
        """Attach standard errors and the estimator's name to log densities."""
        result = values.detach().as_subclass(cls)
        result.standard_error, result.estimator = standard_error, estimator
        return result

    @classmethod
    def concatenate(cls, parts: Sequence[LogLikelihood]) -> LogLikelihood:
        """Concatenate along the rows."""
        errors = torch.cat([part.standard_error for part in parts])
        return cls.with_error(torch.cat([part.as_subclass(Tensor) for part in parts]), errors, parts[0].estimator)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        error = self.standard_error.max().item() if len(self) else 0.0
        return f"LogLikelihood({self.as_subclass(Tensor)!r}, {self.estimator}, standard errors up to {error:.2g} nats)"


def density_estimator(pair: Pair) -> str:
    """Return the estimator of a pair's row densities: importance-weighted if rows have latents, else exact.

    Densities at a sampler's draws are exact: they are conditional on the latents of rows.
    """
    return IMPORTANCE if pair.structure.row_latent and not isinstance(pair.guide, StoredDraws) else EXACT


def row_log_likelihood(pair: Pair, data: tuple[Any, ...], drawn: ChainDraws) -> LogLikelihood:
    """Posterior predictive log density of each row of ``data`` in nats, ``log mean_s p(x_i | theta_s)``.

    Call it inside ``pair.isolated``.

    Parameters
    ----------
    pair, data
        A pair, and arguments of its model.
    drawn
        Draws at which the densities are averaged.
    """
    latents, number, num_chains = drawn
    estimator = density_estimator(pair)
    if data is not pair.data:
        pair.check_amortised()
    if isinstance(pair.story, LatentStory):
        blocks = latent_densities(pair, data, number, latents)
        return LogLikelihood.concatenate([LogLikelihood.from_draws(block, estimator, num_chains) for block in blocks])
    return LogLikelihood.from_draws(row_densities(pair, latents, number, data).log_likelihood, estimator, num_chains)


def latent_densities(
    pair: Pair, data: tuple[Any, ...], draws: int, latents: dict[str, Tensor] | None = None
) -> Iterator[Tensor]:
    """Log importance weights of a latent-variable story's rows in blocks; call it inside ``pair.isolated``.

    Yields
    ------
    Tensor
        ``log p(x_i, z_is) - log q(z_is | x_i)`` in nats, discrete latents summed out, shape ``(draws, block)``.
    """
    story, x = pair.story, data[0]
    assert isinstance(story, LatentStory), "only they have latent variables"
    if is_encoded(pair):
        with torch.no_grad(), pyro.validation_enabled(False):
            yield from log_weights(story, x, draws)
        return
    for block in row_blocks(len(x), BLOCK_NUMBERS // (draws * (1 + story.num_latents))):
        rows = pair.structure.row_axes.select(data, block)
        yield row_densities(pair, latents or {}, draws, rows).log_likelihood
