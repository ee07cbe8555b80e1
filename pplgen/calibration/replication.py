"""Posterior calibration: parameters from a fit's posterior, rows simulated at them, and these joined to the fit's rows.

If theta is a draw from p(theta | x) and x' one from p(x' | theta), theta is also a draw from p(theta | x', x), so that
its rank among draws of a fit to x' and x together is uniform if both posteriors are right. A posterior draw serves as
truth wherever the prior is too wide to simulate plausible data from, and calibrates the fit near the data at hand.

References
----------
Säilynoja, Schmitt, Bürkner and Vehtari (2025), Posterior SBC: simulation-based calibration checking conditional on
data, https://arxiv.org/abs/2502.03279.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pplgen.calibration.fixed_priors import fix_priors
from pplgen.calibration.simulation import Simulated, observed_sites
from pplgen.compiler.vectorisation import map_draws
from pplgen.errors import InputError
from pplgen.inference.empirical_guide import StoredDraws
from pplgen.inference.log_joint import latent_sites
from pplgen.posterior.draws import draw_posterior
from pplgen.posterior.psis import k_limit, smoothed_weights
from pplgen.story.conditioning import unconditioned
from pplgen.story.pair import Pair

__all__ = ["replicated_datasets", "untrained_copy"]

CANDIDATES = 10
"""Draws of the guide per draw of the posterior, among which importance resampling chooses."""


def untrained_copy(pair: Pair, data: tuple[Any, ...]) -> Pair:
    """Return a pair of a fit's model and guide on other data, with the same priors; a story's is initialised."""
    if pair.story is not None:
        return Pair.of_story(fix_priors(pair.story), data[0])
    return Pair(pair.model, pair.guide, data)


@torch.no_grad()
def replicated_datasets(pair: Pair, num_datasets: int, num_rows: int | None) -> Simulated:
    """Draw latents from the posterior, and rows given each draw, which precede the fit's rows in each data set.

    Draws of the guide are importance-resampled to the posterior where their Pareto k allows it. Call it inside
    ``pair.isolated``.

    Parameters
    ----------
    pair
        A trained pair.
    num_datasets
        Number of data sets.
    num_rows
        Number of simulated rows of a story's data set; ``None`` for as many as the fit has. A bare model simulates its
        observed arguments, with the other arguments repeated.

    Raises
    ------
    InputError
        If rows cannot be joined: a stream, labels or weights of rows, or a bare model with latents of rows.
    """
    _check(pair)
    draws = _posterior_draws(pair, num_datasets)
    sites = latent_sites(pair, pair.structure.latent)
    shared = {name: draws[name] for name in pair.structure.shared_latent}
    count = pair.structure.row_axes.count(pair.data) if num_rows is None else num_rows
    indices = {} if pair.story else observed_sites(poutine.trace(pair.model).get_trace(*pair.data), pair.data)

    def simulate(given: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        if pair.story is not None:
            trace = poutine.trace(poutine.condition(pair.story.model, given)).get_trace(None, num_rows=count)
            observed = {"0": trace.nodes["_RETURN"]["value"]}
        else:
            trace = poutine.trace(poutine.condition(unconditioned(pair.model), given)).get_trace(*pair.data)
            observed = {index: trace.nodes[name]["value"] for index, name in indices.items()}
        return {name: trace.nodes[name]["value"] for name in pair.structure.row_latent}, observed

    rows, observed = map_draws(simulate, num_datasets, shared)
    latents = dict(shared)
    for name in pair.structure.row_latent:
        axis = sites[name].axis_of(pair.structure.row_plate)
        latents[name] = torch.cat([rows[name], draws[name]], draws[name].ndim if axis is None else axis)
    datasets = []
    for s in range(num_datasets):
        new = [observed[str(i)][s] if str(i) in observed else value for i, value in enumerate(pair.data)]
        axes = pair.structure.row_axes.axes
        joined = [
            a if axis is None else torch.cat([a, b], axis) for a, b, axis in zip(new, pair.data, axes, strict=True)
        ]
        datasets.append(tuple(joined))
    return latents, datasets


def _posterior_draws(pair: Pair, num_draws: int) -> dict[str, Tensor]:
    """Draw from the guide, importance-resampled where the weights can be trusted; or from stored draws."""
    if isinstance(pair.guide, StoredDraws):
        return draw_posterior(pair, num_draws, scored=False).sites
    draws = draw_posterior(pair, CANDIDATES * num_draws)
    weights, k = smoothed_weights(draws.lp - draws.log_q)
    chosen = torch.arange(num_draws)
    if float(k) <= k_limit(len(weights)):
        chosen = torch.multinomial(weights, num_draws, replacement=True)
    return {name: value[chosen] for name, value in draws.sites.items()}


def _check(pair: Pair) -> None:
    """Raise ``InputError`` for a pair whose rows cannot be joined to simulated ones."""
    if pair.source is not None:
        raise InputError("calibrate: the rows of this fit are a stream; expected a fit to rows in memory")
    if len(pair.data) > pair.num_arguments:
        raise InputError("calibrate: the rows of this fit have labels or weights, which simulated rows do not have")
    if pair.structure.row_plate is None or all(axis is None for axis in pair.structure.row_axes.axes):
        raise InputError("calibrate: simulated rows are joined to the fit's; expected a model with a plate of rows")
    if pair.story is None and (pair.structure.row_latent or isinstance(pair.guide, StoredDraws)):
        raise InputError("calibrate: a bare pair is refitted to more rows; expected a guide of latents that rows share")
