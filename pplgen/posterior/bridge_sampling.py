"""Bridge sampling: the ratio of the normalising constants of two densities from draws of both."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pplgen.posterior.chain_draws import effective_sample_size

__all__ = ["bridge_sampling"]

TOLERANCE = 1e-10
"""Relative change of the estimate at which the iteration ends."""
MAX_ITERATIONS = 1000


def bridge_sampling(of_posterior: Tensor, of_proposal: Tensor, num_chains: int) -> tuple[float, float]:
    """Estimate ``log Z``, Z the integral of an unnormalised density p, from draws of ``p / Z`` and of a proposal q.

    The estimator is Meng and Wong's with the optimal bridge function, iterated to its fixed point; draws of Markov
    chains count by their effective sample size. Its error is Fruehwirth-Schnatter's.

    Parameters
    ----------
    of_posterior
        ``log p - log q`` at draws of the posterior, in nats, shape ``(N_1,)``, chains concatenated.
    of_proposal
        The same at independent draws of q, shape ``(N_2,)``.
    num_chains
        Number of chains of equal length.

    Returns
    -------
    tuple of float
        ``log Z`` and its standard error, in nats; the error is infinite where the draws have no overlap.

    References
    ----------
    Meng and Wong (1996), Simulating ratios of normalizing constants via a simple identity. Fruehwirth-Schnatter (2004),
    Estimating marginal likelihoods for mixture and Markov switching models using bridge sampling techniques. Gronau,
    Singmann and Wagenmakers (2020), bridgesampling: an R package for estimating normalizing constants.
    """
    shift = of_posterior.double().median()
    first, second = (log_ratio.double() - shift for log_ratio in (of_posterior, of_proposal))
    size = float(effective_sample_size(first[:, None], num_chains).nan_to_num(float(len(first))))
    log_s1, log_s2 = (math.log(number / (size + len(second))) for number in (size, len(second)))
    log_ratio = 0.0

    def terms(log_ratio: float) -> tuple[Tensor, Tensor]:
        """Log of ``p / (s1 p + s2 r q)`` at draws of q, and of ``q / (s1 p + s2 r q)`` at those of p."""
        offset = torch.tensor(log_s2 + log_ratio, dtype=torch.float64)
        above = second - torch.logaddexp(log_s1 + second, offset)
        return above.nan_to_num(-math.inf), -torch.logaddexp(log_s1 + first, offset)

    for _ in range(MAX_ITERATIONS):
        above, below = terms(log_ratio)
        updated = float(above.logsumexp(0) - math.log(len(above)) - below.logsumexp(0) + math.log(len(below)))
        if not math.isfinite(updated):
            return -math.inf, math.inf
        done = abs(updated - log_ratio) <= TOLERANCE
        log_ratio = updated
        if done:
            break
    above, below = ((each - each.max()).exp() for each in terms(log_ratio))
    number = float(effective_sample_size(below[:, None], num_chains).nan_to_num(1.0))
    variance = above.var() / above.mean().square() / len(above) + below.var() / below.mean().square() / number
    return float(shift) + log_ratio, math.sqrt(float(variance))
