"""Log densities of every observed site at draws of the latents, with the plates of the site as named dimensions."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any

from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pplgen.compiler.vectorisation import map_draws
from pplgen.errors import DataWarning, first_line
from pplgen.posterior.model_traces import enumerated_trace, model_trace
from pplgen.story.marginalisation import sum_out
from pplgen.story.pair import Pair
from pplgen.story.structure import plates_of_site

__all__ = ["observed_densities", "plate_names"]


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
        Log densities by site, shape ``(num_draws, *plates)``, dimensions as by ``plate_names``.
    """
    plates = _plates(pair)
    if pair.structure.enumerates:
        for name in [name for name, frames in plates.items() if not frames]:
            _warn(name, "it depends on an enumerated site that is in none of its plates")
            del plates[name]
    try:
        return map_draws(partial(_densities, pair, plates), num_draws, latents) if plates else {}
    except (ValueError, NotImplementedError, RuntimeError) as error:
        for name in plates:
            _warn(name, first_line(error))
        return {}


def plate_names(pair: Pair) -> dict[str, list[str]]:
    """Names of the dimensions of each site's log densities: its plates from left to right, the row plate as ``row``."""
    row = pair.structure.row_plate
    return {
        name: ["row" if frame.name == row else frame.name for frame in frames] for name, frames in _plates(pair).items()
    }


def _plates(pair: Pair) -> dict[str, list[Any]]:
    """Plates of each observed site over which its entries are independent: those of every enumerated site too."""
    nodes = model_trace(pair).nodes
    enumerated = [plates_of_site(nodes[name]) for name in pair.structure.enumerated]
    found = {}
    for name in pair.structure.observed:
        frames = plates_of_site(nodes[name])
        kept = set(frames).intersection(*enumerated)
        found[name] = sorted((frames[each] for each in kept), key=lambda frame: frame.dim)
    return found


def _densities(pair: Pair, plates: dict[str, list[Any]], latent: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the log densities of sites at one draw, with the dimensions of their plates."""
    trace, found = enumerated_trace(pair, latent, pair.data), {}
    for name, frames in plates.items():
        if pair.structure.enumerates:
            symbols = [trace.plate_to_symbol[frame.name] for frame in frames[1:]]
            found[name] = sum_out(trace, [name, *pair.structure.enumerated], frames[0].name, "".join(symbols))
        else:
            node, sizes = trace.nodes[name], {frame.dim: frame.size for frame in frames}
            log_prob = scale_and_mask(node["unscaled_log_prob"], mask=node["mask"])
            found[name] = log_prob.expand([sizes.get(dim, 1) for dim in range(min(sizes, default=0), 0)])
        found[name] = found[name].reshape([frame.size for frame in frames])
    return found


def _warn(name: str, reason: str) -> None:
    message = f"log_likelihood of {name!r} is left out: it has no density per row: {reason}"
    warnings.warn(message, DataWarning, stacklevel=6)
