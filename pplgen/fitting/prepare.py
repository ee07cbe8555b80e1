"""Validate the data of ``fit``, and build the initial pair of each restart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pplgen.data.streams import RowStream
from pplgen.data.table import Table
from pplgen.distributed.ranks import SINGLE_PROCESS, Ranks
from pplgen.distributed.sharding import broadcast_parameters, check_same_on_all_ranks
from pplgen.errors import InputError, first_line
from pplgen.fitting.run_contents import type_name
from pplgen.inference.kl_warm_up import weigh_kl
from pplgen.inference.laplace import point_pair
from pplgen.inference.model_arguments import (
    bare_annotations,
    bare_arguments,
    read_training_rows,
    survey_stream,
)
from pplgen.inference.named_guides import named_pair
from pplgen.inference.nonfinite_sites import explain_start
from pplgen.inference.restarts_over_ranks import RankRoles
from pplgen.story.base import Story
from pplgen.story.isolation import seeded
from pplgen.story.pair import Pair

__all__ = ["Prepared", "prepare"]


class Prepared(NamedTuple):
    """Validated data, and a factory of initial pairs."""

    new_pair: Callable[[], Pair]
    """Builds the pair of a restart from the current random state."""
    table: Table | None
    origin: dict[str, Any]
    """Fields of the header of a run: options, and the data of a stream."""

    def start(self, seeds: list[int], ranks: RankRoles) -> list[Pair]:
        """Build the pair of each restart, the same on all ranks that share the rows."""
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
    guide: Callable[..., Any] | str | None,
    data: Any,
    labels: Any,
    weights: Any,
    *,
    seed: int,
    device: torch.device | None,
    recorded: dict[str, Any],
    rows: str | None = None,
    warm_up: int | Mapping[str, int] = 0,
    dtype: torch.dtype | None = None,
    ranks: Ranks = SINGLE_PROCESS,
) -> Prepared:
    """Read and validate the data of a fit.

    A story is initialised from its rows, a bare pair by the initial values of its parameters. Of several ranks only the
    first reads all rows of a stream. ``rows`` names the row plate of a bare model, ``warm_up`` the latents whose KL
    terms have a weight; ``dtype`` is the floating-point type of the rows.
    """
    if rows is not None and isinstance(model, Story):
        raise InputError(f"rows={rows!r}: a story's row plate is 'data'; expected a bare model")
    origin: dict[str, Any] = {"options": recorded}
    name, own_guide = (guide, None) if isinstance(guide, str) else (None, guide)
    if name is not None:
        origin["guide"] = "laplace" if name == "point" else name

    def named(pair: Pair) -> Pair:
        if name is not None:
            pair = point_pair(pair) if name == "point" else named_pair(pair, name)
        if warm_up:
            weigh_kl(pair, warm_up)
        return pair

    if isinstance(data, RowStream):
        if not isinstance(model, Story):
            raise InputError("a stream of rows needs a Story; a bare pair takes tensors")
        if labels is not None or weights is not None:
            raise InputError("labels and weights need rows in memory; load_data(path) reads them all")
        if dtype not in (None, data.dtype):
            raise InputError(f"dtype={dtype}: the stream has {data.dtype}; give stream_data(path, dtype=...) instead")
        with ranks.monitored():
            survey = ranks.on_first_rank(lambda: survey_stream(model, data, seed))
        facts = {"name": data.name, "num_rows": len(data), "fingerprint": survey.fingerprint}
        facts["dtype"] = type_name(survey.sample)
        origin |= {"columns": data.columns, "data": facts}
        return Prepared(_checked_numerically(lambda: named(Pair.of_stream(model, data, survey, device))), None, origin)
    if isinstance(model, Story):
        table = read_training_rows(model, data, labels, weights, dtype)
        x = table.values.to(device)
        labels, weights = (None if each is None else each.to(device) for each in (table.labels, table.weights))

        def initialised() -> Pair:
            pair = Pair.of_story(model, x, labels, weights)
            pair.columns = table.columns
            return named(pair)

        return Prepared(_checked_numerically(initialised), table, origin)
    arguments = bare_arguments(data, device, model, own_guide, dtype)

    def build() -> Pair:
        return Pair(model, own_guide, arguments, device, rows=rows)

    def start() -> Pair:
        try:
            pair = build()
        except InputError:
            raise
        except (RuntimeError, ValueError, IndexError, ArithmeticError) as error:
            if fault := explain_start(build):
                raise InputError(f"the model cannot be evaluated at its initial parameters: {fault}") from error
            shapes = (f"of shape {tuple(v.shape)}" if isinstance(v, Tensor) else type(v).__name__ for v in arguments)
            what = f"model and guide cannot be evaluated on the data, {', '.join(shapes) or 'no arguments'}"
            raise InputError(f"{what}: {first_line(error)}") from error
        pair.condition_on(*bare_annotations(pair, labels, weights))
        return named(pair)

    return Prepared(start, None, origin)


def _checked_numerically(start: Callable[[], Pair]) -> Callable[[], Pair]:
    """Convert failed factorisations during the initialisation of a story to ``InputError``."""

    def checked() -> Pair:
        try:
            return start()
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            raise InputError(f"initialisation failed; check the scale of the data and the priors: {error}") from error

    return checked
