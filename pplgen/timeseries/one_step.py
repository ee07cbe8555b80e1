"""One-step-ahead predictive distributions of series: the probability of each step below its value, given the past."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import torch
import xarray as xr
from pyro import poutine
from torch import Tensor

from pplgen.compiler.vectorisation import map_draws
from pplgen.errors import InputError
from pplgen.exact.hmm import forward_backward
from pplgen.exact.kalman_scan import kalman_filter_scan
from pplgen.exact.linear_gaussian import matvec
from pplgen.posterior.draws import draw_shared
from pplgen.posterior.residuals import quantile_residuals
from pplgen.story.dynamics import HiddenMarkov, LinearGaussian, SwitchingLinearGaussian
from pplgen.story.pair import Pair
from pplgen.story.shared_sites import row_distribution
from pplgen.timeseries.parameter_draws import Latents, draw_chunks, series_story, transitions
from pplgen.timeseries.smoothing import kim_at_draws, series_dataset

__all__ = ["one_step_pit", "series_residuals"]


def series_residuals(pair: Pair, data: tuple[Any, ...], columns: Sequence[str], num_draws: int) -> xr.Dataset:
    """Return one-step-ahead residuals of series; call it inside ``pair.isolated``.

    Parameters
    ----------
    pair, data, columns
        As for ``pplgen.timeseries.smoothing.filter_series``.
    num_draws
        Number of draws of the parameters, over which the predictive probabilities are averaged.

    Returns
    -------
    xarray.Dataset
        Dimensions ``(series, time, feature)``: ``probability``, ``P(y_rep <= y_tj | y_1:t-1)``, and ``residual``, its
        standard normal quantile. Under the model residuals are standard normal and independent over steps. NaN where an
        entry is missing or a step is conditioned on.

    Raises
    ------
    InputError
        As for ``one_step_pit``.
    """
    y = data[0]
    pit = one_step_pit(pair, y, draw_shared(pair, num_draws), num_draws)
    dims = ("series", "time", "feature")
    return series_dataset({"residual": (dims, quantile_residuals(pit)), "probability": (dims, pit)}, columns, y)


def one_step_pit(pair: Pair, y: Tensor, latents: Latents, num_draws: int) -> Tensor:
    """Return ``P(y_rep <= y_tj | y_1:t-1)`` of each entry, averaged over draws of the parameters.

    Values of series from the model itself are uniform and independent over steps (Rosenblatt 1952; Dawid 1984). Call it
    inside ``pair.isolated``.

    Parameters
    ----------
    pair
        Pair of a state space story.
    y
        Series, shape ``(num_series, T, E)``.
    latents, num_draws
        Draws of the parameters.

    Returns
    -------
    Tensor
        Shape ``(num_series, T, E)``, NaN where an entry is missing or a step is conditioned on.

    Raises
    ------
    InputError
        If steps have no normal distribution given regime and state, or the next regime depends on the state.
    """
    story = series_story(pair, "one-step-ahead predictions")
    total = torch.zeros_like(y, dtype=torch.float64)
    for _, subset, model in draw_chunks(pair, y, latents, num_draws):
        if isinstance(model, LinearGaussian):
            weights, mean, variance = _gaussian(y, model)
        elif isinstance(model, HiddenMarkov):
            weights, mean, variance = _hidden_markov(pair, y, subset, model)
        else:
            weights, mean, variance = _switching(pair, y, subset, model)
        below = torch.special.ndtr((y.double()[:, :, None] - mean) / variance.sqrt())
        total = total + (weights[..., None] * below).sum((0, -2))
    scored = torch.arange(y.shape[1], device=y.device) >= int(getattr(story, "order", 0))
    number = max(num_draws if latents else 1, 1)
    return torch.where(y.isnan() | ~scored[:, None], torch.nan, total / number)


Mixtures = tuple[Tensor, Tensor, Tensor]
"""Weights, shape ``(num_draws, num_series, T, H)``, means and variances, with an axis of E more; both broadcast."""


def _gaussian(y: Tensor, model: LinearGaussian) -> Mixtures:
    """Return the predictive normals of a linear Gaussian model."""
    filtered = kalman_filter_scan(y.double(), model)
    C = model.C if model.C.ndim > 4 else model.C.unsqueeze(-3) if model.C.ndim == 4 else model.C
    mean = matvec(C, filtered.predicted_mean) + model.d
    covariance = C @ filtered.predicted_covariance @ C.mT + model.R
    variance = covariance.diagonal(dim1=-2, dim2=-1)
    return torch.ones_like(mean[..., :1]), mean.unsqueeze(-2), variance.unsqueeze(-2)


def _hidden_markov(pair: Pair, y: Tensor, latents: Latents, model: HiddenMarkov) -> Mixtures:
    """Return the predictive mixtures of a hidden Markov model with normal emissions."""
    story: Any = pair.story

    def moments(latent: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        series = row_distribution(poutine.condition(story.model, latent), y)
        if not hasattr(series, "step_moments"):
            raise InputError(f"one-step-ahead predictions: {type(series).__name__} has no moments of steps")
        return series.step_moments(y)

    num_draws = len(model.log_emission)
    with torch.no_grad(), pyro.validation_enabled(False):
        moments({name: value[0] for name, value in latents.items()})
    mean, sd = (_with_series(value.double()) for value in map_draws(moments, num_draws, latents))
    chain = model.chain
    filtered = forward_backward(model.log_emission, chain).filtered
    P = chain.log_transition.exp()
    timed = P if P.ndim == chain.log_initial.ndim + 2 else P.unsqueeze(-3)
    later = (filtered[..., :-1, None, :] @ timed).squeeze(-2)
    first = chain.log_initial.exp().unsqueeze(-2).expand(*filtered.shape[:2], 1, -1)
    return torch.cat([first, later], -2), mean, sd.square()


def _with_series(value: Tensor) -> Tensor:
    """Insert axes of series after that of draws, up to the shape ``(num_draws, num_series, T, H, E)``."""
    return value.reshape(len(value), *[1] * (5 - value.ndim), *value.shape[1:])


def _switching(pair: Pair, y: Tensor, latents: Latents, model: SwitchingLinearGaussian) -> Mixtures:
    """Return the predictive mixtures of Kim's filter, one normal per pair of regimes."""
    if transitions(pair, latents, model) is not None:
        raise InputError("one-step-ahead predictions: the next regime depends on the state")
    kim = kim_at_draws(pair, y, latents, model)
    K = model.pi.shape[-1]
    A, Q, C, R = (part[:, :, None, None].double() for part in (model.A, model.Q, model.C, model.R))
    b, d = (part[:, :, None, None].double() for part in (model.b, model.d))
    state = matvec(A, kim.mean[:, :, :-1, :, None]) + b
    covariance = A @ kim.covariance[:, :, :-1, :, None] @ A.mT + Q
    state = torch.cat([model.m0[:, :, None, None, None].expand(*state.shape[:2], 1, *state.shape[3:]), state], 2)
    covariance = torch.cat(
        [model.S0[:, :, None, None, None].expand(*covariance.shape[:2], 1, *covariance.shape[3:]), covariance], 2
    )
    later = kim.probabilities[:, :, :-1, :, None] * model.P[:, :, None]
    first = (model.pi[:, :, None, None] / K).expand(*later.shape[:2], 1, K, K)
    variance = (C @ covariance @ C.mT + R).diagonal(dim1=-2, dim2=-1)
    mean = matvec(C, state) + d
    return torch.cat([first, later], 2).flatten(-2), mean.flatten(-3, -2), variance.flatten(-3, -2)
