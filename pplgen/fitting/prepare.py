"""From the arguments of ``fit`` to checked data, and to the pairs that restarts start from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from pplgen.data.streams import RowStream
from pplgen.data.table import Table
from pplgen.distributed.ranks import SINGLE_PROCESS, Ranks
from pplgen.distributed.sharding import broadcast_parameters, check_same_on_all_ranks
from pplgen.errors import InputError
from pplgen.fitting.run_facts import type_name
from pplgen.inference.arguments import (
    RowAnnotations,
    bare_annotations,
    bare_arguments,
    read_training_rows,
    survey_stream,
)
from pplgen.inference.nonfinite import explain_start
from pplgen.inference.shared_restarts import RankRoles
from pplgen.story.base import Story
from pplgen.story.isolation import seeded
from pplgen.story.pair import Pair

__all__ = ["Prepared", "prepare"]


class Prepared(NamedTuple):
    """Checked data, and how a restart starts from them."""

    new_pair: Callable[[], Pair]
    """Makes the pair of a restart, with the random numbers of its seed."""
    table: Table | None
    origin: dict[str, Any]
    """What the header of a run records of the call."""

    def start(self, seeds: list[int], ranks: RankRoles) -> list[Pair]:
        """Make the pair of each restart, the same on all ranks that share the rows."""
        pairs = []
        for seed in seeds:
            with seeded(seed):
                pairs.append(self.new_pair())
        check_same_on_all_ranks(pairs[0], ranks.all)
        for pair in pairs:
            broadcast_parameters(pair, ranks.rows)
        return pairs


def prepare(
    model: Story | Callable[..., Any],
    guide: Callable[..., Any] | None,
    data: Any,
    labels: Any,
    weights: Any,
    *,
    seed: int,
    device: torch.device | None,
    recorded: dict[str, Any],
    ranks: Ranks = SINGLE_PROCESS,
) -> Prepared:
    """Read and check the data of a fit.

    A story starts near its rows, a bare pair at the initial values of its parameters. With several ranks, the first
    alone reads all rows of a stream.
    """
    if isinstance(data, RowStream):
        if not isinstance(model, Story):
            raise InputError("a stream of rows needs a Story; a bare pair takes tensors")
        if labels is not None or weights is not None:
            raise InputError("labels and weights need rows in memory; load_data(path) reads them all")
        with ranks.monitored():
            survey = ranks.on_first_rank(lambda: survey_stream(model, data, seed))
        facts = {"name": data.name, "num_rows": len(data), "fingerprint": survey.fingerprint}
        facts["dtype"] = type_name(survey.sample)
        origin = {"columns": data.columns, "data": facts, "options": recorded}
        return Prepared(_numerically(lambda: Pair.of_stream(model, data, survey, device)), None, origin)
    if isinstance(model, Story):
        table = read_training_rows(model, data, labels, weights)
        x, known = table.values.to(device), _moved((table.labels, table.weights), device)

        def start_near() -> Pair:
            pair = Pair.of_story(model, x, *known)
            pair.columns = table.columns
            return pair

        return Prepared(_numerically(start_near), table, {"options": recorded})
    arguments = bare_arguments(data, device, model, guide)
    where = next((value.device for value in arguments if isinstance(value, torch.Tensor)), None)
    known = _moved(bare_annotations(arguments, labels, weights), device or where)

    def bare() -> Pair:
        return Pair(model, guide, arguments, device)

    def start() -> Pair:
        try:
            pair = bare()
        except InputError:
            raise
        except (torch.linalg.LinAlgError, ValueError) as error:  # type: ignore[attr-defined]
            if found := explain_start(bare):
                raise InputError(f"the model cannot be evaluated where it starts: {found}") from error
            raise
        pair.condition_on(*known)
        return pair

    return Prepared(start, None, {"options": recorded})


def _moved(facts: RowAnnotations, device: torch.device | None) -> RowAnnotations:
    """Take labels and weights to a device."""
    labels, weights = (None if each is None else each.to(device) for each in facts)
    return labels, weights


def _numerically(start: Callable[[], Pair]) -> Callable[[], Pair]:
    """Say in a sentence where a story cannot start near its rows."""

    def checked() -> Pair:
        try:
            return start()
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            raise InputError(f"data and priors do not fit together numerically; check their scale: {error}") from error

    return checked
