"""Forecasts: futures simulated from what is known of the last step, at draws of the parameters."""

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
from pplgen.timeseries.parameters import Latents, first_model, pieces, transitions
from pplgen.timeseries.paths import Paths, draw_hidden, fill, of_regime
from pplgen.timeseries.smoothing import Parts, drawn_parts, kim_at_draws, of_draws, series_dataset

__all__ = ["forecast_series"]


class _Step(NamedTuple):
    """Parameters of one step, batch axes ``(num_draws, num_series)``: as in ``LinearGaussian``."""

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
    """Simulate each series onwards from its own end; call it inside ``pair.isolated``.

    Each draw of the parameters has its draw of the last state and regime and of all that follows, so that their
    uncertainty is passed on; quantiles are those of the draws.

    Parameters
    ----------
    pair
        Of a state space story.
    data
        Arguments of model and guide, the series first.
    columns
        Names of the data's columns.
    num_draws
        How many futures.
    horizon
        How many steps.
    keep_draws
        Whether to add ``state_draw``, ``regime_draw`` and ``y_draw``, the futures themselves.

    Returns
    -------
    xarray.Dataset
        Variables as of ``smooth_series``; here ``y_mean`` and the others are of observations with their noise, missing
        ones as those to come. ``time`` goes on from the longest series; ``step`` counts each series' own steps.
    """
    y = data[0]
    latents = draw_shared(pair, num_draws)
    ends = series_lengths(y).clamp_min(1)
    ahead = ends[:, None] + torch.arange(horizon, device=y.device)
    padded = torch.cat([y, torch.full_like(y[:, :1], torch.nan).expand(-1, horizon, -1)], 1)
    first = first_model(pair, y, latents)
    estimator, num_regimes = "simulated", 0
    if isinstance(first, HiddenMarkov):
        hidden, regimes = draw_hidden(pair, padded, latents, num_draws)
        complete = fill(pair, padded, hidden, latents).double()
        series = torch.arange(len(y), device=y.device)[:, None]
        paths = Paths(None, regimes[:, series, ahead], None, complete[:, series, ahead])
        num_regimes = int(first.regimes.max()) + 1
    elif isinstance(first, LinearGaussian):
        paths = _in_pieces(_gaussian, pair, padded, ends, ahead, latents, num_draws)
    else:
        num_regimes, estimator = first.pi.numel(), "simulated from Kim's filter"
        paths = _in_pieces(_switching, pair, y, ends, ahead, latents, num_draws)
    alike = paths.y.new_full((num_draws, 1, 1), 1 / num_draws)
    parts: Parts = of_draws("y", "feature", paths.y, alike)
    if paths.states is not None:
        parts |= of_draws("state", "state", paths.states, alike)
    if paths.regimes is not None:
        shares = torch.nn.functional.one_hot(paths.regimes, num_regimes).double().mean(dim=0)
        parts["regime_probability"] = (("series", "time", "regime"), shares)
    if keep_draws:
        parts |= drawn_parts(paths)
    dataset = series_dataset(parts, columns, y, first_step=int(ends.max()), estimator=estimator)
    return dataset.assign_coords(step=(("series", "time"), ahead.cpu().numpy()))


def _in_pieces(
    simulate: Callable[..., Paths], pair: Pair, y: Tensor, ends: Tensor, ahead: Tensor, latents: Latents, num_draws: int
) -> Paths:
    """Simulate at a few draws at a time."""
    found = [simulate(pair, y, ends, ahead, own, model) for _, own, model in pieces(pair, y, latents, num_draws)]
    return found[0].each(lambda *parts: torch.cat(parts), *found[1:])


def _gaussian(pair: Pair, y: Tensor, ends: Tensor, ahead: Tensor, latents: Latents, model: LinearGaussian) -> Paths:
    """Simulate a linear Gaussian story, which also describes the steps to come."""
    filtered = kalman_filter_scan(y.double(), model)
    series = torch.arange(len(y), device=y.device)
    x = draw_normal(filtered.mean[:, series, ends - 1], filtered.covariance[:, series, ends - 1])

    def parameters(steps: Tensor, _: Tensor | None) -> _Step:
        return _Step(*(_at_steps(part, steps) for part in model[2:]))

    return _simulate(x, None, ahead, parameters, None)


def _switching(
    pair: Pair, y: Tensor, ends: Tensor, ahead: Tensor, latents: Latents, model: SwitchingLinearGaussian
) -> Paths:
    """Simulate a switching story, regimes by its own transitions."""
    kim = kim_at_draws(pair, y, latents, model)
    series = torch.arange(len(y), device=y.device)
    mean, covariance = kim.mean[:, series, ends - 1], kim.covariance[:, series, ends - 1]
    regimes = draw_categorical(kim.probabilities[:, series, ends - 1].log())
    draws = torch.arange(len(regimes), device=y.device)[:, None]
    x = draw_normal(mean[draws, series, regimes], covariance[draws, series, regimes])
    by_state = transitions(pair, latents, model)

    def moved(x: Tensor) -> Tensor:
        return model.P.log() if by_state is None else by_state(x)

    def parameters(_: Tensor, regimes: Tensor | None) -> _Step:
        assert regimes is not None, "a switching story has regimes"
        return _Step(*(of_regime(part, regimes) for part in model[4:]))

    return _simulate(x, regimes, ahead, parameters, moved)


def _simulate(
    x: Tensor,
    regimes: Tensor | None,
    ahead: Tensor,
    parameters: Callable[[Tensor, Tensor | None], _Step],
    log_transition: Callable[[Tensor], Tensor] | None,
) -> Paths:
    """Draw what follows.

    Parameters
    ----------
    x, regimes
        State and regime at the last step, shapes ``(num_draws, num_series, D)`` and ``(num_draws, num_series)``.
    ahead
        Numbers of the steps to come, shape ``(num_series, horizon)``.
    parameters
        Of a step in its regimes.
    log_transition
        From states to log probabilities of the next regime, shape ``(num_draws, num_series or 1, K, K)``.
    """
    states, passed, signal, seen = [], [], [], []
    for steps in ahead.T:
        if regimes is not None and log_transition is not None:
            regimes = draw_categorical(pick(log_transition(x), regimes, 1))
            passed.append(regimes)
        A, b, Q, C, d, R = parameters(steps, regimes)
        x = draw_normal(matvec(A, x) + b, Q.expand(*x.shape, x.shape[-1]))
        states.append(x)
        signal.append(matvec(C, x) + d)
        seen.append(draw_normal(signal[-1], R.expand(*signal[-1].shape, R.shape[-1])))
    return Paths(
        torch.stack(states, 2),
        torch.stack(passed, 2) if passed else None,
        torch.stack(signal, 2),
        torch.stack(seen, 2),
    )


def _at_steps(part: Tensor, steps: Tensor) -> Tensor:
    """Take each series' own step of a parameter, ``(num_draws, num_series or 1, T or 1, ...)``, which may be one."""
    core = part.shape[3:]
    if part.shape[2] == 1:
        return part[:, :, 0]
    series = torch.arange(len(steps), device=steps.device)
    return part.expand(len(part), len(steps), part.shape[2], *core)[:, series, steps]
