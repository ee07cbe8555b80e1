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
import xarray as xr
from arviz_stats.utils import ELPDData
from pyro import poutine
from torch import Tensor

from pplgen.compiler.vectorised import map_draws
from pplgen.errors import InputError
from pplgen.inference.stored_draws import StoredDraws
from pplgen.posterior.draws import Draws, draw_posterior, row_densities, shared_densities
from pplgen.posterior.likelihood import latent_densities
from pplgen.posterior.weighted import GOOD_K
from pplgen.story.latent import LatentStory
from pplgen.story.pair import Pair, select_rows

__all__ = ["INNER", "WeightedDraws", "integrated", "leave_one_out", "log_prior", "weighted_draws"]

INNER = 20
"""Draws of the latents of single rows for each draw of what all share, over which these are integrated out."""


@dataclass(frozen=True)
class WeightedDraws:
    """Draws of what all rows share, with latents of single rows integrated out by importance sampling."""

    sites: dict[str, Tensor]
    """Shape ``(num_draws, ...)`` each."""
    log_ratio: Tensor
    """``log p(x, theta) - log q(theta)`` in nats, shape ``(num_draws,)``."""
    log_likelihood: Tensor
    """``log p(x_i | theta)`` in nats of the rows asked for, shape ``(num_draws, num_rows)``."""


def weighted_draws(pair: Pair, num_draws: int, rows: slice | None = None, drawn: Draws | None = None) -> WeightedDraws:
    """Draw what all rows share from the guide, and weigh it; call it inside ``pair.isolated``.

    Draws of a sampler are of the posterior, and weigh alike; densities of rows are those given their own latents.

    Parameters
    ----------
    pair
        With the rows of its fit as data.
    num_draws
        How many.
    rows
        Those whose densities are returned; ``None`` for all.
    drawn
        Scored draws that are at hand, at least so many, for a pair without latents of single rows.

    Raises
    ------
    InputError
        Where the model has no row plate, or the guide draws latents of all rows at once.
    """
    structure = pair.structure
    if reason := structure.why_no_row_densities():
        raise InputError(reason)
    if isinstance(pair.guide, StoredDraws):
        number = pair.guide.at_most(num_draws)
        sites = draw_posterior(pair, number, scored=False).sites
        held = {name: sites[name] for name in structure.latent}
        densities = row_densities(pair, held, number, pair.data).log_likelihood
        return WeightedDraws(sites, torch.zeros(number), densities[:, rows or slice(None)])
    if structure.row_latent:
        sites, log_ratio, densities = integrated(pair, num_draws)
        return WeightedDraws(sites, log_ratio, densities[:, rows or slice(None)])
    drawn = drawn or draw_posterior(pair, num_draws, without=structure.per_row)
    sites = {name: value[:num_draws] for name, value in drawn.sites.items()}
    data = tuple(select_rows(value, rows or slice(None), pair.num_rows) for value in pair.data)
    densities = row_densities(pair, {n: sites[n] for n in structure.shared_latent}, num_draws, data).log_likelihood
    return WeightedDraws(sites, (drawn.lp - drawn.log_q)[:num_draws], densities)


def integrated(pair: Pair, num_draws: int) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Weigh draws of what all rows share with latents of single rows integrated out; inside ``pair.isolated``.

    Returns
    -------
    tuple
        The draws; ``log p(x, theta) - log q(theta)``, zero where nothing is shared, shape ``(num_draws,)``; and
        ``log p(x_i | theta)`` of each row, shape ``(num_draws, num_rows)``. Densities are importance-weighted over
        ``INNER`` draws of the guide, which leaves the weights unbiased.
    """
    shared = bool(pair.structure.shared_latent)
    if not shared and isinstance(pair.story, LatentStory):  # every draw says the same: one stands for all
        blocks = [block.logsumexp(0) - math.log(num_draws) for block in latent_densities(pair, pair.data, num_draws)]
        return {}, torch.zeros(1), torch.cat(blocks)[None]
    sites, log_p, log_q = shared_densities(pair, num_draws) if shared else ({}, torch.zeros(()), torch.zeros(()))
    repeated = {name: value.repeat_interleave(INNER, 0) for name, value in sites.items()}
    each = row_densities(pair, repeated, INNER * num_draws, pair.data).log_likelihood
    densities = each.reshape(num_draws, INNER, -1).logsumexp(1) - math.log(INNER)
    counts = 1.0 if pair.weights is None else pair.weights
    log_ratio = log_p - log_q + (counts * densities).sum(1) if shared else torch.zeros(num_draws)
    return sites, log_ratio, densities


def log_prior(pair: Pair, sites: Mapping[str, Tensor], num_draws: int) -> Tensor:
    """Log prior density of what all rows share in nats, shape ``(num_draws,)``; call it inside ``pair.isolated``."""
    names = pair.structure.shared_latent

    def score(latent: dict[str, Tensor]) -> Tensor:
        trace = poutine.trace(poutine.condition(pair.model, latent)).get_trace(*pair.data)
        return torch.as_tensor(trace.log_prob_sum(lambda name, _: name in names))

    scores: Tensor = map_draws(score, num_draws, {name: sites[name] for name in names})
    return scores


def leave_one_out(weighed: WeightedDraws) -> ELPDData:
    """Estimate how well each row is predicted from the others, by Pareto-smoothed importance sampling.

    Draws are of the guide, not of the posterior, so that those without row i are weighed by
    ``log p(x, theta) - log q(theta) - log p(x_i | theta)``.

    Where the rows share no latent, but parameters that were fitted to all of them, none is left out.

    Returns
    -------
    arviz_stats.utils.ELPDData
        ``elpd`` in nats with its standard error ``se``, effective number of parameters ``p``, and for each row
        ``elpd_i`` and ``pareto_k``.

    References
    ----------
    Magnusson, Riis Andersen, Jonasson and Vehtari (2019), Bayesian leave-one-out cross-validation for large data.
    """
    if not weighed.sites:
        return _nothing_shared(weighed.log_likelihood)
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


def _nothing_shared(densities: Tensor) -> ELPDData:
    """Average densities, ``(num_draws, num_rows)``, that tell nothing of one another."""
    draws, number = densities.shape
    each = (densities.double().logsumexp(0) - math.log(draws)).cpu().numpy()
    pointwise, shapes = (xr.DataArray(values, dims=["row"]) for values in (each, np.zeros(number)))
    error = math.sqrt(number * each.var())
    options: dict[str, Any] = {"approx_posterior": True}
    return ELPDData("loo", each.sum(), error, 0.0, draws, number, "log", False, GOOD_K, pointwise, shapes, **options)


def _array(weighed: WeightedDraws) -> np.ndarray[Any, Any]:
    """Return the log likelihood as ArviZ takes it."""
    return weighed.log_likelihood.double().cpu().numpy()[None]


@contextlib.contextmanager
def _arvizs_own_warnings() -> Iterator[None]:
    """Leave out what the Pareto k of the rows say."""
    with warnings.catch_warnings():
        for message in ("Estimated shape parameter", "The point-wise LOO is the same"):
            warnings.filterwarnings("ignore", message=message)
        yield
