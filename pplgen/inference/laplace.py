"""Laplace's approximation: a normal distribution at a mode of the log joint density, on the unconstrained scale.

With u the latents on the unconstrained scale, discrete ones summed out, and H the negative Hessian at a mode u* of
``log p(x, theta(u)) + log |d theta / d u|``::

    u | x ~ Normal(u*, H^-1)        log p(x) = log p(x, u*) + P / 2 log 2 pi - 1/2 log |H|, approximately

The mode is that of a guide of point masses, trained as any guide: its ELBO is the log joint density.

References
----------
Tierney and Kadane (1986), Accurate approximations for posterior moments and marginal densities.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor

from pplgen.compiler.base_draws import NotReparameterised
from pplgen.compiler.graph import tensors_of, trace
from pplgen.compiler.traceable_pyro import NotTraceable
from pplgen.errors import InputError
from pplgen.inference.fixed_draws_elbo import FixedDrawsELBO
from pplgen.inference.named_guides import named_pair
from pplgen.inference.nuts import require_samplable
from pplgen.inference.train import Trained
from pplgen.inference.training_result import FINAL_EVALUATIONS, Mode, Training
from pplgen.story.isolation import seeded
from pplgen.story.pair import Pair

__all__ = ["approximate_all", "point_pair"]

MAX_LATENTS = 1000
"""Maximum number of scalar latents: the Hessian takes four gradients for each."""
TOLERANCE = 1e-5
"""Largest gradient norm of a mode, in posterior standard deviations, unless it is rounding error."""
NEWTON_STEPS = 8
"""Maximum number of Newton steps from the mode that L-BFGS found."""
FLAT = 1e-6
"""Smallest eigenvalue of the Hessian, scaled to a unit diagonal, of a direction that is identified."""


def point_pair(pair: Pair) -> Pair:
    """Return a pair with a point mass as guide, which is trained to find the mode.

    Raises
    ------
    InputError
        If the model has parameters to be learned, or a story has continuous latents of rows.
    """
    structure = pair.structure
    require_samplable(pair, "laplace")
    if pair.story is not None and structure.row_latent:
        raise InputError(
            f"method='laplace': {type(pair.story).__name__} draws {structure.row_latent[0]!r} of each row; expected a "
            "story whose latents of rows are summed or integrated out"
        )
    result = named_pair(pair, "point")
    size = sum(parameter.numel() for parameter in result.guide.parameters())
    if size > MAX_LATENTS:
        raise InputError(f"method='laplace': the model has {size:,} scalar latents; expected at most {MAX_LATENTS:,}")
    return result


def approximate_all(pairs: list[Pair], trained: Trained) -> tuple[list[Pair], Trained]:
    """Approximate the posterior at the mode of each restart; restarts without a mode have failed."""
    results: list[Training | None] = []
    normal, failure = list(pairs), trained.failure
    for index, run in enumerate(trained.results):
        result = None
        if run is not None:
            try:
                normal[index], result = _approximate(pairs[index], run)
            except InputError as error:
                failure = failure or error
        results.append(result)
    return normal, Trained(results, f"{trained.path}, then L-BFGS to a mode", failure)


def _approximate(pair: Pair, run: Training) -> tuple[Pair, Training]:
    """Approximate the posterior at a trained point mass."""
    if run.optimum is None:
        raise InputError(f"method='laplace': no mode of the joint density was found in {len(run.history):,} steps")
    with pair.isolated(), seeded(run.seed):
        v, loss, hessian, norm = _mode(pair, run.seed)
    factor = torch.linalg.cholesky(torch.linalg.inv(hessian))
    own, P = pair.guide, len(v)
    start, unit = getattr(own, "start", torch.zeros_like(v)).double(), getattr(own, "unit", torch.ones_like(v)).double()
    factor = unit[:, None] * factor
    log_evidence = -loss + P / 2 * math.log(2 * math.pi) + float(factor.diagonal().log().sum())
    normal = named_pair(pair, "laplace", initialise=False)
    guide: Any = normal.guide
    guide.start.copy_(start + unit * v)
    guide.unit.copy_(factor)
    with normal.isolated(), seeded(run.seed), pyro.validation_enabled(False):
        bound: Any = normal.elbo()
        elbos = [-bound.loss(normal.model, normal.guide, *normal.data) for _ in range(FINAL_EVALUATIONS[1])]
    return normal, replace(
        run,
        elbo=float(np.mean(elbos)),
        elbo_error=float(np.std(elbos, ddof=1)) / math.sqrt(len(elbos)),
        iterates=np.empty(0),
        final=np.empty(0),
        optimum=replace(run.optimum, num_draws=1, gradient_norm=norm, tolerance=max(TOLERANCE, norm)),
        mode=Mode(norm, log_evidence),
    )


def _mode(pair: Pair, seed: int) -> tuple[Tensor, float, Tensor, float]:
    """Return the mode, the negative log joint density there, its Hessian, and the gradient norm, in float64."""
    try:
        graph = trace(pair, pair.elbo(), pair.data, fixed=True)
        joint = FixedDrawsELBO(graph, None, (*graph.buffers, *tensors_of(pair.data)), seed=seed)
    except (NotTraceable, NotReparameterised) as reason:
        raise InputError(f"method='laplace' needs a traced graph: {reason}") from None
    joint.set_draws(1, 2)
    v = graph.pack(pair.snapshot()).double()
    scales = torch.ones_like(v)
    for _ in range(NEWTON_STEPS):
        losses, gradients = joint(v[None])
        hessian = joint.hessian(v, scales)
        sds = hessian.diagonal().clamp(min=1e-300).rsqrt()
        smallest = float(torch.linalg.eigvalsh(sds[:, None] * hessian * sds)[0])
        if not smallest > FLAT or not (hessian.diagonal() > 0).all():
            raise InputError(
                "method='laplace': the Hessian of the negative log joint density is not positive definite where the "
                f"gradient vanishes (smallest eigenvalue {smallest:.1g}, relative to its diagonal): a saddle point, or "
                "a direction that neither prior nor data identify"
            )
        step = torch.linalg.solve(hessian, gradients[0])
        norm = float((gradients[0] @ step / len(v)).clamp(min=0).sqrt())
        resolved = bool((scales / sds - 1).abs().max() < 1)
        if norm <= TOLERANCE and resolved:
            return v, float(losses[0]), hessian, norm
        v, scales = v - step * min(1.0, 1 / max(norm, 1e-300)), sds
    raise InputError(
        f"method='laplace': Newton steps do not converge to a mode of the joint density: gradient norm {norm:.1g}, "
        f"expected at most {TOLERANCE:g}"
    )
