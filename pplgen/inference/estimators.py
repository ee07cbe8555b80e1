"""Estimators of the bound beside Pyro's: by importance weights of each row, with free bits, by the score function."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Delta, TorchDistribution
from pyro.distributions.util import scale_and_mask
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.util import torch_item
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Independent, kl_divergence

from pplgen.errors import InputError
from pplgen.story.marginal import PARTICLE_PLATE, RowEnum_ELBO, sum_out

__all__ = [
    "Detaching",
    "FreeBits_ELBO",
    "ImportanceWeighted_ELBO",
    "ScoreFunction_ELBO",
    "divergences",
    "entries_of",
]


class ImportanceWeighted_ELBO(RowEnum_ELBO):
    """The importance-weighted bound of each row, from K draws of the guide.

    It is eq. 8 of Burda et al. (2016)::

        sum_i w_i E log 1/K sum_k p(x_i, z_ik) / q(z_ik | x_i)

    where Pyro's ``RenyiELBO`` weighs draws of all rows together. The weight w_i of a row is the scale of what it
    observes, as of a minibatch; what the model scales beyond that is an exponent within the ratio.
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
    """The bound in which entries of latents may carry some information for nothing.

    It is that of Kingma et al. (2016, appendix C.8)::

        sum_i E log p(x_i | z_i) - N sum_j max(free_bits, 1/N sum_i KL(q(z_ij | x_i), p(z_ij)))

    It is lower than the one without. The means are those of a step's rows, as these are weighed.

    Parameters
    ----------
    names
        Latents of single rows.
    free_bits
        Nats of each entry.
    **options
        As for Pyro's ``ELBO``.
    """

    def __init__(self, names: tuple[str, ...], free_bits: float, **options: Any) -> None:
        super().__init__(**options)
        self.names, self.free_bits = names, free_bits

    def _differentiable_loss_particle(self, model_trace: poutine.Trace, guide_trace: poutine.Trace) -> Any:
        loss, surrogate = super()._differentiable_loss_particle(model_trace, guide_trace)
        for name in self.names:
            paid, rows = divergences(name, guide_trace.nodes[name], model_trace.nodes[name])
            rise = (self.free_bits * rows - paid).clamp_min(0).sum()
            loss, surrogate = loss + torch_item(rise), surrogate + rise
        return loss, surrogate


def divergences(name: str, guide: Any, model: Any) -> tuple[Tensor, Tensor]:
    """Return the divergence of each entry of a latent, summed over rows as they are weighed, and the sum of weights."""
    q, p = entries_of(guide["fn"]), entries_of(model["fn"])
    batch = guide["fn"].batch_shape
    try:
        divergence = kl_divergence(q, p)
    except NotImplementedError:
        kinds = f"{type(q).__name__} from {type(p).__name__}"
        raise InputError(f"free_bits: the divergence of {name!r}, {kinds}, has no closed form") from None
    if divergence.shape != batch + guide["fn"].event_shape:
        raise InputError(f"free_bits: the entries of {name!r} are not independent in the guide's {type(q).__name__}")
    weights = scale_and_mask(divergence.new_ones(batch), guide["scale"], guide["mask"])
    along = weights.reshape(*batch, *(1 for _ in guide["fn"].event_shape))
    return (along * divergence).sum(tuple(range(len(batch)))), weights.sum()


def entries_of(distribution: Any) -> Any:
    """Return the distribution of which a row of independent entries is made."""
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    return distribution


class ScoreFunction_ELBO(Trace_ELBO):
    """``Trace_ELBO`` with gradients by the score function (Williams 1992), however the guide draws.

    Pyro weighs the score of a row's draw by the terms of that row alone.
    """

    def _get_traces(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        return super()._get_traces(model, Detaching()(guide), args, kwargs)


class Detaching(Messenger):
    """Let no gradient through the draws of a guide."""

    def _pyro_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if not msg["is_observed"] and getattr(fn, "has_rsample", False) and not isinstance(entries_of(fn), Delta):
            msg["fn"] = _Detached(fn)


class _Detached(TorchDistribution):
    """A distribution that is not reparameterised, whatever its base is."""

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
        """Repeat along further axes of the batch."""
        return _Detached(self.base.expand(batch_shape))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw without a gradient."""
        with torch.no_grad():
            drawn: Tensor = self.base.sample(torch.Size(sample_shape))
        return drawn

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats."""
        # a copy, for a flow remembers what it made of a draw of its own, without its gradient
        log_prob: Tensor = self.base.log_prob(value.clone())
        return log_prob
