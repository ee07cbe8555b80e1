"""What ``fit`` takes for options that depend on the story and the rows."""

from __future__ import annotations

import math
from typing import Any

from pplgen.latent import LatentStory
from pplgen.training import WINDOW

__all__ = ["rows_per_step", "steps_judged"]

STREAMED_ROWS = 10_000
"""Rows per step of a stream."""
CODED_ROWS, MANY_ROWS = 500, 10_000
"""Rows per step of a story with codes, whose every row passes two networks; and from how many rows in memory on."""


def rows_per_step(model: Any, num_rows: int, *, streamed: bool) -> int | None:
    """Return the batch size, ``None`` for all rows."""
    if isinstance(model, LatentStory) and (streamed or num_rows > MANY_ROWS):
        return min(CODED_ROWS, num_rows)
    return min(STREAMED_ROWS, num_rows) if streamed else None


def steps_judged(model: Any, num_rows: int, batch_size: int | None) -> int:
    """Return over how many steps the ELBO is averaged before its trend is judged.

    Networks go on learning where minibatches no longer tell, and a pass over all rows does.
    """
    if batch_size is None or not isinstance(model, LatentStory):
        return WINDOW
    return max(WINDOW, math.ceil(num_rows / batch_size))
