"""The last phase of a fit: whether the ELBO over fixed draws applies to a pair, and its objective."""

from __future__ import annotations

import contextlib

import pyro
from torch import Tensor, nn

from pplgen.compiler.base_draws import NotReparameterised
from pplgen.compiler.guide_score import trace_guide_score
from pplgen.inference.engine import Engine
from pplgen.inference.fixed_draws_elbo import FixedDrawsELBO
from pplgen.inference.training_options import Batching, TrainingOptions
from pplgen.story.isolation import modules_of, seeded
from pplgen.story.pair import Pair

__all__ = ["fixed_draws_elbo", "may_use_fixed_draws"]

MAX_PARAMETERS = 5000
"""Maximum number of parameters; of networks there are usually more, and a stationary point is not the aim."""
MAX_BASE_DRAWS = 2**18
"""Maximum number of random numbers of one evaluation."""
NETWORK_LAYERS = (nn.Linear, nn.Bilinear, nn.Embedding, nn.RNNBase, nn.modules.conv._ConvNd)
DERIVATIVE_ERROR = 1e-3
"""Largest accepted relative difference between a gradient and a finite difference of the loss."""


def fixed_draws_elbo(
    pair: Pair, engine: Engine, options: TrainingOptions, vectors: Tensor, seed: int
) -> FixedDrawsELBO | None:
    """Return the ELBO over fixed draws if it applies to a pair, ``None`` if not; on ranks, the same on all.

    It needs all rows in every step, no networks, at most ``MAX_PARAMETERS`` parameters, and draws that are all
    reparameterised: the gradient must be the derivative of the loss at fixed draws, which is tried at ``vectors``.
    """
    elbo = None
    if not options.optimiser.alone and may_use_fixed_draws(pair, options.batching):
        with pair.isolated(), seeded(seed), contextlib.suppress(NotReparameterised):
            score = trace_guide_score(pair, engine.graph, pair.data)
            elbo = _verified(FixedDrawsELBO.of_engine(engine, score, seed), vectors)
    return elbo if all(options.ranks.all_gather(elbo is not None)) else None


def may_use_fixed_draws(pair: Pair, batching: Batching) -> bool:
    """Whether every step uses all rows, and the parameters are few and not those of networks."""
    if not batching.is_constant(pair):
        return False
    with pair.isolated():
        parameters = pyro.get_param_store().named_parameters()
        return sum(value.numel() for _, value in parameters) <= MAX_PARAMETERS and not _has_networks(pair)


def _verified(elbo: FixedDrawsELBO, vectors: Tensor) -> FixedDrawsELBO | None:
    """Return the ELBO if its draws are few enough and its gradient is its derivative."""
    few = elbo.graph.num_normals + elbo.graph.num_uniforms <= MAX_BASE_DRAWS
    return elbo if few and elbo.derivative_error(vectors) <= DERIVATIVE_ERROR else None


def _has_networks(pair: Pair) -> bool:
    """Whether parameters belong to layers of neural networks, or to unknown modules that ``pyro.module`` registered."""
    modules = modules_of(pair.model, pair.guide)
    known = {id(parameter) for module in modules for parameter in module.parameters()}
    registered = (value for name, value in pyro.get_param_store().named_parameters() if "$$$" in name)
    layers = (layer for module in modules for layer in module.modules() if isinstance(layer, NETWORK_LAYERS))
    return any(id(value) not in known for value in registered) or any(
        next(layer.parameters(False), None) is not None for layer in layers
    )
