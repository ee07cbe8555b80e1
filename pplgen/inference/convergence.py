"""Whether a noisy ELBO still rises, judged by windows of steps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

__all__ = ["DECAY", "PATIENCE", "PLATEAUS", "WINDOW", "PlateauWatch"]

WINDOW = 100
"""Steps over which the ELBO is averaged before it is judged."""
PATIENCE = 4
"""Windows at least before a trend is judged, by its slope over up to twice as many."""
DECAY = 0.3
"""Factor on the learning rate at each plateau."""
PLATEAUS = 3
"""Plateaus, the last at DECAY^2 of the first learning rate, after which a training has converged."""


class PlateauWatch:
    """Counts plateaus of a noisy ELBO, window by window."""

    def __init__(
        self, patience: int = WINDOW, means: Sequence[float] = (), plateaus: int = 0, pending: Sequence[float] = ()
    ) -> None:
        self.patience, self.means, self.plateaus, self.pending = patience, list(means), plateaus, list(pending)

    def plateau(self, window: list[float]) -> bool:
        """Take a window's ELBOs; return whether a plateau is reached, and start to look for the next one."""
        window = self.pending + window
        self.pending = window if len(window) < self.patience else []
        if self.pending:
            return False
        self.means.append(float(np.mean(window)))
        if len(self.means) < PATIENCE:
            return False
        # float32 rounding of a sum is no improvement either
        error = max(float(np.std(window, ddof=1)) / math.sqrt(len(window)), 5e-7 * abs(self.means[-1]))
        recent = np.array(self.means[-2 * PATIENCE :])
        time = np.arange(len(recent)) - (len(recent) - 1) / 2
        slope, slope_error = time @ recent / (time @ time), error / math.sqrt(time @ time)
        if slope > 2 * slope_error:
            return False
        self.means.clear()
        self.plateaus += 1
        return True
