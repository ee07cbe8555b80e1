"""Replicated data, generated in place of the rows and summarised draw by draw in bounded memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pplgen.compiler.vectorisation import map_draws
from pplgen.errors import InputError
from pplgen.story.conditioning import unconditioned
from pplgen.story.pair import Pair

__all__ = ["Replicates", "replicate", "tail_probability"]

MAX_COLUMNS = 64
"""Maximum number of columns per site, evenly spaced."""
MAX_VALUES = 2**22
"""Maximum number of replicated values in memory."""
TAIL = 0.05
"""Fraction of replicates to which the tail distribution is fitted."""
MOMENTS = ("mean", "sd", "min", "max", "skewness", "kurtosis")


@dataclass(frozen=True)
class Replicates:
    """Summary statistics of data and replicates, and a subset of the rows of both."""

    names: list[str]
    """Names of the statistics, such as ``sd of waiting``, or ``sd of x[1]`` if columns have no names."""
    observed: Tensor
    """Statistics of the data, shape ``(num_statistics,)``."""
    replicated: Tensor
    """Statistics of each replicate, shape ``(num_draws, num_statistics)``."""
    columns: list[str]
    """Names of the columns, such as ``waiting`` or ``x[1]``."""
    values: Tensor
    """Subset of the data's rows, NaN where missing, shape ``(num_subset, num_columns)``."""
    drawn: Tensor
    """The same rows of each replicate, shape ``(num_draws, num_subset, num_columns)``."""
    step: int
    """Spacing of the subset."""

    def p_values(self) -> Tensor:
        """Two-sided predictive p-value of each statistic, with an extrapolated tail, shape ``(num_statistics,)``."""
        above = tail_probability(self.replicated, self.observed)
        below = tail_probability(-self.replicated, -self.observed)
        return (2 * torch.minimum(above, below)).clamp_max(1.0)


def replicate(
    pair: Pair, rows: tuple[Any, ...], shared: Mapping[str, Tensor], num_draws: int, columns: Sequence[str] = ()
) -> Replicates:
    """Generate data in place of ``rows`` at draws of shared latents; call inside ``pair.isolated``.

    Row latents, and sites missing from ``shared``, are drawn from the model: a replicate consists of new rows (mixed
    replication, Marshall and Spiegelhalter 2003).

    Parameters
    ----------
    pair, rows
        The pair, and arguments of its model.
    shared
        Draws of shared latents, shape ``(num_draws, ...)`` each.
    num_draws
        Number of draws.
    columns
        Column names of the data, if any.

    Raises
    ------
    InputError
        If the model observes a single number.
    """
    series = pair.story is not None and pair.story.takes_series
    with torch.no_grad():
        observed_trace = poutine.trace(pair.model).get_trace(*rows)
    observed_values = {name: observed_trace.nodes[name]["value"] for name in pair.structure.observed}
    data = {name: value for name, value in observed_values.items() if value.numel() > 1}
    if not data:
        raise InputError("the model observes a single number, which cannot be replicated")
    model = unconditioned(pair.model)
    tables = {name: _columns(value) for name, value in data.items()}
    width = sum(table.shape[1] for table in tables.values())
    shortest = min(len(table) for table in tables.values())
    aligned = len({len(table) for table in tables.values()}) == 1 and not series
    step = max(1, -(-num_draws * shortest * width // MAX_VALUES))
    subset = slice(0, None if aligned else 0, step)

    def draw(latent: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        trace = poutine.trace(poutine.condition(model, latent)).get_trace(*rows)
        statistics, values = [], []
        for name, table in tables.items():
            new = torch.where(table.isnan(), torch.nan, _columns(trace.nodes[name]["value"]))
            statistics.append(_statistics(new, data[name], series))
            values.append(new[subset])
        return torch.cat(statistics), torch.cat(values, dim=1) if aligned else new[:0]

    replicated, drawn = map_draws(draw, num_draws, shared)
    labels = {name: _labels(name, table.shape[1], data[name], columns) for name, table in tables.items()}
    kinds = {name: _kinds(data[name], series) for name in tables}
    names = [
        f"{kind} of {label}"
        for name in tables
        for kind in kinds[name]
        for label in ([f"columns of {name}"] if kind == "correlation" else labels[name])
    ]
    column_names = [label for name in tables for label in labels[name]]
    values = torch.cat([table[subset] for table in tables.values()], dim=1) if aligned else torch.zeros(0, width)
    observed = torch.cat([_statistics(table, data[name], series) for name, table in tables.items()])
    return Replicates(names, observed, replicated, column_names, values, drawn, step)


def tail_probability(replicated: Tensor, observed: Tensor) -> Tensor:
    """Upper tail probability of the observed value under the replicates, extrapolated beyond them.

    The largest ``TAIL`` of the replicates are replaced by a generalised Pareto distribution, fitted by moments with a
    non-negative shape, which errs on the side of larger probabilities.

    Parameters
    ----------
    replicated
        Statistics of replicates, shape ``(num_draws, n)``.
    observed
        Statistics of the data, shape ``(n,)``.

    References
    ----------
    Knijnenburg, Wessels, Reinders and Shmulevich (2009), Fewer permutations, more accurate P-values.
    """
    replicated, observed = replicated.double(), observed.double()
    tail = max(2, round(TAIL * len(replicated)))
    counted = ((replicated >= observed).double().sum(0) + 1) / (len(replicated) + 1)
    top = replicated.topk(tail + 1, dim=0).values
    excess = top[:tail] - top[tail]
    mean, variance = excess.mean(0), excess.var(0)
    ratio = mean.square() / variance.clamp_min(1e-300)
    shape = ((1 - ratio) / 2).clamp(0, 0.5)
    scale = (mean * (1 + ratio) / 2).clamp_min(1e-300)
    beyond = (observed - top[tail]).clamp_min(0) / scale
    exponential = torch.exp(-beyond)
    pareto = (1 + shape * beyond).pow(-1 / shape.clamp_min(1e-12))
    extrapolated = tail / len(replicated) * torch.where(shape < 1e-6, exponential, pareto)
    return torch.where(observed > top[tail], torch.minimum(extrapolated, counted), counted)


def _columns(value: Tensor) -> Tensor:
    """Reshape a site to rows and at most ``MAX_COLUMNS`` columns; time steps count as rows."""
    table = (value[:, None] if value.ndim == 1 else value).reshape(-1, 1 if value.ndim == 1 else value.shape[-1])
    table = table if table.is_floating_point() else table.to(torch.get_default_dtype())
    return table[:, :: -(-table.shape[1] // MAX_COLUMNS)]


def _labels(name: str, width: int, value: Tensor, columns: Sequence[str]) -> list[str]:
    """Return the column names of a site."""
    if value.ndim == 1:
        return [name]
    step = -(-value.shape[-1] // MAX_COLUMNS)
    if len(columns) == value.shape[-1]:
        return list(columns[::step])
    return [f"{name}[{step * column}]" for column in range(width)]


def _kinds(like: Tensor, series: bool) -> tuple[str, ...]:
    """Statistics of a site, each of every column but the correlation; for binary data the mean is sufficient."""
    binary = bool(((like == 0) | (like == 1) | like.isnan()).all())
    kinds = ("mean",) if binary else (*MOMENTS, "autocorrelation") if series and like.ndim == 3 else MOMENTS
    return (*kinds, "correlation") if like.ndim > 1 and like.shape[-1] > 1 else kinds


def _statistics(table: Tensor, like: Tensor, series: bool) -> Tensor:
    """Compute the statistics of each column, ignoring NaN, ordered by statistic and then by column."""
    kinds = _kinds(like, series)
    mean = table.nanmean(0)
    centred = table - mean
    variance = centred.square().nanmean(0)
    standard = centred / variance.clamp_min(1e-30).sqrt()
    statistics = [mean]
    if "sd" in kinds:
        statistics += [
            variance.sqrt(),
            torch.where(table.isnan(), torch.inf, table).amin(0),
            torch.where(table.isnan(), -torch.inf, table).amax(0),
            standard.pow(3).nanmean(0),
            standard.pow(4).nanmean(0),
        ]
    if "autocorrelation" in kinds:
        steps = standard.reshape(*like.shape[:2], -1)
        statistics.append((steps[:, 1:] * steps[:, :-1]).flatten(0, 1).nanmean(0))
    if "correlation" in kinds:
        statistics.append(_mean_squared_correlation(standard)[None])
    return torch.cat(statistics)


def _mean_squared_correlation(standard: Tensor) -> Tensor:
    """Mean of squared correlations between different standardised columns, over rows where both are observed."""
    seen, filled = (~standard.isnan()).to(standard.dtype), standard.nan_to_num(nan=0.0)
    squares = (filled.mT @ filled / (seen.mT @ seen).clamp_min(1.0)).square()
    width = standard.shape[1]
    return (squares.sum() - squares.diagonal().sum()) / (width * (width - 1))
