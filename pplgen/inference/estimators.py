"""ELBO estimators that Pyro lacks: importance-weighted per row, with free bits, by the score function."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Delta, TorchDistribution
from pyro.distributions.score_parts import ScoreParts
from pyro.distributions.util import scale_and_mask
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.util import torch_item
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Independent, kl_divergence

from pplgen.errors import InputError
from pplgen.story.marginalisation import PARTICLE_PLATE, RowEnum_ELBO, sum_out
from pplgen.story.structure import unwrap

__all__ = [
    "DetachSamples",
    "FreeBits_ELBO",
    "ImportanceWeighted_ELBO",
    "ScoreFunction_ELBO",
    "StickingTheLanding_ELBO",
    "kl_per_dimension",
    "score_term",
]


class ImportanceWeighted_ELBO(RowEnum_ELBO):
    """Importance-weighted ELBO of each row with K draws from the guide.

    Eq. 8 of Burda et al. (2016)::

        sum_i w_i E log 1/K sum_k p(x_i, z_ik) / q(z_ik | x_i)

    Pyro's ``RenyiELBO`` importance-weights draws of all rows jointly instead. The weight w_i of a row is the scale of
    its observed site, as for a minibatch; any further scale in the model is an exponent within the ratio.
    """

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Return the negative bound in nats."""
        (traces,) = self._get_traces(model, guide, args, kwargs)
        model_trace, guide_trace = traces
        structure, plate = self.structure, str(self.structure.row_plate)
        terms = [*structure.observed, *structure.factors, *structure.latent, *structure.enumerated]
        keep = model_trace.plate_to_symbol.get(PARTICLE_PLATE, "")
        scale = model_trace.nodes[structure.observed[0]]["scale"]
        joint = sum_out(model_trace, terms, plate, keep, scale)
        drawn = sum_out(guide_trace, guide_trace.stochastic_nodes, plate, keep, scale)
        rows = joint - drawn
        if self.num_particles > 1:
            rows = rows.logsumexp(-1) - math.log(self.num_particles)
        weights = scale.reshape(-1) if isinstance(scale, Tensor) else scale
        loss: Tensor = -(weights * rows).sum()
        return loss


class FreeBits_ELBO(TraceMeanField_ELBO):
    """ELBO with free bits per latent dimension.

    Kingma et al. (2016, appendix C.8)::

        sum_i E log p(x_i | z_i) - N sum_j max(free_bits, 1/N sum_i KL(q(z_ij | x_i), p(z_ij)))

    It is at most the ELBO. Means are over the rows of a step, with their weights.

    Parameters
    ----------
    names
        Per-row latents.
    free_bits
        Free bits per latent dimension, in nats.
    **options
        As for Pyro's ``ELBO``.
    """

    def __init__(self, names: tuple[str, ...], free_bits: float, **options: Any) -> None:
        super().__init__(**options)
        self.names, self.free_bits = names, free_bits

    def _differentiable_loss_particle(self, model_trace: poutine.Trace, guide_trace: poutine.Trace) -> Any:
        loss, surrogate = super()._differentiable_loss_particle(model_trace, guide_trace)
        for name in self.names:
            kl, rows = kl_per_dimension(name, guide_trace.nodes[name], model_trace.nodes[name])
            penalty = (self.free_bits * rows - kl).clamp_min(0).sum()
            loss, surrogate = loss + torch_item(penalty), surrogate + penalty
        return loss, surrogate


def kl_per_dimension(name: str, guide: Any, model: Any) -> tuple[Tensor, Tensor]:
    """Return the KL divergence of each latent dimension, summed over weighted rows, and the sum of weights."""
    q, p = unwrap(guide["fn"], Independent), unwrap(model["fn"], Independent)
    batch = guide["fn"].batch_shape
    try:
        divergence = kl_divergence(q, p)
    except NotImplementedError:
        kinds = f"{type(q).__name__} from {type(p).__name__}"
        raise InputError(f"free_bits: the KL divergence of {name!r}, {kinds}, has no closed form") from None
    if divergence.shape != batch + guide["fn"].event_shape:
        raise InputError(f"free_bits: the dimensions of {name!r} are not independent in the guide's {type(q).__name__}")
    weights = scale_and_mask(divergence.new_ones(batch), guide["scale"], guide["mask"])
    expanded = weights.reshape(*batch, *(1 for _ in guide["fn"].event_shape))
    return (expanded * divergence).sum(tuple(range(len(batch)))), weights.sum()


class ScoreFunction_ELBO(Trace_ELBO):
    """``Trace_ELBO`` with score-function gradients (Williams 1992), even where the guide is reparameterised.

    Pyro multiplies the score of a row's draw by the terms of that row alone.
    """

    def _get_traces(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        return super()._get_traces(model, DetachSamples()(guide), args, kwargs)


class StickingTheLanding_ELBO(Trace_ELBO):
    """``Trace_ELBO`` without the score term of the reparameterisation gradient.

    Roeder, Wu and Duvenaud (2017): its expectation is zero, and without it the gradient's variance vanishes where the
    guide is the posterior. The parameters of each draw's distribution must not depend on other draws, through which
    the gradient of the density would be lost too.
    """

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        model_trace, guide_trace = super()._get_trace(model, guide, args, kwargs)
        for name in guide_trace.stochastic_nodes:
            site = guide_trace.nodes[name]
            if (score := score_term(site)) is not None:
                log_prob, score_function, entropy = site["score_parts"]
                score = scale_and_mask(score, site["scale"], site["mask"])
                site["score_parts"] = ScoreParts(log_prob, score_function, entropy - score)
        return model_trace, guide_trace


def score_term(site: Any) -> Tensor | None:
    """Return the log density of a reparameterised draw that is a constant; ``None`` for other draws."""
    if not site["fn"].has_rsample or isinstance(unwrap(site["fn"]), Delta):
        return None
    log_prob: Tensor = site["fn"].log_prob(site["value"].detach())
    return log_prob


class DetachSamples(Messenger):
    """Block pathwise gradients through the guide's draws."""

    def _pyro_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if not msg["is_observed"] and getattr(fn, "has_rsample", False) and not isinstance(unwrap(fn), Delta):
            msg["fn"] = _Detached(fn)


class _Detached(TorchDistribution):
    """Wrapper of a distribution without ``rsample``."""

    arg_constraints: dict = {}  # noqa: RUF012
    has_rsample = False

    def __init__(self, base: Any) -> None:
        self.base = base
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        """Support of the base."""
        return self.base.support

    def expand(self, batch_shape: torch.Size, _instance: None = None) -> _Detached:
        """Expand the batch shape."""
        return _Detached(self.base.expand(batch_shape))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw without a gradient."""
        with torch.no_grad():
            drawn: Tensor = self.base.sample(torch.Size(sample_shape))
        return drawn

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats."""
        # clone: a flow caches the inverse of its own draw, without the gradient
        log_prob: Tensor = self.base.log_prob(value.clone())
        return log_prob
