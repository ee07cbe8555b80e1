"""A fit by NUTS: chains from a story's or a pair's own starts, with progress."""

from __future__ import annotations

import math

from pplgen.fitting.nuts_result import SampledFit
from pplgen.fitting.prepare import Prepared
from pplgen.inference.nuts import run_nuts
from pplgen.inference.svi import Progress
from pplgen.report.console import ProgressCallback, reporting
from pplgen.story.isolation import seeded

__all__ = ["sampled"]


def sampled(
    prepared: Prepared,
    seeds: list[int],
    steps: int,
    warm_up: int,
    compiler: str,
    progress: bool | ProgressCallback,
    seed: int,
) -> SampledFit:
    """Run a chain of NUTS from each start."""
    pairs = []
    for chain_seed in seeds:
        with seeded(chain_seed):
            pairs.append(prepared.start())
    with reporting(progress) as callback:

        def report(chain: int, step: int, rate: float, doing: str) -> None:
            if callback:
                total = steps + warm_up
                callback(Progress(chain + 1, len(seeds), step, total, math.nan, rate, 0.0, f"NUTS on {doing}"))

        pair, chains, path = run_nuts(
            pairs, seeds=seeds, num_draws=steps, warm_up=warm_up, compiler=compiler, report=report
        )
    return SampledFit(pair, chains, table=prepared.table, seed=seed, path=path, origin=prepared.origin)
