"""Point estimates: constants of a model that are fitted to the rows, and latents at which the guide is a point mass."""

from __future__ import annotations

import pyro
import torch
from pyro import poutine
from pyro.distributions import Bernoulli, Delta
from torch import Tensor

from pplgen.errors import InputError
from pplgen.inference.empirical_guide import StoredDraws
from pplgen.posterior.model_traces import model_trace
from pplgen.story.isolation import seeded
from pplgen.story.pair import Pair
from pplgen.story.structure import unwrap

__all__ = ["fitted_constants", "point_latents", "require_densities"]


def fitted_constants(pair: Pair) -> dict[str, Tensor]:
    """Return the unconstrained parameters on which log p(x, latents) depends, by name; those of the guide are left out.

    They are point estimates that maximise the ELBO: a density of the rows that they were fitted to is not one of new
    rows. Call it inside ``pair.isolated``.
    """
    parameters = dict(pyro.get_param_store().named_parameters())
    if not parameters:
        return {}
    with seeded(0), torch.enable_grad(), pyro.validation_enabled(False):
        with torch.no_grad():
            guide = poutine.trace(pair.guide).get_trace(*pair.data)
        model = poutine.trace(poutine.replay(pair.model, guide)).get_trace(*pair.data)
        density = model.log_prob_sum()
        if not (isinstance(density, Tensor) and density.requires_grad):
            return {}
        gradients = torch.autograd.grad(density, list(parameters.values()), allow_unused=True)
    used = zip(parameters.items(), gradients, strict=True)
    return {name: value.detach() for (name, value), gradient in used if gradient is not None}


def point_latents(pair: Pair) -> list[str]:
    """Return the latents at which the guide is a point mass: their posterior has no density.

    An automatic guide that transforms draws of auxiliary sites has none. Call it inside ``pair.isolated``.
    """
    if isinstance(pair.guide, StoredDraws):
        return []
    with seeded(0), torch.no_grad(), pyro.validation_enabled(False):
        trace = poutine.util.prune_subsample_sites(poutine.trace(pair.guide).get_trace(*pair.data))
    nodes = trace.nodes
    if set(trace.stochastic_nodes) - set(pair.structure.latent):
        return []
    names = [name for name in pair.structure.latent if name in nodes]
    return [name for name in names if isinstance(unwrap(nodes[name]["fn"]), Delta)]


def require_densities(pair: Pair, verb: str) -> None:
    """Raise ``InputError`` where rows have no density: a point mass for a latent, or Bernoulli grey values.

    ``x log p + (1 - x) log(1 - p)`` of x between 0 and 1 is a cross-entropy, and no density of x. Call it inside
    ``pair.isolated``.
    """
    if points := [name for name in point_latents(pair) if name in pair.structure.row_latent]:
        raise InputError(f"{verb}: the guide is a point mass at {points[0]!r} of each row, which gives rows no density")
    nodes = model_trace(pair).nodes
    for name in pair.structure.observed:
        value = nodes[name]["value"]
        fn = unwrap(nodes[name]["fn"])
        if isinstance(getattr(fn, "columns", fn), Bernoulli) and bool(((value > 0) & (value < 1)).any()):
            raise InputError(
                f"{verb}: {name!r} has grey values between 0 and 1, of which a Bernoulli likelihood is a cross-entropy "
                "and no density; use ContinuousBernoulli, or likelihood='continuous-bernoulli' of a story"
            )
