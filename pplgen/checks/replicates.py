"""Replicated data: what a model generates in place of the rows, summarised draw by draw in bounded memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pplgen.compiler.vectorised import map_draws
from pplgen.errors import InputError
from pplgen.story.pair import Pair

__all__ = ["Replicates", "replicate", "tail_probability"]

COLUMNS = 64
"""Columns of a site that are looked at, evenly chosen ones of more."""
VALUES = 2**22
"""Replicated values that are kept."""
TAIL = 0.05
"""Share of replicates of which the tail beyond them is extrapolated."""
MOMENTS = ("mean", "sd", "min", "max", "skewness", "kurtosis")


@dataclass(frozen=True)
class Replicates:
    """Summaries of the data and of their replicates, and some rows of both."""

    names: list[str]
    """What was summarised, such as ``sd of waiting``, or ``sd of x[1]`` where columns have no names."""
    observed: Tensor
    """Summaries of the data, shape ``(num_summaries,)``."""
    replicated: Tensor
    """Summaries of each replicate, shape ``(num_draws, num_summaries)``."""
    columns: list[str]
    """The columns, such as ``waiting`` or ``x[1]``."""
    values: Tensor
    """Some rows of the data, NaN where missing, shape ``(num_kept, num_columns)``."""
    drawn: Tensor
    """The same rows of each replicate, shape ``(num_draws, num_kept, num_columns)``."""
    step: int
    """Distance between the rows that were kept."""

    def p_values(self) -> Tensor:
        """Two-sided predictive p-value of each summary, extrapolated beyond the replicates."""
        above = tail_probability(self.replicated, self.observed)
        below = tail_probability(-self.replicated, -self.observed)
        return (2 * torch.minimum(above, below)).clamp_max(1.0)


def replicate(
    pair: Pair, rows: tuple[Any, ...], shared: Mapping[str, Tensor], num_draws: int, columns: Sequence[str] = ()
) -> Replicates:
    """Generate data in place of ``rows`` at draws of what all rows share; call it inside ``pair.isolated``.

    Latents of single rows, and whatever is left out of ``shared``, are drawn from the model: a replicate holds new rows
    (mixed replication, Marshall and Spiegelhalter 2003).

    Parameters
    ----------
    pair, rows
        A pair, and arguments of its model.
    shared
        Draws, shape ``(num_draws, ...)`` each.
    num_draws
        How many.
    columns
        Names of the data's columns, where there are any.
    """
    series = pair.story is not None and pair.story.takes_series
    with torch.no_grad():
        given = poutine.trace(pair.model).get_trace(*rows)
    data = {n: given.nodes[n]["value"] for n in pair.structure.observed if given.nodes[n]["value"].numel() > 1}
    if not data:
        raise InputError("the model observes a single number")
    model = poutine.uncondition(pair.model)
    tables = {name: _columns(value) for name, value in data.items()}
    width = sum(table.shape[1] for table in tables.values())
    shortest = min(len(table) for table in tables.values())
    aligned = len({len(table) for table in tables.values()}) == 1 and not series
    step = max(1, -(-num_draws * shortest * width // VALUES))
    kept = slice(0, None if aligned else 0, step)

    def draw(latent: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        trace = poutine.trace(poutine.condition(model, latent)).get_trace(*rows)
        found, values = [], []
        for name, table in tables.items():
            new = torch.where(table.isnan(), torch.nan, _columns(trace.nodes[name]["value"]))
            found.append(_summaries(new, data[name], series))
            values.append(new[kept])
        return torch.cat(found), torch.cat(values, dim=1) if aligned else new[:0]

    replicated, drawn = map_draws(draw, num_draws, shared)
    labels = {name: _labels(name, table.shape[1], data[name], columns) for name, table in tables.items()}
    whats = {name: _kinds(data[name], series) for name in tables}
    names = [f"{what} of {label}" for name in tables for what in whats[name] for label in labels[name]]
    shown = [label for name in tables for label in labels[name]]
    values = torch.cat([table[kept] for table in tables.values()], dim=1) if aligned else torch.zeros(0, width)
    observed = torch.cat([_summaries(table, data[name], series) for name, table in tables.items()])
    return Replicates(names, observed, replicated, shown, values, drawn, step)


def tail_probability(replicated: Tensor, observed: Tensor) -> Tensor:
    """Probability that a replicate reaches the observed value, beyond all replicates too.

    Beyond the last ``TAIL`` of the replicates it follows a generalised Pareto distribution, fitted to them by moments
    with a shape of at least zero, which errs on the side of larger probabilities.

    Parameters
    ----------
    replicated
        Shape ``(num_draws, n)``.
    observed
        Shape ``(n,)``.

    References
    ----------
    Knijnenburg, Wessels, Reinders and Shmulevich (2009), Fewer permutations, more accurate P-values.
    """
    replicated, observed = replicated.double(), observed.double()
    number = max(2, round(TAIL * len(replicated)))
    counted = ((replicated >= observed).double().sum(0) + 1) / (len(replicated) + 1)
    top = replicated.topk(number + 1, dim=0).values
    excess = top[:number] - top[number]
    mean, variance = excess.mean(0), excess.var(0)
    ratio = mean.square() / variance.clamp_min(1e-300)
    shape = ((1 - ratio) / 2).clamp(0, 0.5)
    scale = (mean * (1 + ratio) / 2).clamp_min(1e-300)
    beyond = (observed - top[number]).clamp_min(0) / scale
    exponential = torch.exp(-beyond)
    pareto = (1 + shape * beyond).pow(-1 / shape.clamp_min(1e-12))
    extrapolated = number / len(replicated) * torch.where(shape < 1e-6, exponential, pareto)
    return torch.where(observed > top[number], torch.minimum(extrapolated, counted), counted)


def _columns(value: Tensor) -> Tensor:
    """Lay a site out as rows and at most ``COLUMNS`` columns; time is among the rows."""
    table = (value[:, None] if value.ndim == 1 else value).reshape(-1, 1 if value.ndim == 1 else value.shape[-1])
    table = table if table.is_floating_point() else table.to(torch.get_default_dtype())
    return table[:, :: -(-table.shape[1] // COLUMNS)]


def _labels(name: str, width: int, value: Tensor, columns: Sequence[str]) -> list[str]:
    """Name the columns of a site."""
    if value.ndim == 1:
        return [name]
    step = -(-value.shape[-1] // COLUMNS)
    if len(columns) == value.shape[-1]:
        return list(columns[::step])
    return [f"{name}[{step * column}]" for column in range(width)]


def _kinds(like: Tensor, series: bool) -> tuple[str, ...]:
    """Which summaries a site has: of zeros and ones the mean says all."""
    binary = bool(((like == 0) | (like == 1) | like.isnan()).all())
    return ("mean",) if binary else (*MOMENTS, "autocorrelation") if series and like.ndim == 3 else MOMENTS


def _summaries(table: Tensor, like: Tensor, series: bool) -> Tensor:
    """Summarise each column of a table in which NaN is missing, those of one kind side by side."""
    kinds = _kinds(like, series)
    mean = table.nanmean(0)
    if len(kinds) == 1:
        return mean
    around = table - mean
    variance = around.square().nanmean(0)
    standard = around / variance.clamp_min(1e-30).sqrt()
    found = [
        mean,
        variance.sqrt(),
        torch.where(table.isnan(), torch.inf, table).amin(0),
        torch.where(table.isnan(), -torch.inf, table).amax(0),
        standard.pow(3).nanmean(0),
        standard.pow(4).nanmean(0),
    ]
    if "autocorrelation" in kinds:
        steps = standard.reshape(*like.shape[:2], -1)
        found.append((steps[:, 1:] * steps[:, :-1]).flatten(0, 1).nanmean(0))
    return torch.cat(found)
