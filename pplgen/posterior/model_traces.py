"""Traces of a pair's model: at a draw of the guide, and with discrete latents enumerated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pplgen.story.isolation import seeded
from pplgen.story.pair import Pair

__all__ = ["enumerated_trace", "model_trace"]


@torch.no_grad()
def model_trace(pair: Pair) -> poutine.Trace:
    """Trace the model at a draw of the guide, always the same, without validation; call it in ``pair.isolated``."""
    with seeded(0), pyro.validation_enabled(False):
        drawn = poutine.trace(pair.guide).get_trace(*pair.data)
        return poutine.trace(poutine.replay(pair.model, drawn)).get_trace(*pair.data)


def enumerated_trace(pair: Pair, latent: Mapping[str, Tensor], data: tuple[Any, ...]) -> poutine.Trace:
    """Trace the model at one draw of the latents, discrete ones enumerated, with packed log densities."""
    conditioned = poutine.condition(pair.model, dict(latent))
    enumerated = poutine.enum(conditioned, first_available_dim=-1 - pair.structure.plate_depth)
    trace = poutine.trace(enumerated).get_trace(*data)
    trace.compute_log_prob()
    trace.pack_tensors()
    return trace
