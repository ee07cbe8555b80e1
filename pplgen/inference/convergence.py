"""Convergence of a noisy ELBO: plateau detection over windows of steps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

__all__ = ["DECAY", "PATIENCE", "PLATEAUS", "WINDOW", "PlateauWatch", "has_diverged", "relative_drift"]

WINDOW = 100
"""Steps over which the ELBO is averaged."""
PATIENCE = 4
"""Minimum number of windows for a trend: the slope over up to twice as many windows."""
DECAY = 0.3
"""Factor on the learning rate at each plateau."""
LEAST_ERROR, LARGE_ERROR = 5.0, 0.2
"""Standard error of a final ELBO, in nats and relative to it, above which the run diverged."""
LEAST_LOSS, LARGE_LOSS = 50.0, 0.1
"""Distance of a final ELBO below an earlier window, in nats and relative to it, above which the run diverged."""
LARGEST_DRIFT, MAX_IGNORED = 0.25, 3
"""Relative drift of a parameter with which a plateau is ignored; maximum number of plateaus ignored per rate."""
MAX_WATCHED = 5000
"""Maximum number of parameters whose drift counts."""
PLATEAUS = 3
"""Number of plateaus, the last at DECAY^2 times the initial learning rate, at which a fit has converged."""


def has_diverged(history: Sequence[float], elbo: float, error: float) -> bool:
    """Whether a final ELBO shows that the run diverged.

    Either its Monte Carlo standard error is of the ELBO's own magnitude; or it is lower than the mean over an earlier
    window of steps, by more than a tenth of that mean and four standard errors.

    Parameters
    ----------
    history
        ELBO of each step, in nats.
    elbo, error
        Final ELBO and its standard error, in nats.
    """
    if error > max(LEAST_ERROR, LARGE_ERROR * abs(elbo)):
        return True
    windows = np.asarray(history[: len(history) // WINDOW * WINDOW]).reshape(-1, WINDOW).mean(1)
    best = float(windows.max()) if len(windows) else -math.inf
    return elbo + 4 * error < best - max(LEAST_LOSS, LARGE_LOSS * abs(best))


def relative_drift(vector: Tensor, average: Tensor, rate: float, num_steps: int) -> float:
    """Return the largest drift of a parameter over some steps of Adam, relative to the largest possible one.

    A parameter that moves steadily by the learning rate is half of its way from its average: 1. The ELBO may be flat
    within its noise while a scale still drifts. Parameters without drift have values about ``1 / sqrt(num_steps)``.

    Parameters
    ----------
    vector, average
        Parameters after the steps, and their mean over the steps, shape ``(P,)``; more than ``MAX_WATCHED`` count as
        without drift, since some weights of a network always drift.
    rate
        Learning rate.
    num_steps
        Number of steps.
    """
    if vector.numel() > MAX_WATCHED or not num_steps:
        return 0.0
    return float((vector - average).abs().max()) * 2 / (rate * num_steps)


class PlateauWatch:
    """Counts plateaus of a noisy ELBO: windows without a significantly positive slope."""

    def __init__(
        self,
        patience: int = WINDOW,
        means: Sequence[float] = (),
        plateaus: int = 0,
        pending: Sequence[float] = (),
        ignored: int = 0,
    ) -> None:
        self.patience, self.means, self.plateaus, self.pending = patience, list(means), plateaus, list(pending)
        self.ignored = ignored

    def count(self, drift: float) -> bool:
        """Count a plateau, unless parameters still drift; return whether the learning rate is to be lowered.

        Before the first plateau Adam's second moments remember the way from the start, so that a drift may be slow.
        """
        if self.plateaus and drift > LARGEST_DRIFT and self.ignored < MAX_IGNORED:
            self.ignored += 1
            return False
        self.plateaus, self.ignored = self.plateaus + 1, 0
        return True

    def plateau(self, window: list[float]) -> bool:
        """Add a window of ELBOs; return whether a plateau is reached, which also clears the windows."""
        window = self.pending + window
        self.pending = window if len(window) < self.patience else []
        if self.pending:
            return False
        self.means.append(float(np.mean(window)))
        if len(self.means) < PATIENCE:
            return False
        # float32 rounding of a sum is not an improvement
        error = max(float(np.std(window, ddof=1)) / math.sqrt(len(window)), 5e-7 * abs(self.means[-1]))
        recent = np.array(self.means[-2 * PATIENCE :])
        time = np.arange(len(recent)) - (len(recent) - 1) / 2
        slope, slope_error = time @ recent / (time @ time), error / math.sqrt(time @ time)
        if slope > 2 * slope_error:
            return False
        self.means.clear()
        return True
