"""Shared parts of claims about series: a story's log density at given parameters, and sums over all paths."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pplgen.story.dynamics import MarkovChain
from pplgen.story.state_space import StateSpaceStory

__all__ = ["density", "from_prior", "over_all_paths"]


def from_prior(story: StateSpaceStory) -> dict[str, Tensor]:
    """Draw the parameters from the prior."""
    with torch.no_grad(), poutine.block():
        trace = poutine.trace(story.model).get_trace(None, num_rows=1)
    return {name: trace.nodes[name]["value"] for name in trace.stochastic_nodes if name not in ("data", "y", "x")}


def density(story: StateSpaceStory, theta: Mapping[str, Any], y: Tensor) -> Tensor:
    """Marginal log density of each series given parameters, in nats, shape ``(num_series,)``."""
    story.observe_missing(y)
    trace = poutine.trace(poutine.condition(story.model, data=dict(theta))).get_trace(y)
    trace.compute_log_prob()
    scores: Tensor = trace.nodes["y"]["log_prob"]
    return scores


def over_all_paths(log_emission: Tensor, chain: MarkovChain) -> Tensor:
    """Log sum of the weights of all paths of one series, by definition; ``log_emission`` has shape ``(T, K)``."""
    T, K = log_emission.shape
    weights = []
    for path in itertools.product(range(K), repeat=T):
        transitions = sum(chain.log_transition[i, j] for i, j in itertools.pairwise(path))
        emissions = sum(log_emission[t, k] for t, k in enumerate(path))
        weights.append(chain.log_initial[path[0]] + transitions + emissions)
    return torch.stack(weights).logsumexp(0)
