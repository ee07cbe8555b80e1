"""Whole fits that end with L-BFGS over fixed draws, compared with Adam alone: time until they stop, and their ELBOs.

Medians of turns with different seeds. Every contender fits twenty rows before, so that loading is not timed.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from harness import report
from pplgen.models import PPCA, FactorAnalysis, GaussianHMM, GaussianMixture, LinearGaussianSSM

import pplgen

CONTENDERS: dict[str, Literal["auto", "adam"]] = {"Adam, then L-BFGS": "auto", "Adam alone": "adam"}


def faithful() -> tuple[Any, torch.Tensor]:
    """Two full covariances, Old Faithful."""
    return GaussianMixture(2, 2), pplgen.load_data("faithful").values


def three_components() -> tuple[Any, torch.Tensor]:
    """Three full covariances, Old Faithful: many local optima."""
    return GaussianMixture(3, 2), pplgen.load_data("faithful").values


def rows() -> tuple[Any, torch.Tensor]:
    """Five diagonal covariances of 10,000 rows, 8 columns."""
    generator = torch.Generator().manual_seed(0)
    centres = 3 * torch.randn(5, 8, generator=generator)
    z = torch.randint(5, (10_000,), generator=generator)
    return GaussianMixture(5, 8, covariance="diag"), centres[z] + torch.randn(10_000, 8, generator=generator)


def nile() -> tuple[Any, torch.Tensor]:
    """Local level, the Nile."""
    known = {"m0": 1000.0, "s0": 1000.0}
    return LinearGaussianSSM.local_level(known=known), pplgen.load_data("nile").values[None, :, -1:]


def wine() -> tuple[Any, torch.Tensor]:
    """Two latents, wine, standardised."""
    x = pplgen.load_data("wine").values
    return PPCA(13, 2), (x - x.mean(0)) / x.std(0, correction=0)


def wine_factors() -> tuple[Any, torch.Tensor]:
    """Two factors, wine, standardised."""
    return FactorAnalysis(13, 2), wine()[1]


def hmm_example(folder: Path) -> tuple[Any, torch.Tensor]:
    """Two states, posteriordb's hmm_example."""
    y = json.loads((folder / "posteriordb" / "hmm_example.json").read_text(encoding="utf-8"))["y"]
    known = {"pi": 0.5, "sigma": 1.0}
    story = GaussianHMM(2, 1, known=known, prior_mean=[[3.0], [10.0]], prior_mean_scale=1.0)
    return story, torch.tensor(y)[None, :, None]


def run(title: str, story: Any, x: torch.Tensor, turns: int, steps: int, restarts: int = 1) -> None:
    """Compare the contenders in one section."""
    seconds: dict[str, list[float]] = {contender: [] for contender in CONTENDERS}
    elbos: dict[str, list[float]] = {contender: [] for contender in CONTENDERS}
    ends: dict[str, str] = {}
    pplgen.fit(story, x[:20], steps=min(steps, 200), progress=False)
    for seed in range(turns):
        for contender, optimiser in CONTENDERS.items():
            started = time.perf_counter()
            fit = pplgen.fit(story, x, seed=seed, optimiser=optimiser, steps=steps, restarts=restarts, progress=False)
            seconds[contender].append(time.perf_counter() - started)
            elbos[contender].append(fit.elbo)
            count = len(fit.best.history)
            ends[contender] = f"{count:,} steps" + (f", {fit.best.optimum.num_evaluations}" if fit.best.optimum else "")
    best = min(map(median, seconds.values()))
    report(
        f"Whole fit: {title}",
        ("seconds", "ratio to the best", "ELBO (nats)", "worst", "steps of Adam, evaluations over fixed draws"),
        {
            contender: (
                f"{median(own):.1f}",
                f"{median(own) / best:.2f}",
                f"{median(elbos[contender]):.2f}",
                f"{min(elbos[contender]):.2f}",
                ends[contender],
            )
            for contender, own in seconds.items()
        },
        {"seconds": seconds, "elbo": elbos},
        note=f"medians of {turns}",
    )


def main() -> None:
    """Run all stories; hmm_example if the folder of its data is given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder with posteriordb/hmm_example.json")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--restarts", type=int, default=64, help="of the mixture of three components")
    options = parser.parse_args()
    stories = {
        "two full covariances, Old Faithful": faithful,
        "five diagonal covariances, 10,000 rows of 8 columns": rows,
        "local level, the Nile": nile,
        "probabilistic PCA, two latents, wine": wine,
        "factor analysis, two factors, wine": wine_factors,
    }
    if options.data:
        stories["hidden Markov model of two states, posteriordb's hmm_example"] = partial(hmm_example, options.data)
    for title, make in stories.items():
        run(title, *make(), options.turns, options.steps)
    title = f"three full covariances, Old Faithful, {options.restarts} restarts"
    run(title, *three_components(), options.turns, options.steps, options.restarts)


if __name__ == "__main__":
    main()
