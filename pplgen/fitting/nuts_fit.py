"""Fit by NUTS: chains initialised from the story or pair, with progress."""

from __future__ import annotations

import math

from pplgen.fitting.fit_options import FitOptions
from pplgen.fitting.nuts_result import SampledFit
from pplgen.fitting.prepare import Prepared
from pplgen.inference.nuts import run_nuts
from pplgen.inference.training_result import Progress, ProgressCallback
from pplgen.report.console import reporting

__all__ = ["fit_nuts"]


def fit_nuts(prepared: Prepared, options: FitOptions, progress: bool | ProgressCallback) -> SampledFit:
    """Run NUTS with ``restarts`` chains of ``steps`` draws each."""
    seeds, warm_up = options.restart_seeds, options.warm_up or options.steps
    pairs = prepared.start(seeds, options.ranks)
    with reporting(progress) as callback:

        def report(chain: int, step: int, rate: float, doing: str) -> None:
            if callback:
                total = options.steps + warm_up
                callback(Progress(chain + 1, len(seeds), step, total, math.nan, rate, 0.0, f"NUTS on {doing}"))

        pair, chains, path = run_nuts(
            pairs, seeds=seeds, num_draws=options.steps, warm_up=warm_up, compiler=options.compile, report=report
        )
    return SampledFit(pair, chains, table=prepared.table, seed=options.seed, path=path, origin=prepared.origin)
