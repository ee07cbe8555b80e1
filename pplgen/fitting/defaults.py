"""What ``fit`` takes for options that depend on the story and the rows."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from pplgen.inference.convergence import WINDOW
from pplgen.story.latent import LatentStory

__all__ = ["default_batch_size", "default_patience", "explicit_options"]

STREAMED_ROWS = 10_000
"""Rows per step of a stream."""
CODED_ROWS, MANY_ROWS = 500, 10_000
"""Rows per step of a story with codes, whose every row passes two networks; and from how many rows in memory on."""


NOT_TOLD = frozenset({"seed", "device", "checkpoint", "checkpoint_every", "progress"})
"""Options that change nothing of a fit, and the seed, which it tells itself."""


def default_batch_size(model: Any, num_rows: int, *, streamed: bool) -> int | None:
    """Return the batch size, ``None`` for all rows."""
    if isinstance(model, LatentStory) and (streamed or num_rows > MANY_ROWS):
        return min(CODED_ROWS, num_rows)
    return min(STREAMED_ROWS, num_rows) if streamed else None


def default_patience(model: Any, num_rows: int, batch_size: int | None) -> int:
    """Return over how many steps the ELBO is averaged before its trend is judged.

    Networks go on learning where minibatches no longer tell, and a pass over all rows does.
    """
    if batch_size is None or not isinstance(model, LatentStory):
        return WINDOW
    return max(WINDOW, math.ceil(num_rows / batch_size))


def explicit_options(function: Callable[..., Any], call: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a call that say what was done and are not the defaults, ``None`` for no plain value."""
    given = {}
    for name, parameter in inspect.signature(function).parameters.items():
        value = call[name]
        if parameter.kind is parameter.KEYWORD_ONLY and name not in NOT_TOLD and value is not None:
            plain = value if isinstance(value, (bool, int, float, str)) else None
            if plain is None or plain != parameter.default:
                given[name] = plain
    return given
