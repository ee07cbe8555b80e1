"""Log densities of rows with their discrete latents summed out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import is_identically_one, scale_and_mask
from pyro.infer import TraceEnum_ELBO
from pyro.ops import packed
from pyro.ops.contract import einsum
from torch import Tensor

from pplgen.errors import InputError
from pplgen.story.structure import Structure

__all__ = ["PARTICLE_PLATE", "RowEnum_ELBO", "WeightedEnum_ELBO", "sum_out"]

PARTICLE_PLATE = "num_particles_vectorized"
"""What Pyro calls the plate of draws that are side by side."""


def sum_out(
    trace: poutine.Trace, names: Iterable[str], row_plate: str, keep: str = "", reference: Any = None
) -> Tensor:
    """Contract the named sites' densities to one log density per row, and per value of the symbol ``keep``.

    They are masked, but not scaled, for the density of a row is not that of the rows it stands for. Where ``reference``
    is the scale of a row, what a site is scaled beyond it counts as its exponent, as while the bound is warmed up.
    """
    operands = [_operand(trace.nodes[name], reference) for name in names]
    terms = [operand._pyro_dims for operand in operands]
    row = trace.plate_to_symbol[row_plate]
    # an axis of length one is packed away: a single row, a single value
    output = "".join(symbol for symbol in row + keep if any(symbol in term for term in terms))
    summed: Tensor = einsum(
        f"{','.join(terms)}->{output}",
        *operands,
        plates="".join(symbol for symbol in trace.plate_to_symbol.values() if symbol not in row + keep),
        backend="pyro.ops.einsum.torch_log",
        modulo_total=True,  # concerns plates in the output, and there are none: rows are an ordinary axis here
    )[0]
    return summed


def _operand(site: Any, reference: Any) -> Any:
    """Return a site's log density, packed."""
    held = site["packed"]
    exponent: Any = 1.0
    if reference is not None:
        exponent = site["scale"] / reference
        if isinstance(reference, Tensor):  # a row that does not count has no exponent either
            exponent = torch.where(reference > 0, exponent, 1.0)
    if is_identically_one(exponent):
        return packed.scale_and_mask(held["unscaled_log_prob"], mask=held["mask"])
    density = scale_and_mask(site["unscaled_log_prob"], exponent, site["mask"])
    return packed.pack(density, site["infer"]["_dim_to_symbol"])


class RowEnum_ELBO(TraceEnum_ELBO):
    """A bound of a pair's own, from densities of single rows with discrete latents summed out.

    Parameters
    ----------
    structure
        Of the pair. Whatever is summed out belongs to single rows, and the guide enumerates nothing.
    num_particles
        Draws of the guide, side by side.
    """

    def __init__(self, structure: Structure, num_particles: int = 1) -> None:
        super().__init__(
            num_particles=num_particles,
            vectorize_particles=True,
            max_plate_nesting=structure.plate_depth,
            strict_enumeration_warning=False,
        )
        self.structure = structure

    @torch.no_grad()
    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Return the negative bound in nats."""
        loss: float = self.differentiable_loss(model, guide, *args, **kwargs).item()
        return loss

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Return the negative bound in nats, and add its gradient, by reparameterisation, to the parameters' own."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward()
        return loss.item()


class WeightedEnum_ELBO(RowEnum_ELBO):
    """``TraceEnum_ELBO`` for rows that count differently, which Pyro's refuses.

    The weight of a row, its ``poutine.scale``, multiplies the log density with discrete latents summed out::

        log p(theta) - log q(theta) + sum_i w_i log sum_z p(x_i, z | theta)
    """

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Return the negative bound in nats; its gradient is by reparameterisation."""
        (traces,) = self._get_traces(model, guide, args, kwargs)
        model_trace, guide_trace = traces
        structure = self.structure
        terms = [*structure.observed, *structure.factors, *structure.latent, *structure.enumerated]
        per_row = [name for name in terms if name in structure.per_row]
        scales = [torch.as_tensor(model_trace.nodes[name]["scale"]) for name in per_row]
        if len({scale.shape for scale in scales}) > 1:
            raise InputError("weights: the model scales some sites of a row itself, and others not")
        keep = model_trace.plate_to_symbol.get(PARTICLE_PLATE, "")
        rows = sum_out(model_trace, per_row, str(structure.row_plate), keep, scales[0])
        weights = scales[0].reshape(-1)
        shared = [model_trace.nodes[name]["log_prob"].sum() for name in terms if name not in structure.per_row]
        drawn = [guide_trace.nodes[name]["log_prob"].sum() for name in guide_trace.stochastic_nodes]
        loss: Tensor = (sum(drawn) - sum(shared)) / self.num_particles
        return loss - (weights * rows.reshape(len(weights), -1).mean(-1)).sum()
