"""Switching linear dynamical systems learned from scratch, compared with ssm's Laplace-EM: ten restarts each.

Two and three regimes, T = 500, two states observed through ten features, and the dance of a honey bee if its series is
available (labels are for scoring only). For every restart: the fraction of steps assigned to their regime, under the
best permutation, and the held-out log-likelihood in nats per step by Kim's filter, as for the true parameters.
``SSM_PYTHON`` names the interpreter of an environment with ssm.
"""

from __future__ import annotations

import csv
import math
import os
import subprocess
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from harness import report
from pplgen.models import SwitchingLDS
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from pplgen.distributions.switching_observations import Emission
from pplgen.distributions.switching_path import Dynamics, SwitchingLinearGaussianPath
from pplgen.exact.switching import kim_filter, kim_smoother
from pplgen.inference.batched_restarts import train_together
from pplgen.inference.optimisers import Optimiser
from pplgen.inference.training_options import TrainingOptions
from pplgen.story.dynamics import SwitchingLinearGaussian
from pplgen.story.isolation import seeded
from pplgen.story.pair import Pair

T, D, E, STARTS, STEPS = 500, 2, 10, 10, 30
NUMBERS = (5, 10, 40)
"""Numbers of restarts timed, the fewest first, which includes one-time costs; ten are scored."""
HELD_OUT = 20
"""Number of held-out series of T steps: a single one would leave an error of .02 nats per step."""
BEE = Path(__file__).parents[2] / "shared" / "data" / "series"


class Score(NamedTuple):
    """Scores of one restart."""

    accuracy: float
    held_out: float


def truth(num_regimes: int) -> dict[str, Tensor]:
    """Return parameters of rotations with different speeds and centres."""
    generator = torch.Generator().manual_seed(0)
    angles = (0.1, 0.6, -0.35)[:num_regimes]
    turns = [[[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]] for a in angles]
    P = torch.full((num_regimes, num_regimes), 0.05 / (num_regimes - 1)).double().fill_diagonal_(0.95)
    return {
        "pi": torch.full((num_regimes,), 1 / num_regimes).double(),
        "P": P,
        "m0": torch.zeros(D).double(),
        "s0": torch.ones(D).double(),
        "A": 0.97 * torch.tensor(turns).double(),
        "b": torch.tensor([[0.3, 0.0], [-0.3, 0.3], [0.0, -0.4]])[:num_regimes].double(),
        "q": torch.full((num_regimes, D), 0.2).double(),
        "C": torch.randn(E, D, generator=generator, dtype=torch.double),
        "d": torch.randn(E, generator=generator, dtype=torch.double),
        "r": torch.full((E,), 0.5).double(),
    }


def parts(theta: dict[str, Tensor]) -> tuple[Dynamics, Emission]:
    """Return the parameters of dynamics and emissions by their names."""
    named = [{name: theta[name] for name in kind._fields if name in theta} for kind in (Dynamics, Emission)]
    return Dynamics(**named[0]), Emission(**named[1])


def simulated(theta: dict[str, Tensor], seed: int, num_series: int = 1) -> tuple[Tensor, Tensor]:
    """Simulate series, shape ``(num_series, T, E)``, and their regimes."""
    dynamics, emission = parts(theta)
    with seeded(seed):
        path = SwitchingLinearGaussianPath(dynamics, torch.ones(num_series, T, dtype=torch.bool))
        x, regimes = path.sample_with_regimes()
        return emission.observations(path, x).sample(), regimes


def described(theta: dict[str, Tensor]) -> SwitchingLinearGaussian:
    """Describe parameters as the exact references take them."""
    moves, (C, d, r) = parts({name: value.double() for name, value in theta.items()})
    S0, Q, R = torch.diag(moves.s0.square()), moves.L @ moves.L.mT, torch.diag(r.square())
    return SwitchingLinearGaussian(moves.pi, moves.P, moves.m0, S0, moves.A, moves.b, Q, C, d, R)


def accuracy(predicted: np.ndarray, regimes: np.ndarray) -> float:
    """Fraction of steps in agreement, under the best permutation of regimes."""
    size = max(predicted.max(), regimes.max()) + 1
    table = np.zeros((size, size))
    np.add.at(table, (predicted, regimes), 1)
    return float(table[linear_sum_assignment(-table)].sum() / len(regimes))


def scored(model: SwitchingLinearGaussian, y: Tensor, regimes: Tensor, held_out: Tensor) -> Score:
    """Score parameters by Kim's smoother and filter."""
    smoothed = kim_smoother(kim_filter(y[0].double(), model), model).probabilities
    nats = kim_filter(held_out.double(), model).log_likelihood.mean().item() / T if len(held_out) else math.nan
    return Score(accuracy(smoothed.argmax(-1).numpy(), regimes.numpy()), nats)


def ours(
    y: Tensor, num_regimes: int, num_states: int, starts: int = STARTS
) -> tuple[float, list[SwitchingLinearGaussian]]:
    """Fit all restarts as one program, as ``fit`` does, and return each."""
    story = SwitchingLDS(num_regimes, num_states, y.shape[-1])
    started = time.perf_counter()
    pairs, seeds = [], list(range(starts))
    for seed in seeds:
        with seeded(seed):
            pairs.append(Pair.of_story(story, y.float()))
    options = TrainingOptions(STEPS, Optimiser(0.02), compiler="graph")
    with seeded(0):
        train_together(pairs, options, seeds=seeds)
    seconds = (time.perf_counter() - started) / starts
    models = []
    for pair in pairs:
        with pair.isolated(), torch.no_grad():
            models.append(described(pair.story.theta.guide_mean()))
    return seconds, models


def ssm(y: Tensor, num_regimes: int, num_states: int) -> tuple[float, list[SwitchingLinearGaussian], list[np.ndarray]]:
    """Fit every restart by Laplace-EM, in ssm's environment."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "series.npz", Path(folder) / "fits.npz"
        np.savez(source, y=y[0].numpy())
        script = Path(__file__).with_name("ssm_fit.py")
        sizes = [str(number) for number in (num_regimes, num_states, STARTS)]
        subprocess.run([os.environ["SSM_PYTHON"], script, source, target, *sizes], check=True)
        with np.load(target) as found:
            fits: list[dict[str, Any]] = [
                {name: found[f"{name}_{seed}"] for name in ("P", "A", "b", "Q", "C", "d", "R", "seconds", "regimes")}
                for seed in range(STARTS)
                if f"seconds_{seed}" in found
            ]
    if not fits:
        return math.nan, [], []
    models = []
    for each in fits:
        parts = {name: torch.as_tensor(each[name]).double() for name in ("P", "A", "b", "Q", "C", "d", "R")}
        models.append(
            SwitchingLinearGaussian(
                torch.full((num_regimes,), 1 / num_regimes).double(),
                parts["P"],
                torch.zeros(num_states).double(),
                torch.eye(num_states).double(),
                *(parts[name] for name in ("A", "b", "Q", "C", "d")),
                torch.diag(parts["R"]),
            )
        )
    return median(float(each["seconds"]) for each in fits), models, [each["regimes"] for each in fits]


def compared(title: str, y: Tensor, regimes: Tensor, sizes: tuple[int, int], held_out: Tensor, best: Score) -> None:
    """Fit both and report."""
    results = {}
    for starts in NUMBERS if len(held_out) else (STARTS,):
        seconds, models = ours(y, *sizes, starts)
        scores = [scored(model, y, regimes, held_out) for model in models[:STARTS]]
        results[f"pplgen, {starts} restarts as one program"] = seconds, scores
    if "SSM_PYTHON" in os.environ:
        seconds, models, labels = ssm(y, *sizes)
        scores = [scored(model, y, regimes, held_out) for model in models]
        own = [
            Score(accuracy(label, regimes.numpy()), score.held_out) for label, score in zip(labels, scores, strict=True)
        ]
        results["ssm, Laplace-EM"] = (seconds, own)
    rows = {}
    for name, (seconds, scores) in results.items():
        accuracies, nats = ([score[i] for score in scores] for i in (0, 1))
        within_tolerance = sum(
            best.accuracy - each.accuracy <= 0.02 and not best.held_out - each.held_out > 0.1 for each in scores
        )
        if not scores:
            rows[name] = ("every restart failed",)
            continue
        rows[name] = (
            f"{seconds:.1f}",
            f"{median(accuracies):.3f}",
            f"{min(accuracies):.3f}",
            f"{median(nats):.3f}" if len(held_out) else "",
            f"{min(nats):.3f}" if len(held_out) else "",
            f"{within_tolerance} of {len(scores)}" if len(held_out) else "",
        )
    note = (
        f"true parameters: {best.accuracy:.3f}, {best.held_out:.3f}" if len(held_out) else "scored by the data's labels"
    )
    headings = ("seconds per fit", "accuracy", "worst", "held-out nats per step", "worst", "within tolerance")
    report(
        title,
        headings,
        rows,
        {name: [tuple(score) for score in scores] for name, (_, scores) in results.items()},
        note=note,
    )


def main() -> None:
    """Compare on the simulated series and on the honey-bee dance."""
    for num_regimes in (2, 3):
        theta = truth(num_regimes)
        (y, regimes), (held_out, _) = simulated(theta, 1), simulated(theta, 2, HELD_OUT)
        best = scored(described(theta), y, regimes[0], held_out)
        title = f"Switching system from scratch, {num_regimes} regimes, T = {T}, D = {D}, E = {E}"
        compared(title, y, regimes[0], (num_regimes, D), held_out, best)
    for path in sorted(BEE.glob("bee_*.csv")):
        with path.open(encoding="utf-8") as file:
            rows = np.array(list(csv.reader(file))[1:], dtype=float)
        y, labels = torch.as_tensor(rows[None, :, :4]), torch.as_tensor(rows[:, 4]).long()
        for num_states in (2, 4):
            title = f"Honey-bee dance, {path.stem.removesuffix('_standardised_labelled')}, T = {len(rows)}"
            sizes, unknown = (3, num_states), Score(1.0, math.nan)
            compared(f"{title}, D = {num_states}", y, labels - labels.min(), sizes, y[:0], unknown)


if __name__ == "__main__":
    main()
