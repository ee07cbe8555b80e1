"""Log densities of every observed site at draws of the latents, with the plates of the site as named dimensions."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pplgen.compiler.vectorisation import map_draws
from pplgen.errors import DataWarning, first_line
from pplgen.story.marginalisation import sum_out
from pplgen.story.pair import Pair

__all__ = ["model_trace", "observed_densities", "plates_of"]


def observed_densities(pair: Pair, latents: Mapping[str, Tensor], num_draws: int) -> dict[str, Tensor]:
    """Compute log densities of each observed site in nats; call it inside ``pair.isolated``.

    Enumerated latents are summed out of each site's density separately, so that densities of several sites that share
    one do not add up to their joint density. A site that has no density per entry of its plates is left out, with a
    ``DataWarning``.

    Parameters
    ----------
    pair
        The pair.
    latents
        Draws of all of its latents, shape ``(num_draws, ...)`` each.
    num_draws
        Number of draws.

    Returns
    -------
    dict
        Log densities by site, shape ``(num_draws, *plates)``, dimensions as by ``plates_of``.
    """
    found: dict[str, Tensor] = {}
    for name in pair.structure.observed:
        try:
            found[name] = map_draws(partial(_density, pair, name), num_draws, latents)
        except (ValueError, NotImplementedError, RuntimeError) as error:
            message = f"log_likelihood of {name!r} is left out: it has no density per row: {first_line(error)}"
            warnings.warn(message, DataWarning, stacklevel=5)
    return found


def plates_of(pair: Pair, name: str) -> list[str]:
    """Names of the dimensions of a site's log densities: its plates from left to right, the row plate as ``row``."""
    names = [frame.name for frame in _kept(pair, model_trace(pair), name)]
    return ["row" if each == pair.structure.row_plate else each for each in names]


@torch.no_grad()
def model_trace(pair: Pair) -> Any:
    """Trace the model at one draw of the guide, without validation; call it inside ``pair.isolated``."""
    with pyro.validation_enabled(False):
        drawn = poutine.trace(pair.guide).get_trace(*pair.data)
        return poutine.trace(poutine.replay(pair.model, drawn)).get_trace(*pair.data)


def _trace(pair: Pair, latent: Mapping[str, Tensor]) -> Any:
    """Trace the model at one draw of the latents, its discrete ones enumerated."""
    conditioned = poutine.condition(pair.model, dict(latent))
    trace = poutine.trace(poutine.enum(conditioned, first_available_dim=-1 - pair.structure.plate_depth))
    return trace.get_trace(*pair.data)


def _kept(pair: Pair, trace: Any, name: str) -> list[Any]:
    """Plates of a site over which its entries are independent given the latents: those of every enumerated site too."""
    plates = {each: _plates(trace.nodes[each]) for each in (name, *pair.structure.enumerated)}
    shared = set(plates[name]).intersection(*map(set, plates.values()))
    return sorted((plates[name][each] for each in shared), key=lambda frame: frame.dim)


def _plates(node: Any) -> dict[str, Any]:
    """Vectorised plates of a site by name."""
    return {frame.name: frame for frame in node["cond_indep_stack"] if frame.vectorized}


def _density(pair: Pair, name: str, latent: Mapping[str, Tensor]) -> Tensor:
    """Return the log density of a site at one draw, with the dimensions of its kept plates."""
    trace = _trace(pair, latent)
    trace.compute_log_prob()
    frames, node = _kept(pair, trace, name), trace.nodes[name]
    if not pair.structure.enumerated:
        log_prob = scale_and_mask(node["unscaled_log_prob"], mask=node["mask"])
        sizes = {frame.dim: frame.size for frame in frames}
        depth = max((-dim for dim in sizes), default=0)
        return log_prob.expand([sizes.get(dim, 1) for dim in range(-depth, 0)]).reshape([f.size for f in frames])
    if not frames:
        raise ValueError("it depends on an enumerated site that is in none of its plates")
    trace.pack_tensors()
    symbols = [trace.plate_to_symbol[frame.name] for frame in frames[1:]]
    summed = sum_out(trace, [name, *pair.structure.enumerated], frames[0].name, "".join(symbols))
    return summed.reshape([frame.size for frame in frames])
