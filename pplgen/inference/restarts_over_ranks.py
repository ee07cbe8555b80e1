"""Restarts distributed over ranks: what each rank runs, and the best restart of all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pplgen.distributed.ranks import SINGLE_PROCESS, Ranks
from pplgen.distributed.sharding import broadcast_parameters
from pplgen.errors import InputError
from pplgen.inference.training_result import Training, best_first
from pplgen.story.base import check_choice
from pplgen.story.pair import Pair

__all__ = ["RankRoles", "best_of"]


class RankRoles(NamedTuple):
    """Process groups of a fit: ranks share either rows or restarts; the other group is this process alone."""

    all: Ranks
    rows: Ranks
    """Ranks that share the rows."""
    restarts: Ranks
    """Ranks that share the restarts."""

    @classmethod
    def of(cls, shard: str | None, method: str, num_restarts: int, checkpoint: object) -> RankRoles:
        """Return the roles of the current ranks.

        Raises
        ------
        InputError
            If ``shard`` is invalid, or the fit cannot be distributed that way.
        """
        if shard is None:
            return cls(SINGLE_PROCESS, SINGLE_PROCESS, SINGLE_PROCESS)
        check_choice("shard", shard, ("rows", "restarts"))
        ranks = Ranks.current()
        if ranks.size > 1 and method != "svi":
            raise InputError(f"method={method!r} runs in one process; with shard=None each rank samples separately")
        if ranks.size == 1 or shard == "rows":
            return cls(ranks, ranks, SINGLE_PROCESS)
        if num_restarts < ranks.size:
            raise InputError(f"restarts={num_restarts}: expected at least one for each of the {ranks.size} ranks")
        if checkpoint is not None:
            raise InputError("checkpoint: not supported by shard='restarts'")
        return cls(ranks, SINGLE_PROCESS, ranks)


def best_of(
    pairs: Sequence[Pair], results: Sequence[Training | None], ranks: Ranks
) -> tuple[Pair | None, list[Training | None]]:
    """Return the pair of the best restart and the results of all restarts, the same on all ranks.

    Parameters
    ----------
    pairs, results
        Restarts of this rank: every ``ranks.size``-th of all, starting with number ``ranks.rank``. ``None`` for a
        failed one; those not started because of an interrupt are omitted.
    ranks
        Processes that share the restarts.

    Returns
    -------
    tuple
        The pair with the highest final ELBO, ``None`` if there is none; and the results in order, ``None`` for failed
        restarts unless all failed.
    """
    every = ranks.all_gather(list(results))
    places = [(index, rank) for index in range(max(map(len, every))) for rank in range(ranks.size)]
    places = [(index, rank) for index, rank in places if index < len(every[rank])]
    joined = [every[rank][index] for index, rank in places]
    if any(run is not None and not run.failed for run in joined):
        joined = [None if run is None or run.failed else run for run in joined]
    done = [run for run in joined if run is not None]
    if not done:
        return None, joined
    best = best_first(done)[0]
    index, owner = next(place for run, place in zip(joined, places, strict=True) if run is best)
    pair = pairs[index if owner == ranks.rank else 0]
    broadcast_parameters(pair, ranks, owner)
    return pair, joined
