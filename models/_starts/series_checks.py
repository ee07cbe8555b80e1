"""Checks of entries of series, shape ``(num_series, num_steps, D)``."""

from __future__ import annotations

import torch
from torch import Tensor

from pplgen.story.base import InputError
from pplgen.story.state_space import step_mask


def check_entries(kind: str, y: Tensor, num_categories: int | None) -> None:
    """Raise ``InputError`` for the first entry that is not a count or category, if emissions of this kind are."""
    if kind not in ("categorical", "poisson"):
        return
    invalid, expected = (y < 0) | (y != y.round()), "a count 0, 1, 2, ..."
    if num_categories is not None:
        invalid, expected = invalid | (y >= num_categories), f"a whole number below num_categories={num_categories}"
    entries = torch.argwhere(invalid & y.isfinite())
    if len(entries):
        i, t, j = entries[0].tolist()
        raise InputError(f"series {i + 1}, step {t + 1}, column {j + 1}: {y[i, t, j].item():g}: expected {expected}")


def check_no_gaps(y: Tensor, story: str) -> None:
    """Raise ``InputError`` for series of one column with missing steps before their end, which ``story`` lacks."""
    missing = y[..., 0].isnan() & step_mask(y)
    if missing.any():
        i, t = missing.nonzero()[0].tolist()
        if n := int((~y[i, :, 0].isnan()).nonzero()[0]):
            leading = "a missing step; drop it" if n == 1 else f"{n} missing steps; drop them"
            raise InputError(f"series {i + 1} starts with {leading}")
        where = f"series {i + 1}, step {t + 1}: the value is missing inside the series"
        raise InputError(f"{where}, which {story} cannot marginalise; use SwitchingLDS")
