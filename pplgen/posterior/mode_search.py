"""Search for modes of a mixture's posterior that no restart found: components merged, split or emptied.

Each move gives every row a component, from which a story is initialised; for a bare pair the ELBO is maximised with the
components fixed there. From there it is maximised without, by L-BFGS over fixed draws (Ueda, Nakano, Ghahramani and
Hinton 2000, SMEM algorithm for mixture models).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from pplgen.compiler.base_draws import NotReparameterised
from pplgen.compiler.graph import Graph, tensors_of, trace
from pplgen.compiler.traceable_pyro import NotTraceable
from pplgen.errors import InputError, first_line
from pplgen.inference.fixed_draws_elbo import FixedDrawsELBO
from pplgen.inference.quasi_newton import descend
from pplgen.inference.quasi_newton_phase import may_use_fixed_draws
from pplgen.inference.training_options import Batching
from pplgen.posterior.draws import draw_shared, row_densities
from pplgen.posterior.exchangeability import exchangeable
from pplgen.story.base import copy_story
from pplgen.story.conditioning import UNKNOWN
from pplgen.story.isolation import seeded
from pplgen.story.pair import Pair

__all__ = ["FoundMode", "search_modes", "why_no_search"]

MAX_ENTRIES = 2**17
"""Largest number of rows times components, up to which a search takes a few seconds."""
MAX_MOVES = 8
"""Maximum number of moves."""
BLOCK_SIZE = 16
"""Draws in each block of draws over which the ELBO is averaged."""
NEAR = (0.5, 0.1)
"""Gradient norms at which the descents stop, with components fixed and without, in posterior standard deviations."""
MAX_STEPS = (12, 100)
"""Maximum numbers of steps of a descent, with components fixed and without."""
DRAWS = 200
"""Draws of the guide for the rows' responsibilities."""


class FoundMode(NamedTuple):
    """A local maximum of the ELBO, and the move that led there."""

    move: str
    parameters: dict[str, Tensor]
    """Unconstrained parameters, as of ``Pair.snapshot``."""
    elbo: float
    """ELBO in nats, over few draws."""


def why_no_search(pair: Pair) -> str | None:
    """Explain why modes cannot be searched for; ``None`` if they can. Call it inside ``pair.isolated``."""
    structure = pair.structure
    discrete = [name for name in structure.enumerated if name in structure.per_row]
    if len(discrete) != 1 or structure.why_no_row_densities() or structure.row_latent or structure.guide_enumerated:
        return "modes are searched for where each row has one component, which is summed out, and no other latent"
    if pair.source is not None or len(pair.data) > pair.num_arguments:
        return "modes are searched for where all rows are in memory, without labels and weights"
    if not may_use_fixed_draws(pair, Batching()):
        return "modes are searched for where a fit can end with L-BFGS over fixed draws"
    if not exchangeable(pair, draw_shared(pair, 2)):
        return "modes are searched for where components are exchangeable"
    return None


def search_modes(pair: Pair, seed: int = 0) -> list[FoundMode]:
    """Return the local maxima to which moves from the pair's parameters lead, best first.

    Call it inside ``pair.isolated``; the parameters are unchanged.

    Raises
    ------
    InputError
        If modes cannot be searched for, or the data are too large.
    """
    if reason := why_no_search(pair):
        raise InputError(reason)
    (name,) = [each for each in pair.structure.enumerated if each in pair.structure.per_row]
    with seeded(seed):
        shared = draw_shared(pair, DRAWS)
        responsibilities = row_densities(pair, shared, DRAWS, pair.data).probabilities[name].mean(0)
        if responsibilities.numel() > MAX_ENTRIES:
            raise InputError(
                f"{len(responsibilities):,} rows are many for a search for modes; several restarts are compared"
            )
        moves = _distinct(_moves(responsibilities, _features(pair, len(responsibilities))))
        labels = torch.stack(list(moves.values()))
        try:
            elbo, start, graph = _of_story(pair, labels, seed) or _of_labels(pair, labels, seed)
        except (NotTraceable, NotReparameterised) as error:
            raise InputError(f"modes are searched for over a traced graph: {first_line(error)}") from None
        found, losses = descend(elbo, start, BLOCK_SIZE, NEAR[1], MAX_STEPS[1])
    modes = [
        FoundMode(move, graph.unpack(vector.to(pair.dtype)), -float(loss))
        for move, vector, loss in zip(moves, found, losses, strict=True)
        if bool(loss.isfinite())
    ]
    return sorted(modes, key=lambda mode: -mode.elbo)


def _of_story(pair: Pair, labels: Tensor, seed: int) -> tuple[FixedDrawsELBO, Tensor, Graph] | None:
    """Start at the parameters to which a story is initialised given each row's component; ``None`` for other guides."""
    if pair.story is None:
        return None
    parameters = []
    for each in labels:
        story = copy_story(pair.story, pair.data[0])
        story.initialise(pair.data[0], labels=each)
        started = Pair(story.model, story.guide, pair.data, copied=True)
        with started.isolated():
            parameters.append(started.snapshot())
    shapes = [{name: value.shape for name, value in each.items()} for each in (parameters[0], pair.snapshot())]
    if shapes[0] != shapes[1]:
        return None
    graph = trace(pair, pair.elbo(), pair.data, fixed=True)
    elbo = FixedDrawsELBO(graph, None, (*graph.buffers, *tensors_of(pair.data)), seed=seed)
    return elbo, torch.stack([graph.pack(each) for each in parameters]).double(), graph


def _of_labels(pair: Pair, labels: Tensor, seed: int) -> tuple[FixedDrawsELBO, Tensor, Graph]:
    """Start where the ELBO given each row's component leads from the pair's parameters."""
    conditioned = copy.copy(pair)
    conditioned.condition_on(labels[0], None)
    graph = trace(conditioned, conditioned.elbo(), conditioned.data)
    inputs = (*graph.buffers, *tensors_of(pair.data))
    elbo = FixedDrawsELBO(graph, None, (*inputs, labels), [*[False] * len(inputs), True], seed=seed)
    present = graph.pack(pair.snapshot()).double().expand(len(labels), -1)
    start, _ = descend(elbo, present, BLOCK_SIZE, NEAR[0], MAX_STEPS[0])
    return elbo.with_inputs((*inputs, torch.full_like(labels, UNKNOWN))), start, graph


def _features(pair: Pair, num_rows: int) -> Tensor:
    """Return the rows of all arguments, standardised, shape ``(num_rows, num_columns)``; missing entries are means."""
    values = [v for v in pair.data if isinstance(v, Tensor) and v.is_floating_point() and len(v) == num_rows]
    x = torch.cat([value.reshape(num_rows, -1).double() for value in values], 1)
    x = torch.where(x.isnan(), x.nanmean(0), x)
    return (x - x.mean(0)) / x.std(0).clamp_min(torch.finfo(x.dtype).tiny)


def _moves(p: Tensor, x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield a component for each row, ``(num_rows,)``, after each move from responsibilities ``(num_rows, K)``.

    The components that share most rows are merged, the smallest emptied, and the largest split across the direction of
    its largest variance.
    """
    labels, K = p.argmax(1), p.shape[1]
    sizes = torch.bincount(labels, minlength=K)
    shared = p.mT @ p
    order = sizes.argsort(descending=True, stable=True).tolist()
    for k in (k for k in order if not sizes[k]):
        yield f"component {order[0]} split", _split(labels, x, order[0], k)
    pairs = sorted(combinations([k for k in order if sizes[k]], 2), key=lambda pair: -float(shared[pair]))
    for i, j in pairs[:3]:
        merged = torch.where(labels == j, i, labels)
        yield f"components {min(i, j)} and {max(i, j)} merged", merged
        largest = next((k for k in order if k not in (i, j) and sizes[k]), i)
        yield f"components {min(i, j)} and {max(i, j)} merged, {largest} split", _split(merged, x, largest, j)
    for k in reversed(order[2:]):
        if sizes[k]:
            yield f"component {k} emptied", p.index_fill(1, torch.tensor([k]), -1.0).argmax(1)


def _split(labels: Tensor, x: Tensor, component: int, free: int) -> Tensor:
    """Give the rows of a component on one side of their mean, along their principal axis, to another."""
    rows = labels == component
    centred = x[rows] - x[rows].mean(0)
    axis = torch.linalg.eigh(centred.mT @ centred)[1][:, -1]
    halves = labels.clone()
    halves[rows] = torch.where(centred @ axis > 0, free, component)
    return halves


def _distinct(moves: Iterator[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Return the first ``MAX_MOVES`` moves that differ."""
    distinct: dict[str, Tensor] = {}
    for move, labels in moves:
        if len(distinct) < MAX_MOVES and not any(torch.equal(labels, other) for other in distinct.values()):
            distinct[move] = labels
    return distinct
