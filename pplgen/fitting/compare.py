"""``compare``: several stories, or fits, on the same rows, ranked by leave-one-out predictive density."""

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
from pplgen.inference.arguments import read_rows
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
    """Rank stories by how well each predicts rows that it has not seen, best first.

    Parameters
    ----------
    candidates
        Stories, which are fitted here, or fits of the same rows, by a name for the table.
    data
        The rows, for stories among the candidates: whatever ``load_data`` takes, or ``load_series``.
    draws
        Posterior draws of each.
    with_bic
        Whether to add ``bic``, for those who ask; smaller is better there.
    **options
        As for ``fit``.

    Returns
    -------
    pandas.DataFrame
        ``elpd``: expected log predictive density of new rows in nats, by Pareto-smoothed importance sampling (LOO) of
        draws of the guide, weighed towards the posterior;
        ``elpd_diff``: the best's minus this one's, with its standard error ``dse``; ``se`` that of ``elpd``; ``p``: the
        effective number of parameters; ``weight``: of a stacked prediction; ``warning``: whether some row has a Pareto
        k above ``min(1 - 1 / log10(draws), .7)``, so that its term is not to be trusted.

    Raises
    ------
    InputError
        Where there are fewer than two candidates, a story comes without data, fits are of different rows, or these
        are a single series, for which there is ``Fit.leave_future_out``.

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
            raise InputError(f"candidate {name!r} is not fitted yet: give data")
        else:
            fits[name] = fit(candidate, table, **options)
    _require_same_rows(fits)
    for fitted in fits.values():
        _require_several(fitted.pair.num_rows, fitted.story)
    scores = {}
    for name, fitted in fits.items():
        if fitted.pair.weights is not None:
            raise InputError(f"candidate {name!r} was fitted to weighted rows, which cannot be left out one at a time")
        if fitted.pair.structure.why_no_row_densities():
            raise InputError(f"candidate {name!r} has no likelihood of single rows to compare")
        scores[name] = fitted.loo(draws=draws)
    with _arvizs_own_warnings():
        ranked = pd.DataFrame(arviz_stats.compare(scores))
    if with_bic:
        ranked["bic"] = [bic(fits[name]) for name in ranked.index]
    return ranked


def bic(fitted: Fit, *, draws: int = 1000) -> float:
    """Compute Schwarz's criterion ``-2 log p(x | mean) + P log N`` at the posterior mean; smaller is better.

    A row counts as often as its weight says, and N is the sum of the weights. P counts the scalars that all rows share,
    without those that constraints determine; discrete latents are summed out.
    """
    if not fitted.has_rows:
        raise InputError(f"{fitted.name}: its rows are not at hand to be scored; give them to pplgen.load")
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
def _arvizs_own_warnings() -> Iterator[None]:
    """Leave out what the table's last column says, and what pandas says of ArviZ."""
    with warnings.catch_warnings():
        for message in ("Estimated shape parameter", "The inplace keyword"):
            warnings.filterwarnings("ignore", message=message)
        yield


@torch.no_grad()
def _number_of_parameters(pair: Pair) -> int:
    """Count the unconstrained scalars of the latents that all rows share."""
    trace = poutine.trace(pair.model).get_trace(*pair.data)
    nodes = [trace.nodes[name] for name in pair.structure.shared_latent]
    return sum(biject_to(node["fn"].support).inv(node["value"]).numel() for node in nodes)


def _require_several(num_rows: int, story: Story | None) -> None:
    """Refuse a single series, which cannot be left out."""
    if story is not None and story.takes_series and num_rows == 1:
        raise InputError(
            "one series cannot be left out of the only one there is, so LOO does not rank stories by it; score each "
            "fit's one-step-ahead predictions with fit.leave_future_out() instead"
        )


def _require_same_rows(fits: Mapping[str, Fit]) -> None:
    """Refuse fits of different data, whose densities do not compare."""
    prints = {name: None if fitted.table is None else fitted.table.fingerprint for name, fitted in fits.items()}
    first, *others = prints
    for name in others:
        if prints[name] != prints[first]:
            raise InputError(f"candidates {first!r} and {name!r} were fitted to different data")
