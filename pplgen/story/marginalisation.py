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
"""Pyro's name of the plate of vectorised particles."""


def sum_out(
    trace: poutine.Trace, names: Iterable[str], row_plate: str, keep: str = "", reference: Any = None
) -> Tensor:
    """Eliminate discrete latents: one log density in nats per row, and per value of the symbol ``keep``.

    Sites are masked but not scaled by minibatch or weight factors. If ``reference`` is the scale of a row, a site's
    further scaling is applied as an exponent, as in KL warm-up.
    """
    operands = [_operand(trace.nodes[name], reference) for name in names]
    terms = [operand._pyro_dims for operand in operands]
    row = trace.plate_to_symbol[row_plate]
    # packing removes axes of length one: a single row, a single value
    output = "".join(symbol for symbol in row + keep if any(symbol in term for term in terms))
    # a term of zeros in the rows alone: they are outside the plates inside them
    for operand, term in zip(operands, terms, strict=True):
        if row in term:
            operands.append(operand.new_zeros(operand.shape[term.index(row)]))
            terms.append(row)
            break
    summed: Tensor = einsum(
        f"{','.join(terms)}->{output}",
        *operands,
        plates="".join(symbol for symbol in trace.plate_to_symbol.values() if symbol not in row + keep),
        backend="pyro.ops.einsum.torch_log",
        modulo_total=True,  # applies to plates in the output; there are none, since rows are an ordinary axis here
    )[0]
    return summed


def _operand(site: Any, reference: Any) -> Any:
    """Return a site's packed log density."""
    packed_site = site["packed"]
    exponent: Any = 1.0
    if reference is not None:
        exponent = site["scale"] / reference
        if isinstance(reference, Tensor):  # the exponent is undefined for a row of weight zero
            exponent = torch.where(reference > 0, exponent, 1.0)
    if is_identically_one(exponent):
        return packed.scale_and_mask(packed_site["unscaled_log_prob"], mask=packed_site["mask"])
    density = scale_and_mask(site["unscaled_log_prob"], exponent, site["mask"])
    return packed.pack(density, site["infer"]["_dim_to_symbol"])


class RowEnum_ELBO(TraceEnum_ELBO):
    """Base of ELBO estimators that use per-row densities with discrete latents summed out.

    Parameters
    ----------
    structure
        Structure of the pair. Enumerated sites are in the row plate, and the guide enumerates none.
    num_particles
        Number of vectorised draws of the guide.
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
        """Return the negative ELBO in nats."""
        loss: float = self.differentiable_loss(model, guide, *args, **kwargs).item()
        return loss

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Return the negative ELBO in nats, and accumulate its reparameterisation gradient."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward()
        return loss.item()


class WeightedEnum_ELBO(RowEnum_ELBO):
    """``TraceEnum_ELBO`` for rows with unequal weights, which Pyro's does not support.

    The weight of a row, its ``poutine.scale``, multiplies its log density with discrete latents summed out::

        log p(theta) - log q(theta) + sum_i w_i log sum_z p(x_i, z | theta)
    """

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Return the negative ELBO in nats, with a reparameterisation gradient."""
        (traces,) = self._get_traces(model, guide, args, kwargs)
        model_trace, guide_trace = traces
        structure = self.structure
        terms = [*structure.observed, *structure.factors, *structure.latent, *structure.enumerated]
        per_row = [name for name in terms if name in structure.per_row]
        scales = [torch.as_tensor(model_trace.nodes[name]["scale"]) for name in per_row]
        if len({scale.shape for scale in scales}) > 1:
            raise InputError("weights: the model applies poutine.scale to some sites of a row but not to others")
        keep = model_trace.plate_to_symbol.get(PARTICLE_PLATE, "")
        rows = sum_out(model_trace, per_row, str(structure.row_plate), keep, scales[0])
        weights = scales[0].reshape(-1)
        shared = [model_trace.nodes[name]["log_prob"].sum() for name in terms if name not in structure.per_row]
        guide_terms = [guide_trace.nodes[name]["log_prob"].sum() for name in guide_trace.stochastic_nodes]
        loss: Tensor = (sum(guide_terms) - sum(shared)) / self.num_particles
        return loss - (weights * rows.reshape(len(weights), -1).mean(-1)).sum()
