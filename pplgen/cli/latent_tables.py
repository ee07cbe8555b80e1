"""CSV tables of the latent-variable commands."""

from __future__ import annotations

import numpy as np
import pandas as pd
from torch import Tensor

from pplgen.cli.tables import identified, latent_columns
from pplgen.data.table import Table
from pplgen.errors import InputError
from pplgen.fitting.result import Fit

__all__ = ["encoded", "imputed", "interpolated", "reconstructed", "traversed"]


def encoded(fit: Fit, table: Table, seed: int) -> pd.DataFrame:
    """Return latent means ``z_0``, ``z_1``, ... and standard deviations ``z_sd_0``, ..."""
    return identified(latent_columns(fit, fit.encode(table, seed=seed)), table)


def reconstructed(fit: Fit, table: Table, seed: int) -> pd.DataFrame:
    """Return reconstructions under the data's column names, after the identifiers."""
    frame = _named(fit, fit.reconstruct(table, seed=seed))
    return frame if table.carried is None else pd.concat([table.carried, frame], axis=1)


def imputed(fit: Fit, table: Table, num_draws: int, seed: int) -> pd.DataFrame:
    """Return completed tables, draw after draw: all columns of the source, whose cells change only where missing."""
    if fit.story is not None and fit.story.takes_series:
        raise InputError("impute: expected rows; for series use 'pplgen predict'")
    draws = fit.impute(table, draws=num_draws, seed=seed)
    missing = table.values.isnan().numpy()
    whole = table.carried if table.carried is not None else _named(fit, table.values)
    completed = [_filled(whole, table.columns, missing, draw.numpy()) for draw in draws]
    frame = pd.concat(completed, ignore_index=True)
    if num_draws > 1:
        frame.insert(0, "draw", np.repeat(np.arange(1, num_draws + 1), draws.shape[1]))
    return frame


def _filled(whole: pd.DataFrame, columns: tuple[str, ...], missing: np.ndarray, draw: np.ndarray) -> pd.DataFrame:
    """Return a table whose missing cells are those of a draw."""
    filled = {}
    for name in whole:
        cells = whole[name].to_numpy(dtype=object)
        if str(name) in columns:
            j = columns.index(str(name))
            cells = np.where(missing[:, j], draw[:, j].astype(object), cells)
        filled[str(name)] = cells
    return pd.DataFrame(filled, dtype=object)


def interpolated(fit: Fit, table: Table, first: int, last: int, num: int, seed: int) -> pd.DataFrame:
    """Return the decoded steps between two rows, counted from 1."""
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
