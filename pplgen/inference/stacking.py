"""Stack the parameters, buffers and data of pairs that are trained in one program."""

from __future__ import annotations

import torch
from torch import Tensor

from pplgen.compiler.graph import Graph, buffers_of, tensors_of
from pplgen.story.pair import Pair

__all__ = ["stacked_data", "stacked_parameters"]


def stacked_parameters(pairs: list[Pair], graph: Graph) -> tuple[Tensor, tuple[Tensor, ...] | None]:
    """Stack the parameters of all pairs, shape ``(R, P)``, and their buffers if they differ."""
    vectors, buffers = [], []
    for pair in pairs:
        with pair.isolated():
            vectors.append(graph.pack(pair.snapshot()))
        buffers.append(buffers_of(pair))
    shared = all(torch.equal(own, first) for one in buffers for own, first in zip(one, graph.buffers, strict=True))
    return torch.stack(vectors), None if shared else tuple(torch.stack(each) for each in zip(*buffers, strict=True))


def stacked_data(pairs: list[Pair]) -> tuple[Tensor, ...]:
    """Stack the tensors among the pairs' arguments, shape ``(R, ...)`` each."""
    return tuple(torch.stack(each) for each in zip(*(tensors_of(pair.data) for pair in pairs), strict=True))
