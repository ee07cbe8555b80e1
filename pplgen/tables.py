"""What the command line writes as CSV."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from pplgen import store
from pplgen.data import Table
from pplgen.fitted import Fit

__all__ = ["latent_columns", "write_csv"]


def latent_columns(fit: Fit, table: Table) -> pd.DataFrame:
    """Lay the rows' latents out as columns: the likeliest value and the probability of each, or mean and sd."""
    columns: dict[str, Any] = {}
    latents = fit.latents(table)
    for name, values in latents.items():
        label = str(values.dims[-1])
        if name in fit.pair.structure.enumerated:
            columns[label] = values.values.argmax(axis=1)
        else:
            label = str(name)
        parts = values.values.reshape(len(values), -1)
        columns |= {f"{label}_{k}": parts[:, k] for k in range(parts.shape[1])}
    return pd.DataFrame(columns)


def write_csv(frame: pd.DataFrame, out: Path | None, *, index: bool = False) -> None:
    """Write a table to a new file, or to standard output, six digits."""
    text = frame.to_csv(index=index, float_format="%.6g")
    if out is None:
        print(text, end="")
    else:
        store.write_new(out, text)
