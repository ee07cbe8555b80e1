"""Draws of what all rows share, weighed against the posterior; leaving out one row at a time."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import arviz_base
import arviz_stats
import numpy as np
import torch
from arviz_stats.utils import ELPDData
from pyro import poutine
from torch import Tensor

from pplgen.draws import draw_posterior, over_draws, row_densities, shared_densities
from pplgen.errors import InputError
from pplgen.pair import Pair, rows_of

__all__ = ["Weighed", "leave_one_out", "log_prior", "weigh"]

INNER = 20
"""Draws of the latents of single rows for each draw of what all share, over which these are integrated out."""


@dataclass(frozen=True)
class Weighed:
    """Draws of what all rows share, with latents of single rows integrated out by importance sampling."""

    sites: dict[str, Tensor]
    """Shape ``(num_draws, ...)`` each."""
    log_ratio: Tensor
    """``log p(x, theta) - log q(theta)`` in nats, shape ``(num_draws,)``."""
    log_likelihood: Tensor
    """``log p(x_i | theta)`` in nats of the rows asked for, shape ``(num_draws, num_rows)``."""


def weigh(pair: Pair, num_draws: int, rows: slice | None = None) -> Weighed:
    """Draw what all rows share from the guide, and weigh it; call it inside ``pair.isolated``.

    Parameters
    ----------
    pair
        With the rows of its fit as data.
    num_draws
        How many.
    rows
        Those whose densities are returned; ``None`` for all.

    Raises
    ------
    InputError
        Where the model has no row plate, or the guide draws latents of all rows at once.
    """
    structure = pair.structure
    if reason := structure.why_no_rows():
        raise InputError(reason)
    if not structure.row_latent:
        drawn = draw_posterior(pair, num_draws)
        sites = drawn.named(structure.shared_latent + structure.deterministic)
        data = tuple(rows_of(value, rows or slice(None), pair.num_rows) for value in pair.data)
        shared = drawn.named(structure.shared_latent)
        return Weighed(sites, drawn.lp - drawn.log_q, row_densities(pair, shared, num_draws, data).log_likelihood)
    if structure.shared_latent:
        sites, log_p, log_q = shared_densities(pair, num_draws)
        log_ratio = log_p - log_q
    else:
        sites, log_ratio = {}, torch.zeros(num_draws)
    total: Tensor | None = None
    for _ in range(INNER):
        density = row_densities(pair, sites, num_draws, pair.data).log_likelihood
        total = density if total is None else torch.logaddexp(total, density)
    assert total is not None, "there is an inner draw"
    if total.isnan().all():
        raise InputError(f"the guide draws {structure.row_latent[0]!r} of all rows at once, so rows have no densities")
    densities = total - math.log(INNER)
    counts = 1.0 if pair.weights is None else pair.weights
    if structure.shared_latent:
        log_ratio = log_ratio + (counts * densities).sum(1)
    return Weighed(sites, log_ratio, densities[:, rows or slice(None)])


def log_prior(pair: Pair, sites: Mapping[str, Tensor], num_draws: int) -> Tensor:
    """Log prior density of what all rows share in nats, shape ``(num_draws,)``; call it inside ``pair.isolated``."""
    names = pair.structure.shared_latent

    def score(latent: dict[str, Tensor]) -> Tensor:
        trace = poutine.trace(poutine.condition(pair.model, latent)).get_trace(*pair.data)
        return torch.as_tensor(trace.log_prob_sum(lambda name, _: name in names))

    scores: Tensor = over_draws(score, num_draws, {name: sites[name] for name in names})
    return scores


def leave_one_out(weighed: Weighed) -> ELPDData:
    """Estimate how well each row is predicted from the others, by Pareto-smoothed importance sampling.

    Draws are of the guide, not of the posterior, so that those without row i are weighed by
    ``log p(x, theta) - log q(theta) - log p(x_i | theta)``.

    Returns
    -------
    arviz_stats.utils.ELPDData
        ``elpd`` in nats with its standard error ``se``, effective number of parameters ``p``, and for each row
        ``elpd_i`` and ``pareto_k``.

    References
    ----------
    Magnusson, Riis Andersen, Jonasson and Vehtari (2019), Bayesian leave-one-out cross-validation for large data.
    """
    number = weighed.log_likelihood.shape[1]
    tree = arviz_base.from_dict(
        {"posterior": {"theta": np.zeros((1, len(weighed.log_ratio)))}, "log_likelihood": {"x": _array(weighed)}},
        dims={"x": ["row"]},
        coords={"row": range(number)},
    )
    ratio = weighed.log_ratio.double().cpu().numpy()
    with _arvizs_own_warnings():
        return arviz_stats.loo_approximate_posterior(
            tree, log_p=ratio - ratio.max(), log_q=np.zeros_like(ratio), pointwise=True
        )


def _array(weighed: Weighed) -> np.ndarray[Any, Any]:
    """Return the log likelihood as ArviZ takes it."""
    return weighed.log_likelihood.double().cpu().numpy()[None]


@contextlib.contextmanager
def _arvizs_own_warnings() -> Iterator[None]:
    """Leave out what the Pareto k of the rows say."""
    with warnings.catch_warnings():
        for message in ("Estimated shape parameter", "The point-wise LOO is the same"):
            warnings.filterwarnings("ignore", message=message)
        yield
