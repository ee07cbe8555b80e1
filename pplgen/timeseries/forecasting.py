"""Forecasts: trajectories simulated from the filtering distribution of the last step, at draws of the parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import xarray as xr
from torch import Tensor

from pplgen.exact.kalman_scan import kalman_filter_scan
from pplgen.exact.linear_gaussian import matvec
from pplgen.exact.shapes import pick
from pplgen.exact.simulation import draw_categorical, draw_normal
from pplgen.posterior.draws import draw_shared
from pplgen.story.dynamics import HiddenMarkov, LinearGaussian, SwitchingLinearGaussian
from pplgen.story.pair import Pair
from pplgen.story.state_space import series_lengths
from pplgen.timeseries.parameter_draws import Latents, draw_chunks, first_model, transitions
from pplgen.timeseries.smoothing import Variables, kim_at_draws, path_variables, series_dataset, summarise_draws
from pplgen.timeseries.state_paths import Paths, draw_hidden_states, fill_missing, select_regime

__all__ = ["forecast_series"]


class _Step(NamedTuple):
    """Parameters of one step as in ``LinearGaussian``, batch axes ``(num_draws, num_series)``."""

    A: Tensor
    b: Tensor
    Q: Tensor
    C: Tensor
    d: Tensor
    R: Tensor


def forecast_series(
    pair: Pair,
    data: tuple[Any, ...],
    columns: Sequence[str],
    num_draws: int,
    *,
    horizon: int,
    keep_draws: bool = False,
) -> xr.Dataset:
    """Forecast each series from its last step by simulation; call it inside ``pair.isolated``.

    One trajectory is simulated per draw of the parameters, last state and regime, so that their uncertainty propagates;
    quantiles are empirical.

    Parameters
    ----------
    pair
        Pair of a state space story.
    data
        Arguments of model and guide, the series first.
    columns
        Names of the data's columns.
    num_draws
        Number of trajectories.
    horizon
        Number of steps.
    keep_draws
        Whether to add the trajectories as ``state_draw``, ``regime_draw`` and ``y_draw``.

    Returns
    -------
    xarray.Dataset
        Variables as in ``smooth_series``, except that ``y_mean`` etc. include the observation noise. ``time`` continues
        from the longest series; ``step`` numbers each series' own steps.
    """
    y = data[0]
    latents = draw_shared(pair, num_draws)
    ends = series_lengths(y).clamp_min(1)
    ahead = ends[:, None] + torch.arange(horizon, device=y.device)
    padded = torch.cat([y, torch.full_like(y[:, :1], torch.nan).expand(-1, horizon, -1)], 1)
    first = first_model(pair, y, latents)
    estimator, num_regimes = "simulated", 0
    if isinstance(first, HiddenMarkov):
        hidden, regimes = draw_hidden_states(pair, padded, latents, num_draws)
        complete = fill_missing(pair, padded, hidden, latents).double()
        series = torch.arange(len(y), device=y.device)[:, None]
        paths = Paths(None, regimes[:, series, ahead], None, complete[:, series, ahead])
        num_regimes = int(first.regimes.max()) + 1
    elif isinstance(first, LinearGaussian):
        paths = _in_chunks(_gaussian, pair, padded, ends, ahead, latents, num_draws)
    else:
        num_regimes, estimator = first.pi.numel(), "simulated from Kim's filter"
        paths = _in_chunks(_switching, pair, y, ends, ahead, latents, num_draws)
    uniform = paths.y.new_full((num_draws, 1, 1), 1 / num_draws)
    parts: Variables = summarise_draws("y", "feature", paths.y, uniform)
    if paths.states is not None:
        parts |= summarise_draws("state", "state", paths.states, uniform)
    if paths.regimes is not None:
        probabilities = torch.nn.functional.one_hot(paths.regimes, num_regimes).double().mean(dim=0)
        parts["regime_probability"] = (("series", "time", "regime"), probabilities)
    if keep_draws:
        parts |= path_variables(paths)
    dataset = series_dataset(parts, columns, y, first_step=int(ends.max()), estimator=estimator)
    return dataset.assign_coords(step=(("series", "time"), ahead.cpu().numpy()))


def _in_chunks(
    simulate: Callable[..., Paths], pair: Pair, y: Tensor, ends: Tensor, ahead: Tensor, latents: Latents, num_draws: int
) -> Paths:
    """Simulate in chunks of draws."""
    chunks = [
        simulate(pair, y, ends, ahead, subset, model) for _, subset, model in draw_chunks(pair, y, latents, num_draws)
    ]
    return chunks[0].each(lambda *parts: torch.cat(parts), *chunks[1:])


def _gaussian(pair: Pair, y: Tensor, ends: Tensor, ahead: Tensor, latents: Latents, model: LinearGaussian) -> Paths:
    """Simulate a linear Gaussian story, whose parameters cover the forecast steps."""
    filtered = kalman_filter_scan(y.double(), model)
    series = torch.arange(len(y), device=y.device)
    x = draw_normal(filtered.mean[:, series, ends - 1], filtered.covariance[:, series, ends - 1])

    def parameters(steps: Tensor, _: Tensor | None) -> _Step:
        return _Step(*(_at_steps(part, steps) for part in model[2:]))

    return _simulate(x, None, ahead, parameters, None)


def _switching(
    pair: Pair, y: Tensor, ends: Tensor, ahead: Tensor, latents: Latents, model: SwitchingLinearGaussian
) -> Paths:
    """Simulate a switching story, with regimes from its transitions."""
    kim = kim_at_draws(pair, y, latents, model)
    series = torch.arange(len(y), device=y.device)
    mean, covariance = kim.mean[:, series, ends - 1], kim.covariance[:, series, ends - 1]
    regimes = draw_categorical(kim.probabilities[:, series, ends - 1].log())
    draws = torch.arange(len(regimes), device=y.device)[:, None]
    x = draw_normal(mean[draws, series, regimes], covariance[draws, series, regimes])
    by_state = transitions(pair, latents, model)

    def log_transition(x: Tensor) -> Tensor:
        return model.P.log() if by_state is None else by_state(x)

    def parameters(_: Tensor, regimes: Tensor | None) -> _Step:
        assert regimes is not None, "a switching story has regimes"
        return _Step(*(select_regime(part, regimes) for part in model[4:]))

    return _simulate(x, regimes, ahead, parameters, log_transition)


def _simulate(
    x: Tensor,
    regimes: Tensor | None,
    ahead: Tensor,
    parameters: Callable[[Tensor, Tensor | None], _Step],
    log_transition: Callable[[Tensor], Tensor] | None,
) -> Paths:
    """Simulate states, regimes and observations of the steps ahead.

    Parameters
    ----------
    x, regimes
        State and regime at the last step, shapes ``(num_draws, num_series, D)`` and ``(num_draws, num_series)``.
    ahead
        Indices of the forecast steps, shape ``(num_series, horizon)``.
    parameters
        Function from step and regimes to the parameters.
    log_transition
        Function from states to log transition probabilities, shape ``(num_draws, num_series or 1, K, K)``.
    """
    states, regime_path, signal, observed = [], [], [], []
    for steps in ahead.T:
        if regimes is not None and log_transition is not None:
            regimes = draw_categorical(pick(log_transition(x), regimes, 1))
            regime_path.append(regimes)
        A, b, Q, C, d, R = parameters(steps, regimes)
        x = draw_normal(matvec(A, x) + b, Q.expand(*x.shape, x.shape[-1]))
        states.append(x)
        signal.append(matvec(C, x) + d)
        observed.append(draw_normal(signal[-1], R.expand(*signal[-1].shape, R.shape[-1])))
    return Paths(
        torch.stack(states, 2),
        torch.stack(regime_path, 2) if regime_path else None,
        torch.stack(signal, 2),
        torch.stack(observed, 2),
    )


def _at_steps(part: Tensor, steps: Tensor) -> Tensor:
    """Select each series' step of a parameter of shape ``(num_draws, num_series or 1, T or 1, ...)``."""
    core = part.shape[3:]
    if part.shape[2] == 1:
        return part[:, :, 0]
    series = torch.arange(len(steps), device=steps.device)
    return part.expand(len(part), len(steps), part.shape[2], *core)[:, series, steps]
