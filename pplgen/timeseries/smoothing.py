"""Filtering and smoothing distributions of states and regimes, averaged over draws of the parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from pplgen.exact.hmm import forward_backward
from pplgen.exact.kalman import Filtered
from pplgen.exact.kalman_scan import kalman_filter_scan, rts_smoother_scan
from pplgen.exact.linear_gaussian import matvec
from pplgen.exact.switching import SwitchingFiltered, collapse, kim_filter
from pplgen.posterior.datatree import INTERVAL
from pplgen.posterior.draws import draw_shared
from pplgen.posterior.moments import GaussianMixtures, weighted_moments, weighted_quantile
from pplgen.story.dynamics import HiddenMarkov, LinearGaussian, SwitchingLinearGaussian
from pplgen.story.pair import Pair
from pplgen.story.state_space import step_mask
from pplgen.timeseries.parameter_draws import Latents, draw_chunks, first_model, select_draws, transitions
from pplgen.timeseries.state_paths import (
    Paths,
    WeightedPaths,
    draw_hidden_states,
    draw_paths,
    draw_weighted_paths,
    fill_missing,
)

__all__ = [
    "filter_densities",
    "filter_series",
    "kim_at_draws",
    "path_variables",
    "series_dataset",
    "smooth_series",
    "summarise_draws",
]

Variables = dict[str, tuple[tuple[str, ...], Tensor]]
"""Variables of a dataset: dimensions and values by name."""
TAIL = (1 - INTERVAL) / 2
"""Probability in each tail of an interval."""
MAX_IMPUTED = 100
"""Largest number of draws used to summarise missing entries of hidden Markov stories."""


def filter_series(pair: Pair, data: tuple[Any, ...], columns: Sequence[str], num_draws: int) -> xr.Dataset:
    """Filter: moments of each step given the series up to it; call it inside ``pair.isolated``.

    Parameters
    ----------
    pair
        Pair of a state space story.
    data
        Arguments of model and guide, the series first.
    columns
        Names of the data's columns.
    num_draws
        Number of draws of the parameters, equally weighted except in ``log_density``.

    Returns
    -------
    xarray.Dataset
        States, signal and regimes as in ``smooth_series``, and ``log_density`` with dimensions ``(series, time)``: the
        one-step-ahead density ``log p(y_t | y_1:t-1)`` in nats,
        ``log mean_s p(y_1:t | theta_s) - log mean_s p(y_1:t-1 | theta_s)``, which weights draws by the series' past and
        sums to the log-likelihood of the series. It is valid for new series only, since the draws depend on the future
        of the training series; for these use ``leave_future_out``.
    """
    y = data[0]
    latents = draw_shared(pair, num_draws)
    num_draws = num_draws if latents else 1
    state, signal, regimes, densities = GaussianMixtures(), GaussianMixtures(), [], []
    estimator = "exact"
    for _, subset, model in draw_chunks(pair, y, latents, num_draws):
        if isinstance(model, LinearGaussian):
            filtered = kalman_filter_scan(y.double(), model)
            densities.append(filtered.log_densities)
            _add_gaussians(state, signal, filtered.mean, filtered.covariance, model)
        elif isinstance(model, HiddenMarkov):
            posterior = forward_backward(model.log_emission, model.chain)
            densities.append(posterior.log_densities)
            regimes.append(_by_regime(posterior.filtered, model.regimes))
        else:
            estimator = "Kim's filter"
            kim = kim_at_draws(pair, y, subset, model)
            densities.append(kim.log_densities)
            regimes.append(kim.probabilities)
            state.add(*collapse(kim.probabilities, kim.mean, kim.covariance))
            C, d = model.C.unsqueeze(2), model.d.unsqueeze(2)
            signal.add(*collapse(kim.probabilities, matvec(C, kim.mean) + d, C @ kim.covariance @ C.mT))
    parts = {**_summarise_mixtures("state", state), **_summarise_mixtures("y", signal)}
    if regimes:
        parts["regime_probability"] = (("series", "time", "regime"), torch.cat(regimes).mean(dim=0))
    past = torch.cat(densities).cumsum(dim=-1)
    cumulative = past.logsumexp(dim=0) - math.log(num_draws)
    parts["log_density"] = (("series", "time"), torch.cat([cumulative[:, :1], cumulative.diff(dim=-1)], -1))
    return series_dataset(parts, columns, y, estimator=estimator)


def smooth_series(
    pair: Pair, data: tuple[Any, ...], columns: Sequence[str], num_draws: int, *, keep_draws: bool = False
) -> xr.Dataset:
    """Smooth: moments of each step given the whole series; call it inside ``pair.isolated``.

    Parameters
    ----------
    pair, data, columns
        As for ``filter_series``.
    num_draws
        Number of equally weighted draws of the parameters; for a switching story, of whole paths.
    keep_draws
        Whether to add posterior draws of whole series as ``state_draw``, ``regime_draw`` and ``y_draw``.

    Returns
    -------
    xarray.Dataset
        Dimensions ``(series, time, ...)``: for the state ``state_mean``, ``state_sd``, ``state_covariance`` and the
        90 % interval from ``state_lower`` to ``state_upper``; for the signal, the noise-free observation, ``y_mean``,
        ``y_sd``, ``y_lower`` and ``y_upper``; and ``regime_probability``. A hidden Markov story has no signal: its
        ``y_mean`` is the series with missing entries imputed. Steps past the end of a shorter series are NaN. The
        attribute ``estimator`` names the method; for a switching story ``pareto_k`` and ``effective_draws`` diagnose
        the weights of each series (k means little where nearly all draws are effective).
    """
    y = data[0]
    latents = draw_shared(pair, num_draws)
    first = first_model(pair, y, latents)
    if isinstance(first, SwitchingLinearGaussian):
        weighted = draw_weighted_paths(pair, y, latents, num_draws)
        attributes: dict[str, Any] = {
            "estimator": weighted.estimator,
            "pareto_k": weighted.pareto_k.tolist(),
            "effective_draws": weighted.effective_draws.tolist(),
        }
        parts, paths = _summarise_weighted(weighted), weighted.resampled(num_draws) if keep_draws else None
    else:
        attributes = {"estimator": "exact"}
        if isinstance(first, LinearGaussian):
            parts = _smoothed_gaussian(pair, y, latents, num_draws)
        else:
            parts = _smoothed_chain(pair, y, latents, num_draws)
        paths = draw_paths(pair, y, latents, num_draws) if keep_draws else None
    if paths is not None:
        parts |= path_variables(paths)
    return series_dataset(parts, columns, y, **attributes)


def filter_densities(pair: Pair, y: Tensor, latents: Latents, num_draws: int) -> tuple[Tensor, str]:
    """Return ``log p(y_t | y_1:t-1, theta)`` in nats, shape ``(num_draws, num_series, T)``, and the estimator."""
    densities, estimator = [], "exact"
    for _, subset, model in draw_chunks(pair, y, latents, num_draws):
        if isinstance(model, LinearGaussian):
            densities.append(kalman_filter_scan(y.double(), model).log_densities)
        elif isinstance(model, HiddenMarkov):
            densities.append(forward_backward(model.log_emission, model.chain).log_densities)
        else:
            densities.append(kim_at_draws(pair, y, subset, model).log_densities)
            estimator = "Kim's filter"
    return torch.cat(densities), estimator


def kim_at_draws(pair: Pair, y: Tensor, latents: Latents, model: SwitchingLinearGaussian) -> SwitchingFiltered:
    """Run Kim's filter at each draw, with transitions that may depend on the state."""
    return kim_filter(y.double(), model, log_transition=transitions(pair, latents, model))


def series_dataset(
    parts: Variables, columns: Sequence[str], y: Tensor, *, first_step: int | None = None, **attributes: Any
) -> xr.Dataset:
    """Build a labelled dataset; NaN past the series' ends, unless the time axis starts at ``first_step``."""
    within = step_mask(y)
    variables = {}
    for name, (dims, values) in parts.items():
        if first_step is None:
            mask = within.reshape(*within.shape, *(1,) * (len(dims) - 1 - dims.index("time")))
            values = torch.where(mask, values.double(), torch.nan)
        variables[name] = (dims, values.cpu().numpy())
    dataset = xr.Dataset(variables, attrs=attributes)
    labels: dict[str, Any] = {str(dim): range(size) for dim, size in dataset.sizes.items()}
    if "feature" in labels:
        labels["feature"] = list(columns)
    if first_step is not None:
        labels["time"] = range(first_step, first_step + dataset.sizes["time"])
    return dataset.assign_coords(labels)


def summarise_draws(name: str, axis: str, values: Tensor, weights: Tensor) -> Variables:
    """Summarise weighted draws of vectors, shapes ``(num_draws, num_series, T, D)`` and ``(num_draws, ...)``."""
    mean, covariance = weighted_moments(values, weights)
    lower, upper = (weighted_quantile(values, weights, p) for p in (TAIL, 1 - TAIL))
    return _summary(name, axis, mean, covariance, lower, upper)


def _smoothed_gaussian(pair: Pair, y: Tensor, latents: Latents, num_draws: int) -> Variables:
    """Run the Rauch-Tung-Striebel smoother at each draw of a linear Gaussian story."""
    state, signal = GaussianMixtures(), GaussianMixtures()
    for _, _, model in draw_chunks(pair, y, latents, num_draws if latents else 1):
        filtered: Filtered = kalman_filter_scan(y.double(), model)
        smoothed = rts_smoother_scan(filtered, model)
        _add_gaussians(state, signal, smoothed.mean, smoothed.covariance, model)
    return {**_summarise_mixtures("state", state), **_summarise_mixtures("y", signal)}


def _smoothed_chain(pair: Pair, y: Tensor, latents: Latents, num_draws: int) -> Variables:
    """Run the forward-backward algorithm at each draw of a hidden Markov story, and impute missing entries."""
    smoothed = [
        _by_regime(forward_backward(model.log_emission, model.chain).smoothed, model.regimes)
        for _, _, model in draw_chunks(pair, y, latents, num_draws if latents else 1)
    ]
    parts: Variables = {"regime_probability": (("series", "time", "regime"), torch.cat(smoothed).mean(dim=0))}
    number = min(num_draws, MAX_IMPUTED)
    subset = select_draws(latents, slice(number))
    hidden, _ = draw_hidden_states(pair, y, subset, number)
    filled = fill_missing(pair, y, hidden, subset).double()
    return parts | summarise_draws("y", "feature", filled, filled.new_full((number, 1, 1), 1 / number))


def _summarise_weighted(weighted: WeightedPaths) -> Variables:
    """Summarise weighted paths of a switching story."""
    states, _, signal, _ = weighted.paths
    assert states is not None and signal is not None, "a switching story has states"  # noqa: PT018
    weights = weighted.weights.unsqueeze(-1)
    regimes = (weights.unsqueeze(-1) * weighted.probabilities).sum(dim=0)
    parts = summarise_draws("state", "state", states, weights) | summarise_draws("y", "feature", signal, weights)
    return {**parts, "regime_probability": (("series", "time", "regime"), regimes)}


def path_variables(paths: Paths) -> Variables:
    """Variables that hold draws of whole series."""
    dims = ("draw", "series", "time")
    parts: Mapping[str, tuple[tuple[str, ...], Tensor | None]] = {
        "state_draw": ((*dims, "state"), paths.states),
        "regime_draw": (dims, paths.regimes),
        "y_draw": ((*dims, "feature"), paths.y),
    }
    return {name: (axes, values) for name, (axes, values) in parts.items() if values is not None}


def _add_gaussians(
    state: GaussianMixtures, signal: GaussianMixtures, mean: Tensor, covariance: Tensor, model: Any
) -> None:
    """Add Gaussians of the state x and of the signal C x + d to mixtures over draws."""
    state.add(mean, covariance)
    signal.add(matvec(model.C, mean) + model.d, model.C @ covariance @ model.C.mT)


def _summarise_mixtures(name: str, mixtures: GaussianMixtures) -> Variables:
    """Summarise mixtures of Gaussians; empty without components."""
    if mixtures.empty:
        return {}
    quantiles = (mixtures.quantile(p) for p in (TAIL, 1 - TAIL))
    return _summary(name, "feature" if name == "y" else name, *mixtures.moments(), *quantiles)


def _summary(name: str, axis: str, mean: Tensor, covariance: Tensor, lower: Tensor, upper: Tensor) -> Variables:
    """Name the summaries of a vector; covariances for states only."""
    dims = ("series", "time", axis)
    sd = covariance.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
    values = {"mean": mean, "sd": sd, "lower": lower, "upper": upper}
    parts: Variables = {f"{name}_{what}": (dims, value) for what, value in values.items()}
    if axis == "state":
        parts["state_covariance"] = ((*dims, "state_other"), covariance)
    return parts


def _by_regime(probabilities: Tensor, regimes: Tensor) -> Tensor:
    """Sum the probabilities of the hidden states of each regime."""
    return probabilities @ torch.nn.functional.one_hot(regimes).to(probabilities)
