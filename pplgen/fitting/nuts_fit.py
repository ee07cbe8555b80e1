"""Fit by NUTS: chains initialised from the story or pair, with progress."""

from __future__ import annotations

import math

import torch

from pplgen.fitting.fit_options import FitOptions
from pplgen.fitting.nuts_result import SampledFit
from pplgen.fitting.prepare import Prepared
from pplgen.inference.empirical_guide import StoredDraws
from pplgen.inference.nuts import run_nuts
from pplgen.inference.training_result import Progress, ProgressCallback
from pplgen.posterior.exchangeability import exchangeable
from pplgen.posterior.relabelling import match_components
from pplgen.report.console import reporting
from pplgen.story.pair import Pair

__all__ = ["fit_nuts"]

MATCHINGS = 20
"""Maximum number of times that all draws are matched."""


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
    _relabel(pair)
    return SampledFit(pair, chains, table=prepared.table, seed=options.seed, path=path, origin=prepared.origin)


def _relabel(pair: Pair) -> None:
    """Name the components of all draws alike, where the posterior is the same under each naming.

    They are matched to those of one draw, and then to the means of all, until none changes (Stephens 2000).
    """
    stored: StoredDraws = pair.guide
    draws = {name: stored.draws[name] for name in pair.structure.shared_latent}
    with pair.isolated(), torch.no_grad():
        axes = exchangeable(pair, draws)
    if not axes or pair.structure.row_latent:
        return
    spread = {name: value.std(0) for name, value in draws.items()}
    reference = {name: torch.stack([draws[name][-1] - sd, draws[name][-1] + sd]) for name, sd in spread.items()}
    for _ in range(MATCHINGS):
        matched = match_components(draws, reference, axes)
        if reference is draws and all(torch.equal(matched[name], draws[name]) for name in axes):
            break
        reference = draws = matched
    for name, buffer in stored.draws.items():
        buffer.copy_(draws.get(name, buffer))
