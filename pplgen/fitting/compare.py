"""Comparison of stories or fits on the same rows by cross-validated predictive density."""

from __future__ import annotations

import contextlib
import copy
import math
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import arviz_stats
import numpy as np
import pandas as pd
import torch
import xarray as xr
from arviz_stats.utils import ELPDData
from pyro import poutine
from torch import Tensor
from torch.distributions import biject_to

from pplgen.errors import InputError
from pplgen.fitting.cross_validation import k_fold
from pplgen.fitting.fit import fit
from pplgen.fitting.result import Fit
from pplgen.inference.model_arguments import read_rows
from pplgen.posterior.draws import draw_shared, row_densities
from pplgen.posterior.point_estimates import fitted_constants, require_densities
from pplgen.posterior.psis import GOOD_K
from pplgen.story.base import Story, check_choice
from pplgen.story.isolation import seeded
from pplgen.story.pair import Pair
from pplgen.story.state_space import series_lengths
from pplgen.timeseries.series_likelihood import log_likelihood

__all__ = ["METHODS", "bic", "compare", "cross_validate", "rank"]

METHODS = ("auto", "loo", "k-fold", "leave-future-out")
"""How candidates are scored."""


def compare(
    candidates: Mapping[str, Story | Fit],
    data: Any = None,
    *,
    method: Literal["auto", "loo", "k-fold", "leave-future-out"] = "auto",
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
    method
        How all candidates are scored. ``"loo"``: by PSIS-LOO from draws of the guide, importance-weighted towards the
        posterior. ``"k-fold"``: by ``pplgen.k_fold``, ten refits of each in one program. ``"leave-future-out"``: series
        by one-step-ahead predictions of the later half of the steps, the same for all. ``"auto"``: the last for series;
        ``"k-fold"`` if a candidate has constants that are fitted to the rows, whose density there is not one of new
        rows; else ``"loo"``.
    draws
        Posterior draws per candidate.
    with_bic
        Whether to add a column ``bic``; smaller is better.
    **options
        Options of ``fit``.

    Returns
    -------
    pandas.DataFrame
        ``elpd``: expected log predictive density for new rows in nats; ``se``: its standard error; ``elpd_diff``: that
        of the best minus this one's, with its standard error ``dse``; ``p``: effective number of parameters, or, of
        ``"k-fold"``, how much the density is higher where rows were fitted; ``weight``: stacking weight; ``warning``:
        whether some Pareto k is above ``min(1 - 1 / log10(draws), .7)``, so that its term is unreliable, or a fold did
        not converge. ``attrs["method"]`` is the method.

    Raises
    ------
    InputError
        If there are fewer than two candidates, a story has no data, fits are to different rows, or a candidate has no
        density of single rows, such as an autoencoder.

    References
    ----------
    Vehtari, Gelman and Gabry (2017), Practical Bayesian model evaluation using leave-one-out cross-validation and WAIC.
    """
    check_choice("method", method, METHODS)
    fits = _fitted(candidates, data, options)
    scores, chosen = cross_validate(fits, method, draws)
    ranked = rank(scores)
    if with_bic:
        ranked["bic"] = [bic(fits[name]) for name in ranked.index]
    ranked.attrs["method"] = chosen
    return ranked


def cross_validate(fits: Mapping[str, Fit], method: str, draws: int) -> tuple[dict[str, ELPDData], str]:
    """Estimate the expected log predictive density of each fit, all to the same rows; return the method too."""
    _require_same_rows(fits)
    for name, fitted in fits.items():
        if fitted.pair.weights is not None:
            raise InputError(f"candidate {name!r} was fitted to weighted rows, for which elpd is not defined")
        if fitted.pair.structure.why_no_row_densities():
            raise InputError(f"candidate {name!r} has no likelihood of single rows")
        with fitted.pair.isolated():
            require_densities(fitted.pair, f"candidate {name!r}")
    chosen = _method(fits) if method == "auto" else method
    if chosen == "leave-future-out":
        return _future_scores(fits, draws), chosen
    if chosen == "k-fold":
        seed = next(iter(fits.values())).seed  # the same folds for all
        return {name: k_fold(fitted, draws=draws, seed=seed) for name, fitted in fits.items()}, chosen
    return {name: fitted.loo(draws=draws) for name, fitted in fits.items()}, chosen


def rank(scores: Mapping[str, ELPDData]) -> pd.DataFrame:
    """Return ArviZ's comparison of scores, with stacking weights, best first."""
    # ArviZ takes exponentials of densities, which vanish for rows of many columns; weights depend on ratios alone
    best = np.max([_terms(each) for each in scores.values()], axis=0)
    shifted = {name: copy.copy(each) for name, each in scores.items()}
    for each in shifted.values():
        each["elpd_i"] = each["elpd_i"].copy(data=(_terms(each) - best).reshape(each["elpd_i"].shape))
    with _ignore_arviz_warnings():
        return pd.DataFrame(arviz_stats.compare(shifted))


def _terms(score: ELPDData) -> np.ndarray:
    """Return the terms of a score, shape ``(num_terms,)``."""
    return np.asarray(score["elpd_i"]).reshape(-1)


def _fitted(candidates: Mapping[str, Story | Fit], data: Any, options: dict[str, Any]) -> dict[str, Fit]:
    """Fit the stories among the candidates."""
    if len(candidates) < 2:
        raise InputError(f"{len(candidates)} candidates: expected at least two to compare")
    first = next((each for each in candidates.values() if isinstance(each, Story)), None)
    table = None if data is None or first is None else read_rows(first, data, dtype=options.get("dtype"))
    fits: dict[str, Fit] = {}
    for name, candidate in candidates.items():
        if isinstance(candidate, Fit):
            fits[name] = candidate
        elif table is None:
            raise InputError(f"candidate {name!r} is not fitted yet: expected data to fit it to")
        else:
            fits[name] = fit(candidate, table, **options)
            if fits[name].interrupted:
                raise KeyboardInterrupt  # an unfinished candidate would be ranked last
    return fits


def _method(fits: Mapping[str, Fit]) -> str:
    """Return the method that scores all fits."""
    if all(fitted.of_series for fitted in fits.values()):
        return "leave-future-out"
    for fitted in fits.values():
        with fitted.pair.isolated():
            if fitted.has_rows and fitted_constants(fitted.pair):
                return "k-fold"
    return "loo"


def _future_scores(fits: Mapping[str, Fit], draws: int) -> dict[str, ELPDData]:
    """Score one-step-ahead predictions of the same steps by all fits."""
    orders = [int(getattr(fitted.story, "order", 0)) for fitted in fits.values()]
    longest = int(series_lengths(next(iter(fits.values())).pair.data[0]).max())
    start = min(max(longest // 2, *orders), longest - 1)
    scored = {name: fitted.leave_future_out(start=start, draws=draws) for name, fitted in fits.items()}
    finite = np.all([np.isfinite(each.pointwise) for each in scored.values()], axis=0)
    scores = {}
    for name, each in scored.items():
        terms = each.pointwise[finite]
        total, se = float(terms.sum()), math.sqrt(len(terms) * float(terms.var()))
        pointwise = xr.DataArray(terms, dims=["step"], coords={"step": range(len(terms))})
        counts, warning = (draws, len(terms)), bool((each.pareto_k > GOOD_K).any())
        scores[name] = ELPDData("lfo", total, se, math.nan, *counts, "log", warning, GOOD_K, pointwise)
    return scores


def bic(fitted: Fit, *, draws: int = 1000) -> float:
    """Return the Bayesian information criterion ``-2 log p(x | mean) + P log N`` at the posterior mean (Schwarz 1978).

    Log densities of rows are multiplied by their weights, and N is the sum of the weights. P is the number of free
    scalar parameters shared by all rows, latents and fitted constants, also those that a rotation of the rows' latents
    leaves undetermined; discrete latents are summed out, the rows' latents integrated out. Smaller is better.
    """
    if not fitted.has_rows:
        raise InputError(f"{fitted.name}: BIC needs the training rows; give them to pplgen.load")
    pair = fitted.pair
    with seeded(fitted.seed), pair.isolated():
        require_densities(pair, "BIC")
        if shared := draw_shared(pair, draws):
            mean = {name: value.mean(dim=0, keepdim=True) for name, value in shared.items()}
            rows = row_densities(pair, mean, 1, pair.data).log_likelihood[0]
        else:
            rows = log_likelihood(pair, pair.data[: pair.num_arguments], draws).as_subclass(Tensor)
        num_parameters = _number_of_parameters(pair) + sum(each.numel() for each in fitted_constants(pair).values())
    weights = torch.ones(1) if pair.weights is None else pair.weights
    counts = weights.double().expand(len(rows))
    return float(-2 * (counts * rows.double()).sum() + num_parameters * counts.sum().log())


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


def _require_same_rows(fits: Mapping[str, Fit]) -> None:
    """Raise ``InputError`` for fits to different data, whose densities are not comparable."""
    prints = {name: None if fitted.table is None else fitted.table.fingerprint for name, fitted in fits.items()}
    first, *others = prints
    for name in others:
        if prints[name] != prints[first]:
            raise InputError(f"candidates {first!r} and {name!r} were fitted to different data")
