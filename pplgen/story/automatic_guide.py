"""The guide of a model that comes without one: mean-field normal, from the best of several initial points."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import ImproperUniform
from pyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoNormal, init_to_sample, init_to_uniform
from pyro.infer.autoguide.initialization import InitMessenger
from torch import Tensor
from torch.distributions import transform_to

from pplgen.errors import InputError
from pplgen.story.read_only import ReadOnly
from pplgen.story.structure import sample_sites, unwrap, vectorised_plates

__all__ = ["with_automatic_guide"]

NUM_STARTS = 8
"""Initial points, half of them from the prior, half uniform in (-2, 2) on the unconstrained scale."""


def with_automatic_guide(
    model: Callable[..., Any], data: tuple[Any, ...]
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Enumerate the model's discrete latents, and make a mean-field normal guide for the others.

    Of ``NUM_STARTS`` random initial points the guide starts at that with the best ELBO: a single one may lead to a
    minor mode. Restarts differ, because each has its own points.
    """
    with ReadOnly(data):
        trace = poutine.trace(InitMessenger(_from_prior)(model)).get_trace(*data)
    sites = sample_sites(trace)
    latent = {name: node["fn"] for name, node in sites.items() if not node["is_observed"]}
    discrete = [name for name, fn in latent.items() if not fn.has_rsample and fn.support.is_discrete]
    for name in discrete:
        if not latent[name].has_enumerate_support:
            kind = type(latent[name]).__name__
            raise InputError(f"latent site {name!r} is {kind}, which cannot be enumerated; give a guide for it")
    if discrete:
        model = config_enumerate(model, default="parallel")
    if len(discrete) == len(latent):
        raise InputError("the model has no continuous latent site to fit; give a guide")
    _, depth = vectorised_plates(sites.values())
    elbo = TraceEnum_ELBO(max_plate_nesting=depth) if discrete else Trace_ELBO(max_plate_nesting=depth)
    continuous = poutine.block(model, hide=discrete)
    guides = [AutoNormal(continuous, init_loc_fn=(_uniform, _from_prior)[i % 2]) for i in range(NUM_STARTS)]
    losses = [_loss(elbo, model, guide, data) for guide in guides]
    best = min(losses)
    return model, guides[losses.index(best)] if best < math.inf else AutoNormal(continuous, init_loc_fn=_uniform)


def _uniform(site: Any) -> Tensor:
    """Draw uniformly in (-2, 2) on the unconstrained scale; ``init_to_uniform`` of Pyro needs a prior that draws."""
    fn = site["fn"]
    if not isinstance(unwrap(fn), ImproperUniform):
        return init_to_uniform(site)
    transform = transform_to(fn.support)
    return transform(4 * torch.rand(transform.inverse_shape(fn.shape())) - 2)


def _from_prior(site: Any) -> Tensor:
    """Draw from the prior, if it is proper."""
    return _uniform(site) if isinstance(unwrap(site["fn"]), ImproperUniform) else init_to_sample(site)


@torch.no_grad()
def _loss(elbo: ELBO, model: Callable[..., Any], guide: AutoNormal, data: tuple[Any, ...]) -> float:
    """Evaluate the loss at the initial parameters, in nats; infinity where the model cannot be evaluated."""
    with pyro.get_param_store().scope(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            loss = float(elbo.loss(model, guide, *data))
        except (ValueError, RuntimeError):
            return math.inf
    return loss if math.isfinite(loss) else math.inf
