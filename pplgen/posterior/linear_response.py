"""Linear-response covariances of the posterior.

If the log posterior is perturbed by ``t' theta``, the optimum of the ELBO moves by ``t' J H^-1``, with H the Hessian of
the negative ELBO in the variational parameters, and J the derivative of the guide's means. The derivative of the
posterior's mean in t is its covariance, so ``J H^-1 J'`` estimates it, including correlations that a mean-field guide
cannot represent (Giordano, Broderick and Jordan 2018, Covariances, robustness, and variational Bayes).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from pyro import poutine
from torch import Tensor

from pplgen.compiler.base_draws import NotReparameterised
from pplgen.compiler.graph import arguments_with, record, tensors_of, trace
from pplgen.compiler.traceable_pyro import NotTraceable
from pplgen.errors import InputError
from pplgen.inference.fixed_draws_elbo import FixedDrawsAverage, FixedDrawsELBO
from pplgen.inference.quasi_newton import BLOCKS
from pplgen.inference.training_result import Optimum
from pplgen.posterior.draws import draw_shared
from pplgen.story.isolation import seeded
from pplgen.story.pair import Pair

__all__ = ["PosteriorCovariance", "guide_moments", "posterior_covariance"]

MOMENT_DRAWS = 4096
"""Number of draws for the guide's moments, which are cheap."""
MAX_CHEAP_ENTRIES = 2**29
"""Entries of the intermediate results of all evaluations, up to which a Hessian takes about a second."""
FLAT = 1e-8
"""Curvature, relative to the largest, below which a direction of the variational parameters is flat."""


@dataclass(frozen=True)
class PosteriorCovariance:
    """Covariances of the latents that all rows share, sites flattened and concatenated in the order of ``shapes``."""

    shapes: dict[str, torch.Size]
    """Shape of one draw of each site."""
    mean: Tensor
    """Means of the guide's draws, shape ``(num_latents,)``."""
    guide: Tensor
    """Covariance of the guide's draws, shape ``(num_latents, num_latents)``."""
    linear_response: Tensor
    """Linear-response covariance, of the same shape."""


class GuideMoments(NamedTuple):
    """Mean and covariance of a guide's draws."""

    shapes: dict[str, torch.Size]
    """Shape of one draw of each site."""
    mean: Tensor
    covariance: Tensor
    jacobian: Callable[[Tensor], Tensor]
    """Derivative of the mean in the guide's parameters, shape ``(num_latents, P)``."""


def posterior_covariance(
    pair: Pair, optimum: Optimum | None, seed: int, max_entries: float = math.inf
) -> PosteriorCovariance:
    """Compute the covariances of a pair at its optimum; call it inside ``pair.isolated``.

    Raises
    ------
    InputError
        If the fit did not end at a stationary point of the ELBO over fixed draws, or it is no maximum; or if the
        intermediate results of all evaluations have more than ``max_entries`` entries.
    """
    names = pair.structure.shared_latent
    if optimum is None:
        raise InputError(
            "linear-response covariances need a fit that ended with L-BFGS over fixed draws, see option "
            "'optimiser' of fit; this one did not"
        )
    if not names:
        raise InputError("linear-response covariances are of latents that all rows share; the model has none")
    try:
        with seeded(seed):
            graph = trace(pair, pair.elbo(), pair.data, fixed=True)
            inputs = (*graph.buffers, *tensors_of(pair.data))
            elbo = FixedDrawsELBO(graph, None, inputs, seed=seed)
    except (NotTraceable, NotReparameterised) as reason:
        raise InputError(f"linear-response covariances need a traced graph: {reason}") from None
    vector = graph.pack(pair.snapshot()).double()
    if 2 * len(vector) * optimum.num_draws * elbo.graph.total > max_entries:
        raise InputError(f"linear-response covariances of {len(vector)} variational parameters take long")
    elbo.set_draws(BLOCKS, max(2, optimum.num_draws // BLOCKS))
    curvature, directions = torch.linalg.eigh(elbo.hessian(vector))
    curved = curvature > FLAT * curvature.max()
    if (curvature < -(FLAT**0.5) * curvature.max()).any():
        raise InputError("linear-response covariances need a maximum of the ELBO; here it is a saddle point")
    moments = guide_moments(pair, seed)
    jacobian = moments.jacobian(vector) @ directions
    if (jacobian[:, ~curved].abs() > FLAT**0.5 * jacobian.abs().max()).any():
        raise InputError("the ELBO does not depend on a direction in which the guide's means change")
    scaled = jacobian[:, curved] / curvature[curved].sqrt()
    return PosteriorCovariance(moments.shapes, moments.mean, moments.covariance, scaled @ scaled.mT)


def guide_moments(pair: Pair, seed: int) -> GuideMoments:
    """Compute moments of the guide's draws of latents that all rows share; call it inside ``pair.isolated``."""
    try:
        with seeded(seed):
            graph = _latents_graph(pair, pair.structure.shared_latent)
            moments = FixedDrawsAverage(graph, (*graph.buffers, *tensors_of(pair.data)), seed=seed)
    except (NotTraceable, NotReparameterised) as reason:
        raise InputError(f"covariances of a guide need a traced graph: {reason}") from None
    moments.set_draws(BLOCKS, MOMENT_DRAWS // BLOCKS)
    draws = moments.each_draw(graph.pack(pair.snapshot()).double()[None])[1][:, 0]
    shapes = {name: value.shape[1:] for name, value in draw_shared(pair, 1).items()}
    covariance = draws.mT.cov(correction=0).reshape(draws.shape[1], -1)
    return GuideMoments(shapes, draws.mean(0), covariance, moments.jacobian)


def _latents_graph(pair: Pair, names: tuple[str, ...]) -> Any:
    """Record the guide's draws of latents as a graph."""

    def evaluate(*tensors: Tensor) -> tuple[Tensor, list[Tensor]]:
        drawn = poutine.trace(pair.guide).get_trace(*arguments_with(pair.data, tensors))
        return torch.as_tensor(drawn.log_prob_sum()), [drawn.nodes[name]["value"] for name in names]

    return record(pair, evaluate, tensors_of(pair.data), fixed=True)
