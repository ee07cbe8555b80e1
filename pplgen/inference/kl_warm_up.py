"""KL warm-up: a weight on the KL terms of latents, which rises to one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pplgen.errors import InputError
from pplgen.story.isolation import Wrapped
from pplgen.story.latent import LatentStory
from pplgen.story.pair import Pair

__all__ = ["weigh_kl"]


def weigh_kl(pair: Pair, warm_up: int | Mapping[str, int]) -> None:
    """Multiply the KL terms of some latents of a pair by a weight, ``kl_weight``, which is 1 until it is changed.

    Parameters
    ----------
    pair
        The pair, which is changed.
    warm_up
        Steps of KL warm-up by the name of the latent, or of all latents of the rows of a ``LatentStory``.

    Raises
    ------
    InputError
        If a name is not of a latent, the guide draws it together with others, or no names are given for another pair.
    """
    structure = pair.structure
    known = (*structure.latent, *structure.enumerated)
    if isinstance(warm_up, Mapping):
        latents = list(warm_up)
    elif isinstance(pair.story, LatentStory):
        latents = [name for name in known if name in structure.per_row]
    else:
        name = type(pair.story).__name__ if pair.story else "a bare pair"
        raise InputError(
            f"warm_up={warm_up}: {name} does not say which KL terms to warm up; expected a LatentStory, or the names "
            f"of latents, such as warm_up={{'z': {warm_up}}}"
        )
    with pair.isolated(), torch.no_grad():
        trace = poutine.trace(pair.guide).get_trace(*pair.data)
    sites = _sites_of(latents, known, trace.stochastic_nodes)
    device = next((value.device for value in pair.data if isinstance(value, Tensor)), None)
    weight = torch.ones((), dtype=pair.dtype, device=device)
    pair.model, pair.guide = (_WeightedSites(part, sites, weight) for part in (pair.model, pair.guide))
    pair.kl_weight = weight


class _WeightedSites(Wrapped):
    """A model or guide with the log densities of some sites multiplied by a weight.

    Parameters
    ----------
    function
        Model or guide.
    sites
        Names of the sites.
    weight
        The weight, a scalar tensor that may change between calls.
    """

    def __init__(self, function: Callable[..., Any], sites: frozenset[str], weight: Tensor) -> None:
        super().__init__(function)
        self.sites, self.weight = sites, weight

    def __call__(self, *data: Any) -> Any:
        """Call the function."""
        with _Weights(self.sites, self.weight):
            return self.function(*data)


class _Weights(Messenger):
    """Multiplies the scale of some sites."""

    def __init__(self, sites: frozenset[str], weight: Tensor) -> None:
        super().__init__()
        self.sites, self.weight = sites, weight

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.sites:
            msg["scale"] = msg["scale"] * self.weight


def _sites_of(given: Sequence[str], latent: Sequence[str], guide_sites: Sequence[str]) -> frozenset[str]:
    """Return the sites of model and guide in which the KL terms of some latents are.

    Parameters
    ----------
    given
        Names of the latents.
    latent
        Names of all latents, of the guide or summed out.
    guide_sites
        Names of all sites of the guide: an automatic guide also has sites on the unconstrained scale.

    Raises
    ------
    InputError
        If a name is not of a latent, or the guide draws it together with others.
    """
    if unknown := [name for name in given if name not in latent]:
        raise InputError(f"warm_up: {unknown[0]!r} is not a latent; expected among {list(latent)}")
    auxiliary = set(guide_sites) - set(latent)
    own = {f"{name}_unconstrained" for name in latent}
    if auxiliary - own and set(given) != set(latent):
        raise InputError(
            f"warm_up: the guide draws {given[0]!r} together with other latents, at site {min(auxiliary - own)!r}; "
            "name all of them, or give a guide that draws them separately"
        )
    chosen = auxiliary if set(given) == set(latent) else {f"{name}_unconstrained" for name in given}
    return frozenset({*given, *chosen})
