"""Restarts that ranks share: what each rank runs, and the best restart wherever it ran."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pplgen.distributed.ranks import SINGLE_PROCESS, Ranks
from pplgen.distributed.sharding import broadcast_parameters
from pplgen.errors import InputError
from pplgen.inference.training import Training
from pplgen.story.base import check_choice
from pplgen.story.pair import Pair

__all__ = ["RankRoles", "best_of"]


class RankRoles(NamedTuple):
    """The ranks of a fit, and what they share; where they share one thing, the other is this process alone."""

    all: Ranks
    rows: Ranks
    """Those that share the rows."""
    restarts: Ranks
    """Those that share the restarts."""

    @classmethod
    def of(cls, shard: str | None, method: str, num_restarts: int, checkpoint: object) -> RankRoles:
        """Return the roles of the ranks that run.

        Raises
        ------
        InputError
            Where what they are to share is unknown, or cannot be shared.
        """
        if shard is None:
            return cls(SINGLE_PROCESS, SINGLE_PROCESS, SINGLE_PROCESS)
        check_choice("shard", shard, ("rows", "restarts"))
        ranks = Ranks.current()
        if ranks.size > 1 and method == "nuts":
            raise InputError("method='nuts' runs in one process; with shard=None each rank samples on its own")
        if ranks.size == 1 or shard == "rows":
            return cls(ranks, ranks, SINGLE_PROCESS)
        if num_restarts < ranks.size:
            raise InputError(f"restarts={num_restarts}: expected one at least for each of the {ranks.size} ranks")
        if checkpoint is not None:
            raise InputError("checkpoint: restarts that ranks share keep none")
        return cls(ranks, SINGLE_PROCESS, ranks)


def best_of(
    pairs: Sequence[Pair], results: Sequence[Training | None], ranks: Ranks
) -> tuple[Pair | None, list[Training | None]]:
    """Return the pair of the best restart, and how all restarts went, the same on all ranks.

    Parameters
    ----------
    pairs, results
        This rank's restarts: of all of them every ``ranks.size``-th, from number ``ranks.rank`` on. ``None`` is one
        that broke down; those that an interrupt prevented are left out.
    ranks
        Processes that share the restarts.

    Returns
    -------
    tuple
        The pair with the highest final ELBO, ``None`` where none has any; and the results in order, without those that
        broke down where another did not.
    """
    every = ranks.all_gather(list(results))
    places = [(index, rank) for index in range(max(map(len, every))) for rank in range(ranks.size)]
    places = [(index, rank) for index, rank in places if index < len(every[rank])]
    joined = [every[rank][index] for index, rank in places]
    if any(run is not None and not run.broke_down for run in joined):
        joined = [None if run is None or run.broke_down else run for run in joined]
    done = [(run.rank, place) for run, place in zip(joined, places, strict=True) if run is not None]
    if not done:
        return None, joined
    index, owner = max(done, key=lambda each: each[0])[1]
    pair = pairs[index if owner == ranks.rank else 0]
    broadcast_parameters(pair, ranks, owner)
    return pair, joined
