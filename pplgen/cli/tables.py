"""CSV tables of the ``sample``, ``predict`` and ``forecast`` commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from pplgen.cli.shared_options import split_names
from pplgen.data.columns import ColumnSelection
from pplgen.data.series import load_selected_series
from pplgen.data.table import Table, load_selected
from pplgen.errors import InputError
from pplgen.fitting.result import Fit
from pplgen.storage import run_folder

__all__ = [
    "anomalies",
    "forecast",
    "identified",
    "latent_columns",
    "predicted",
    "read_rows",
    "sampled",
    "series_table",
    "write_csv",
]


def sampled(fit: Fit, num_rows: int, seed: int) -> pd.DataFrame:
    """Draw new rows; series in long form, numbered from 1 in a column ``series`` if there are several."""
    rows = fit.sample(num_rows, seed=seed)
    frame = pd.DataFrame(rows.flatten(0, -2).numpy(), columns=list(fit.columns))
    if rows.ndim == 3 and num_rows > 1:
        frame.insert(0, "series", np.repeat(np.arange(1, num_rows + 1), rows.shape[1]))
    return frame


def read_rows(
    fit: Fit,
    data: Any,
    *,
    by: str | None = None,
    identifiers: str | None = None,
    header: bool | None = None,
    carry_all: bool = False,
) -> Table:
    """Read the training columns of rows, or of series ``by`` a column, with what identifies them."""
    series = _takes_series(fit)
    if by is not None and not series:
        raise InputError(f"--series {by}: {fit.name} is not a story for series")
    if identifiers is not None and series:
        raise InputError(f"--id {identifiers}: {fit.name} is a story for series, which --series identifies")
    names = split_names(identifiers)
    selection = ColumnSelection(training=fit.columns, identifiers=names, carry_all=carry_all, header=header)
    dtype = fit.pair.dtype
    return (
        load_selected_series(data, selection, by, dtype=dtype)
        if series
        else load_selected(data, selection, dtype=dtype)
    )


def predicted(fit: Fit, table: Table) -> pd.DataFrame:
    """Return each row's log density and latent variables; for series, those of each step."""
    if _takes_series(fit):
        density = fit.filter(table)[["log_density"]]
        return series_table(density.merge(fit.smooth(table)), table)
    frame = latent_columns(fit, fit.latents(table))
    frame.insert(0, "log_density", fit.log_likelihood(table).cpu().numpy())
    return identified(frame, table)


def anomalies(
    fit: Fit, table: Table, held_out: Table, *, rate: float, draws: int, seed: int
) -> tuple[pd.DataFrame, str]:
    """Return scores with p-values, whether a row is flagged, and the threshold; and a sentence on the normal scores."""
    scores = fit.anomaly(table, held_out=held_out, rate=rate, draws=draws, seed=seed)
    columns = {name: scores[name].values for name in ("score", "p_value", "flagged")}
    threshold, normal = float(scores["threshold"]), scores["normal_score"].values
    low, median, high = np.quantile(normal, [0.05, 0.5, 0.95])
    message = (
        f"scores of the {len(normal)} held-out rows, in nats: median {median:.4g}, 90 % from {low:.4g} to {high:.4g}, "
        f"largest {normal.max():.4g}; the threshold is {threshold:.4g}, and {int(scores['flagged'].sum())} of "
        f"{len(table)} rows are beyond it"
    )
    return identified(pd.DataFrame(columns).assign(threshold=threshold), table), message


def identified(frame: pd.DataFrame, table: Table) -> pd.DataFrame:
    """Add to the results of rows, or of series, their numbers from 1, and their identifiers."""
    kind = "series" if table.values.ndim == 3 else "row"
    beside = [] if table.carried is None else [table.carried]
    return pd.concat([pd.Series(np.arange(1, len(frame) + 1), name=kind), *beside, frame], axis=1)


def forecast(fit: Fit, table: Table, *, horizon: int, draws: int, seed: int, with_states: bool = False) -> pd.DataFrame:
    """Forecast observations and regimes, and latent states if ``with_states``."""
    predicted = fit.forecast(horizon, table, draws=draws, seed=seed)
    states = [name for name in predicted.data_vars if str(name).startswith("state_")]
    return series_table(predicted if with_states else predicted.drop_vars(states), table)


def latent_columns(fit: Fit, latents: xr.Dataset) -> pd.DataFrame:
    """Return latent variables as columns: most probable value and probabilities, or mean and standard deviation.

    Values of text labels keep their names.
    """
    structure, columns = fit.pair.structure, dict[str, Any]()
    label_names = fit.facts.get("data", {}).get("label_names") or []
    for name, values in latents.items():
        label = str(values.dims[-1])
        parts = values.values.reshape(len(values), -1)
        suffixes = list(range(parts.shape[1]))
        if name in (*structure.enumerated, *structure.guide_enumerated):
            suffixes = [*label_names, *suffixes[len(label_names) :]]
            columns[label] = [suffixes[k] for k in parts.argmax(axis=1)]
        else:
            label = str(name)
        columns |= {f"{label}_{suffix}": parts[:, k] for k, suffix in enumerate(suffixes)}
    return pd.DataFrame(columns)


def series_table(results: xr.Dataset, table: Table) -> pd.DataFrame:
    """Return results for series in long form: one row per step, counted from 1, without padding.

    Columns are ``flow_mean``, ``flow_sd``, ``flow_lower`` and ``flow_upper`` for a data column ``flow``, the same for
    each state, the most probable regime, and each regime's probability.
    """
    num_series, num_steps = results.sizes["series"], results.sizes["time"]
    steps = results["step"].values if "step" in results.coords else np.tile(results["time"].values, (num_series, 1))
    columns: dict[str, np.ndarray] = {}
    if num_series > 1:
        columns["series"] = np.repeat(np.arange(1, num_series + 1), num_steps)
    names = [] if table.carried is None else [str(name) for name in table.carried]
    columns |= {name: np.repeat(table.carried[name].to_numpy(), num_steps) for name in names}  # type: ignore[index]
    columns["step"] = steps.reshape(-1) + 1
    for name, values in results.data_vars.items():
        flat = values.values.reshape(num_series * num_steps, -1)
        axis = str(values.dims[-1])
        if values.dims == ("series", "time"):
            columns[str(name)] = flat[:, 0]
        elif name == "regime_probability":
            mode = np.where(np.isnan(flat[:, 0]), 0, np.nan_to_num(flat).argmax(axis=1))
            columns |= {"regime": mode.astype(int), **{f"regime_{k}": flat[:, k] for k in range(flat.shape[1])}}
        elif values.dims == ("series", "time", axis):
            statistic = str(name).removeprefix("state_").removeprefix("y_")
            labels = [str(label) if axis == "feature" else f"{axis}_{label}" for label in results[axis].values]
            columns |= {f"{label}_{statistic}": flat[:, j] for j, label in enumerate(labels)}
    frame = pd.DataFrame(columns)
    value_columns = [name for name in frame if name not in ("series", "step", "regime", *names)]
    return frame[frame[value_columns].notna().any(axis=1)]


def _takes_series(fit: Fit) -> bool:
    """Return whether a fit is of series."""
    return fit.story is not None and fit.story.takes_series


def write_csv(frame: pd.DataFrame, out: Path | None, *, index: bool = False, digits: int = 6) -> None:
    """Write a table to a new file, or to standard output."""
    text = frame.to_csv(index=index, float_format=f"%.{digits}g")
    if out is None:
        print(text, end="")
    else:
        run_folder.write_new(out, text)
