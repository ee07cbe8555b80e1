"""Log densities of rows with their discrete latents summed out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from pyro.ops import packed
from pyro.ops.contract import einsum
from torch import Tensor

from pplgen.errors import InputError
from pplgen.structure import Structure

__all__ = ["WeightedEnum_ELBO", "sum_out"]


def sum_out(trace: poutine.Trace, names: Iterable[str], row_plate: str, keep: str = "") -> Tensor:
    """Contract the named sites' densities to one log density per row, and per value of the symbol ``keep``."""
    # masked, but not scaled: the density of a row is not that of the rows it stands for
    sites = [trace.nodes[name]["packed"] for name in names]
    operands = [packed.scale_and_mask(site["unscaled_log_prob"], mask=site["mask"]) for site in sites]
    terms = [operand._pyro_dims for operand in operands]
    row = trace.plate_to_symbol[row_plate]
    # an axis of length one is packed away: a single row, a single value
    output = "".join(symbol for symbol in row + keep if any(symbol in term for term in terms))
    summed: Tensor = einsum(
        f"{','.join(terms)}->{output}",
        *operands,
        plates="".join(symbol for symbol in trace.plate_to_symbol.values() if symbol != row),
        backend="pyro.ops.einsum.torch_log",
        modulo_total=True,  # concerns plates in the output, and there are none: rows are an ordinary axis here
    )[0]
    return summed


class WeightedEnum_ELBO(TraceEnum_ELBO):
    """``TraceEnum_ELBO`` for rows that count differently, which Pyro's refuses.

    The weight of a row, its ``poutine.scale``, multiplies the log density with discrete latents summed out::

        log p(theta) - log q(theta) + sum_i w_i log sum_z p(x_i, z | theta)

    Parameters
    ----------
    structure
        Of the pair. Whatever is summed out belongs to single rows, and the guide enumerates nothing.
    """

    def __init__(self, structure: Structure) -> None:
        super().__init__(max_plate_nesting=structure.plate_depth)
        self.structure = structure

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Return the negative bound in nats; its gradient is by reparameterisation."""
        (traces,) = self._get_traces(model, guide, args, kwargs)
        model_trace, guide_trace = traces
        structure = self.structure
        terms = [*structure.observed, *structure.factors, *structure.latent, *structure.enumerated]
        per_row = [name for name in terms if name in structure.per_row]
        rows = sum_out(model_trace, per_row, str(structure.row_plate))
        scales = [torch.as_tensor(model_trace.nodes[name]["scale"]) for name in per_row]
        if len({scale.shape for scale in scales}) > 1:
            raise InputError("weights: the model scales some sites of a row itself, and others not")
        weights = scales[0].reshape(-1)
        shared = [model_trace.nodes[name]["log_prob"].sum() for name in terms if name not in structure.per_row]
        drawn = [guide_trace.nodes[name]["log_prob"].sum() for name in guide_trace.stochastic_nodes]
        loss: Tensor = sum(drawn, -(weights * rows).sum()) - sum(shared)
        return loss

    @torch.no_grad()
    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Return the negative bound in nats."""
        return self.differentiable_loss(model, guide, *args, **kwargs).item()

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Return the negative bound in nats, and add its gradient to the parameters' own."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward()
        return loss.item()
