"""Comparison of stories or fits on the same rows by leave-one-out predictive density."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import arviz_stats
import pandas as pd
import torch
from pyro import poutine
from torch.distributions import biject_to

from pplgen.errors import InputError
from pplgen.fitting.fit import fit
from pplgen.fitting.result import Fit
from pplgen.inference.model_arguments import read_rows
from pplgen.posterior.draws import draw_shared, row_densities
from pplgen.story.base import Story
from pplgen.story.isolation import seeded
from pplgen.story.pair import Pair

__all__ = ["bic", "compare"]


def compare(
    candidates: Mapping[str, Story | Fit],
    data: Any = None,
    *,
    draws: int = 1000,
    with_bic: bool = False,
    **options: Any,
) -> pd.DataFrame:
    """Rank stories by their expected log predictive density for new rows, best first.

    Parameters
    ----------
    candidates
        Stories, which are fitted here, or fits to the same rows, by their names in the table.
    data
        Rows to which stories among the candidates are fitted: any input of ``load_data`` or ``load_series``.
    draws
        Posterior draws per candidate.
    with_bic
        Whether to add a column ``bic``; smaller is better.
    **options
        Options of ``fit``.

    Returns
    -------
    pandas.DataFrame
        ``elpd``: expected log predictive density for new rows in nats, estimated by PSIS-LOO from draws of the guide,
        importance-weighted towards the posterior; ``se``: its standard error; ``elpd_diff``: that of the best minus
        this one's, with its standard error ``dse``; ``p``: effective number of parameters; ``weight``: stacking weight;
        ``warning``: whether some row has a Pareto k above ``min(1 - 1 / log10(draws), .7)``, so that its term is
        unreliable.

    Raises
    ------
    InputError
        If there are fewer than two candidates, a story has no data, fits are to different rows, or the data are a
        single series, for which ``Fit.leave_future_out`` is meant.

    References
    ----------
    Vehtari, Gelman and Gabry (2017), Practical Bayesian model evaluation using leave-one-out cross-validation and WAIC.
    """
    if len(candidates) < 2:
        raise InputError(f"{len(candidates)} candidates: expected at least two to compare")
    first = next((each for each in candidates.values() if isinstance(each, Story)), None)
    table = None if data is None or first is None else read_rows(first, data)
    if table is not None:
        _require_several(len(table), first)
    fits: dict[str, Fit] = {}
    for name, candidate in candidates.items():
        if isinstance(candidate, Fit):
            fits[name] = candidate
        elif table is None:
            raise InputError(f"candidate {name!r} is not fitted yet: expected data to fit it to")
        else:
            fits[name] = fit(candidate, table, **options)
    _require_same_rows(fits)
    for fitted in fits.values():
        _require_several(fitted.pair.num_rows, fitted.story)
    scores = {}
    for name, fitted in fits.items():
        if fitted.pair.weights is not None:
            raise InputError(f"candidate {name!r} was fitted to weighted rows, for which LOO is not defined")
        if fitted.pair.structure.why_no_row_densities():
            raise InputError(f"candidate {name!r} has no likelihood of single rows")
        scores[name] = fitted.loo(draws=draws)
    with _ignore_arviz_warnings():
        ranked = pd.DataFrame(arviz_stats.compare(scores))
    if with_bic:
        ranked["bic"] = [bic(fits[name]) for name in ranked.index]
    return ranked


def bic(fitted: Fit, *, draws: int = 1000) -> float:
    """Return the Bayesian information criterion ``-2 log p(x | mean) + P log N`` at the posterior mean (Schwarz 1978).

    Log densities of rows are multiplied by their weights, and N is the sum of the weights. P is the number of free
    scalar parameters shared by all rows; discrete latents are summed out. Smaller is better.
    """
    if not fitted.has_rows:
        raise InputError(f"{fitted.name}: BIC needs the training rows; give them to pplgen.load")
    pair = fitted.pair
    with seeded(fitted.seed), pair.isolated():
        shared = draw_shared(pair, draws)
        mean = {name: value.mean(dim=0, keepdim=True) for name, value in shared.items()}
        rows = row_densities(pair, mean, 1, pair.data).log_likelihood
        num_parameters = _number_of_parameters(pair)
    weights = torch.ones(1) if pair.weights is None else pair.weights
    counts = weights.double().expand(rows.shape[1])
    return float(-2 * (counts * rows[0].double()).sum() + num_parameters * counts.sum().log())


@contextlib.contextmanager
def _ignore_arviz_warnings() -> Iterator[None]:
    """Suppress ArviZ's Pareto k warning, which is a column of the table, and pandas' warning about ArviZ."""
    with warnings.catch_warnings():
        for message in ("Estimated shape parameter", "The inplace keyword"):
            warnings.filterwarnings("ignore", message=message)
        yield


@torch.no_grad()
def _number_of_parameters(pair: Pair) -> int:
    """Return the number of unconstrained scalars of the latents shared by all rows."""
    trace = poutine.trace(pair.model).get_trace(*pair.data)
    nodes = [trace.nodes[name] for name in pair.structure.shared_latent]
    return sum(biject_to(node["fn"].support).inv(node["value"]).numel() for node in nodes)


def _require_several(num_rows: int, story: Story | None) -> None:
    """Raise ``InputError`` for a single series, for which LOO is not defined."""
    if story is not None and story.takes_series and num_rows == 1:
        raise InputError(
            "LOO needs at least two series, and the data are one series; score each fit's one-step-ahead predictions "
            "with fit.leave_future_out() instead"
        )


def _require_same_rows(fits: Mapping[str, Fit]) -> None:
    """Raise ``InputError`` for fits to different data, whose densities are not comparable."""
    prints = {name: None if fitted.table is None else fitted.table.fingerprint for name, fitted in fits.items()}
    first, *others = prints
    for name in others:
        if prints[name] != prints[first]:
            raise InputError(f"candidates {first!r} and {name!r} were fitted to different data")
