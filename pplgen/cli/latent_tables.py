"""What the commands for codes write as CSV."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from pplgen.cli.tables import latent_columns
from pplgen.data.columns import ColumnSelection
from pplgen.data.table import Table, load_selected
from pplgen.errors import InputError
from pplgen.fitting.result import Fit

__all__ = ["anomalies", "encoded", "imputed", "interpolated", "reconstructed", "traversed"]


def encoded(fit: Fit, data: Any, seed: int) -> pd.DataFrame:
    """Lay codes out: ``z_0``, ``z_1``, ..., their standard deviations ``z_sd_0``, ..."""
    return _numbered(latent_columns(fit, fit.encode(data, seed=seed)))


def reconstructed(fit: Fit, data: Any, seed: int) -> pd.DataFrame:
    """Lay reconstructions out under the data's columns."""
    return _named(fit, fit.reconstruct(data, seed=seed))


def imputed(fit: Fit, data: Any, num_draws: int, seed: int) -> pd.DataFrame:
    """Lay completed rows out, draw after draw."""
    if fit.story is not None and fit.story.takes_series:
        raise InputError("impute: series are filled in by 'pplgen predict'")
    drawn = fit.impute(data, draws=num_draws, seed=seed)
    frame = _named(fit, drawn.flatten(0, 1))
    if num_draws > 1:
        frame.insert(0, "draw", np.repeat(np.arange(1, num_draws + 1), drawn.shape[1]))
    return frame


def anomalies(fit: Fit, data: Any, held_out: Any, *, rate: float, draws: int, seed: int) -> pd.DataFrame:
    """Lay scores out, with p-values, whether a row is flagged, and the threshold."""
    found = fit.anomaly(data, held_out=held_out, rate=rate, draws=draws, seed=seed)
    columns = {name: found[name].values for name in ("score", "p_value", "flagged")}
    return _numbered(pd.DataFrame(columns).assign(threshold=float(found["threshold"])))


def interpolated(fit: Fit, data: Any, first: int, last: int, num: int, seed: int) -> pd.DataFrame:
    """Lay the steps between two rows out, rows counted from 1."""
    table = load_selected(data, ColumnSelection(training=fit.columns))
    for what, row in (("--from", first), ("--to", last)):
        if row > len(table):
            raise InputError(f"{what} {row}: {table.name} has {len(table)} rows")
    a, b = (Table(table.values[row - 1 : row], table.columns, table.name) for row in (first, last))
    frame = _named(fit, fit.interpolate(a, b, num, seed=seed)[:, 0])
    frame.insert(0, "share", np.linspace(0, 1, num))
    return frame


def traversed(fit: Fit, num: int, seed: int) -> pd.DataFrame:
    """Lay traversals out: the entry, the quantile and the value it takes, and the row that it is decoded to."""
    found = fit.traverse(num=num, seed=seed)
    frame = pd.DataFrame(found["x"].values.reshape(-1, len(fit.columns)), columns=list(fit.columns))
    frame.insert(0, "z", found["z"].values.ravel())
    frame.insert(0, "quantile", np.tile(found["quantile"].values, found.sizes["latent"]))
    frame.insert(0, "latent", np.repeat(found["latent"].values, num))
    return frame


def _named(fit: Fit, rows: Tensor) -> pd.DataFrame:
    """Put rows under the names of the training columns."""
    return pd.DataFrame(rows.numpy(), columns=list(fit.columns))


def _numbered(frame: pd.DataFrame) -> pd.DataFrame:
    """Add the number of each row, from 1."""
    frame.insert(0, "row", np.arange(1, len(frame) + 1))
    return frame
