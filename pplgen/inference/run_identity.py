"""What determines the rest of a fit: a checkpoint of another one is not resumed."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from torch import Tensor

from pplgen.compiler.graph import Graph, tensors_of
from pplgen.inference.training_options import TrainingOptions
from pplgen.storage.checkpoint import content_digest
from pplgen.story.pair import Pair

__all__ = ["run_identity"]


def run_identity(pair: Pair, graph: Graph, options: TrainingOptions, seeds: Sequence[int], vectors: Tensor) -> str:
    """Return a digest of data, program, options and initial parameters of batched restarts."""
    batching, warm_up = options.batching, options.objective.warm_up
    facts: dict[str, Any] = {
        "seeds": list(seeds),
        "batch_size": batching.batch_size,
        "optimiser": options.optimiser.facts(graph.names),
        "graph": graph.module.code,
        "rows": pair.num_rows,
        "version": version("pplgen"),
        "stream": pair.fingerprint,
    }
    if options.ranks.size > 1:
        facts["ranks"] = options.ranks.size
    if warm_up or batching.augment:
        augment = getattr(batching.augment, "__qualname__", repr(batching.augment))
        facts |= {"warm_up": warm_up, "augment": augment}
    constants = [value for value in vars(graph.module).values() if isinstance(value, Tensor)]
    start = [vectors, *graph.buffers, *graph.module.buffers(), *constants, *tensors_of(pair.data)]
    return content_digest(facts, start)
