"""The guide's score at its own draws, as a graph: a control variate for gradients of the ELBO.

The gradient of ``log q(z; eta)`` in eta, at a draw z that does not move with eta, has mean zero. Subtracting it from a
gradient of the ELBO gives the path derivative, whose variance vanishes where the guide is the posterior (Roeder, Wu and
Duvenaud 2017, Sticking the landing); subtracting a multiple is never worse (Geffner and Domke 2018, Using large
ensembles of control variates for variational inference).
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pplgen.compiler.base_draws import NotReparameterised, random_numbers
from pplgen.compiler.graph import Graph, arguments_with, gradients_of, record, tensors_of, unconstrained_parameters
from pplgen.compiler.traceable_pyro import NotTraceable
from pplgen.story.isolation import collection_paused
from pplgen.story.pair import Pair

__all__ = ["trace_guide_score"]


@collection_paused()
def trace_guide_score(pair: Pair, graph: Graph, data: tuple[Any, ...]) -> Graph | None:
    """Trace the log density of the guide at its draws, with gradients at fixed draws; call it in ``pair.isolated``.

    Returns
    -------
    Graph or None
        Its random numbers are the first of ``graph``'s; ``None`` for a guide whose draws do not come first, which is
        enumerated, or which cannot be traced.
    """
    parameters = list(unconstrained_parameters().values())

    def evaluate(*tensors: Tensor) -> tuple[Tensor, list[Tensor]]:
        arguments = arguments_with(data, tensors)
        with torch.enable_grad(), gradients_of(parameters) as gradients:
            draws = poutine.trace(pair.guide).get_trace(*arguments)
            for node in draws.nodes.values():
                if node["type"] == "sample":
                    node["value"] = node["value"].detach()
            replayed = poutine.trace(poutine.replay(pair.guide, trace=draws)).get_trace(*arguments)
            density = torch.as_tensor(replayed.log_prob_sum())
            if density.requires_grad:
                density.backward()
        return density, gradients

    if pair.structure.guide_enumerated:
        return None
    with contextlib.suppress(NotTraceable, NotReparameterised):
        score = record(pair, evaluate, tensors_of(data), fixed=True)
        drawn = random_numbers(score.module)
        if drawn == random_numbers(graph.module)[: len(drawn)]:
            return score
    return None
