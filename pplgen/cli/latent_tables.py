"""CSV tables of the latent-variable commands."""

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
    """Return latent means ``z_0``, ``z_1``, ... and standard deviations ``z_sd_0``, ..."""
    return _numbered(latent_columns(fit, fit.encode(data, seed=seed)))


def reconstructed(fit: Fit, data: Any, seed: int) -> pd.DataFrame:
    """Return reconstructions under the data's column names."""
    return _named(fit, fit.reconstruct(data, seed=seed))


def imputed(fit: Fit, data: Any, num_draws: int, seed: int) -> pd.DataFrame:
    """Return completed rows, draw after draw."""
    if fit.story is not None and fit.story.takes_series:
        raise InputError("impute: expected rows; for series use 'pplgen predict'")
    draws = fit.impute(data, draws=num_draws, seed=seed)
    frame = _named(fit, draws.flatten(0, 1))
    if num_draws > 1:
        frame.insert(0, "draw", np.repeat(np.arange(1, num_draws + 1), draws.shape[1]))
    return frame


def anomalies(fit: Fit, data: Any, held_out: Any, *, rate: float, draws: int, seed: int) -> pd.DataFrame:
    """Return scores with p-values, whether a row is flagged, and the threshold."""
    scores = fit.anomaly(data, held_out=held_out, rate=rate, draws=draws, seed=seed)
    columns = {name: scores[name].values for name in ("score", "p_value", "flagged")}
    return _numbered(pd.DataFrame(columns).assign(threshold=float(scores["threshold"])))


def interpolated(fit: Fit, data: Any, first: int, last: int, num: int, seed: int) -> pd.DataFrame:
    """Return the decoded steps between two rows, counted from 1."""
    table = load_selected(data, ColumnSelection(training=fit.columns))
    for option, row in (("--from", first), ("--to", last)):
        if row > len(table):
            raise InputError(f"{option} {row}: {table.name} has {len(table)} rows")
    a, b = (Table(table.values[row - 1 : row], table.columns, table.name) for row in (first, last))
    frame = _named(fit, fit.interpolate(a, b, num, seed=seed)[:, 0])
    frame.insert(0, "share", np.linspace(0, 1, num))
    return frame


def traversed(fit: Fit, num: int, seed: int) -> pd.DataFrame:
    """Return traversals: the latent dimension, its quantile and value, and the decoded row."""
    traversals = fit.traverse(num=num, seed=seed)
    frame = pd.DataFrame(traversals["x"].values.reshape(-1, len(fit.columns)), columns=list(fit.columns))
    frame.insert(0, "z", traversals["z"].values.ravel())
    frame.insert(0, "quantile", np.tile(traversals["quantile"].values, traversals.sizes["latent"]))
    frame.insert(0, "latent", np.repeat(traversals["latent"].values, num))
    return frame


def _named(fit: Fit, rows: Tensor) -> pd.DataFrame:
    """Return rows under the names of the training columns."""
    return pd.DataFrame(rows.numpy(), columns=list(fit.columns))


def _numbered(frame: pd.DataFrame) -> pd.DataFrame:
    """Add the number of each row, from 1."""
    frame.insert(0, "row", np.arange(1, len(frame) + 1))
    return frame
