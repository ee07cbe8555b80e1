"""Ranks of the true values among the draws of each fit."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from pplgen.calibration.result import Calibration
from pplgen.calibration.trials import Trials
from pplgen.inference.training_result import StopReason

__all__ = ["rank_truths"]


def rank_truths(name: str, trials: Trials, num_draws: int, seed: int) -> Calibration:
    """Rank every scalar, breaking ties at random; constants and duplicates of another scalar are dropped."""
    generator = np.random.default_rng(seed)
    quantities: list[str] = []
    columns: list[tuple[np.ndarray, ...]] = []
    for site, site_truths in trials.truths.items():
        values, draws = _flat(site_truths), _flat(trials.draws[site], 2)
        for label, truth, drawn in zip(trials.names[site], values.T, np.moveaxis(draws, -1, 0), strict=True):
            if np.ptp(truth) == 0 or any(np.array_equal(truth, column[0]) for column in columns):
                continue
            below, equal = (drawn < truth[:, None]).sum(1), (drawn == truth[:, None]).sum(1)
            ranks = below + generator.integers(0, equal + 1)
            quantities.append(label)
            columns.append((truth, ranks, drawn.mean(1), drawn.std(1, ddof=1)))
    truths, ranks, means, deviations = (np.stack(each, axis=1) for each in zip(*columns, strict=True))
    unconverged = sum(stop is not StopReason.CONVERGED for stop in trials.stops)
    return Calibration(
        name,
        tuple(quantities),
        ranks,
        num_draws,
        truths,
        means,
        deviations,
        trials.num_failed,
        unconverged,
        trials.path,
    )


def _flat(values: Tensor, leading: int = 1) -> np.ndarray:
    """Return float64 values with the axes after the ``leading`` ones flattened."""
    return values.detach().cpu().double().reshape(*values.shape[:leading], -1).numpy()
