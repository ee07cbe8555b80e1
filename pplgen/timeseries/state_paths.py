"""Draws of whole series from their posterior: paths of states and regimes, and missing observations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pplgen.exact.gaussian_sums import gaussian_sum_filter
from pplgen.exact.hmm import forward_backward, sample_paths
from pplgen.exact.kalman_scan import kalman_filter_scan
from pplgen.exact.linear_gaussian import matvec
from pplgen.exact.simulation import draw_missing, draw_states
from pplgen.exact.switching_simulation import draw_switching_paths
from pplgen.posterior.draws import draw_shared
from pplgen.posterior.psis import GOOD_K, smoothed_weights
from pplgen.story.dynamics import HiddenMarkov, LinearGaussian, SwitchingLinearGaussian
from pplgen.story.pair import Pair
from pplgen.story.state_space import series_lengths, step_mask
from pplgen.timeseries.parameter_draws import (
    Latents,
    draw_chunks,
    first_model,
    regime_chains,
    series_story,
    transitions,
    vmap_draws,
)

__all__ = [
    "Paths",
    "WeightedPaths",
    "draw_hidden_states",
    "draw_paths",
    "draw_state_paths",
    "draw_weighted_paths",
    "fill_missing",
    "impute_series",
    "select_regime",
]

PATHS_PER_DRAW = 10
"""Paths that share a draw of the parameters."""
MIN_PATHS = 100
"""Minimum number of weighted paths."""
NEARLY_UNIFORM = 1.1
"""Mean square of weights over their squared mean below which they are used whatever Pareto k is."""
ONE_KIND = "a story is of one kind at all draws"


class Paths(NamedTuple):
    """Draws of whole series, shape ``(num_draws, num_series, T, ...)`` each; ``None`` for parts the story lacks."""

    states: Tensor | None
    """Continuous states, last axis of length D."""
    regimes: Tensor | None
    """Regimes as integers."""
    signal: Tensor | None
    """``C x + d``, the noise-free observation, last axis of length E; ``None`` without continuous states."""
    y: Tensor
    """Series with missing entries drawn, last axis of length E."""

    def each(self, function: Callable[..., Tensor], *others: Paths) -> Paths:
        """Apply a function to each part that is not ``None``, together with the same part of others."""
        parts = [None if same[0] is None else function(*same) for same in zip(self, *others, strict=True)]
        return Paths(*parts)  # type: ignore[arg-type]


class WeightedPaths(NamedTuple):
    """Paths of a switching story drawn from a Gaussian sum smoother, with importance weights."""

    paths: Paths
    """Paths at draws of the parameters, one per draw and series."""
    weights: Tensor
    """Weights of each series, which sum to one over the draws, shape ``(num_draws, num_series)``."""
    probabilities: Tensor
    """Probabilities of the regimes given each path, shape ``(num_draws, num_series, T, K)``."""
    pareto_k: Tensor
    """Pareto k of each series, shape ``(num_series,)``."""
    trusted: Tensor
    """Whether the weights of each series are used, rather than uniform ones, shape ``(num_series,)``."""

    @property
    def estimator(self) -> str:
        """Name of the estimator, and how the draws were weighted."""
        if self.trusted.all():
            return "Gaussian sum smoother (importance-weighted)"
        unweighted = f"unweighted where Pareto k is above {GOOD_K}"
        return f"Gaussian sum smoother ({'importance-weighted; ' if self.trusted.any() else ''}{unweighted})"

    @property
    def effective_draws(self) -> Tensor:
        """Effective sample size of each series, shape ``(num_series,)``."""
        return 1 / self.weights.square().sum(dim=0)

    def resampled(self, number: int) -> Paths:
        """Resample ``number`` draws of each series by systematic resampling, in random order."""
        S, N = self.weights.shape
        offset = torch.rand(N, 1).to(self.weights)
        points = (torch.arange(number, device=offset.device) + offset) / number
        cumulative = self.weights.T.cumsum(dim=1).contiguous()
        index = torch.searchsorted(cumulative, points * cumulative[:, -1:]).clamp_max(S - 1).T[torch.randperm(number)]
        series = torch.arange(N, device=index.device)
        return self.paths.each(lambda part: part[index, series])


def impute_series(pair: Pair, data: tuple[Any, ...], num_draws: int) -> Tensor:
    """Draw missing entries of series; call it inside ``pair.isolated``.

    Returns shape ``(num_draws, num_series, T, E)``; observed entries are repeated, steps past a series' end are NaN.
    """
    y = data[0]
    drawn = draw_paths(pair, y, draw_shared(pair, num_draws), num_draws).y.to(y.dtype)
    return torch.where(step_mask(y).unsqueeze(-1), drawn, torch.nan)


def draw_paths(pair: Pair, y: Tensor, latents: Latents, num_draws: int) -> Paths:
    """Draw whole series from ``p(x, s, y_missing | y_observed, theta)`` at draws of the parameters.

    Arguments as for ``model_at_draws``.

    Returns
    -------
    Paths
        Equally weighted; paths of a switching story are resampled by their weights, in random order.
    """
    match first_model(pair, y, latents):
        case LinearGaussian():
            return _gaussian(pair, y, latents, num_draws)
        case HiddenMarkov():
            hidden, regimes = draw_hidden_states(pair, y, latents, num_draws)
            return Paths(None, regimes, None, fill_missing(pair, y, hidden, latents))
        case _:
            return draw_weighted_paths(pair, y, latents, num_draws).resampled(num_draws)


def draw_hidden_states(pair: Pair, y: Tensor, latents: Latents, num_draws: int) -> tuple[Tensor, Tensor]:
    """Draw paths of hidden states, and the regimes they belong to, shape ``(num_draws, num_series, T)`` each."""
    first = first_model(pair, y, latents)
    assert isinstance(first, HiddenMarkov), "only a hidden Markov story has hidden states"
    hidden = []
    for _, _, model in draw_chunks(pair, y, latents, num_draws):
        assert isinstance(model, HiddenMarkov), ONE_KIND
        seed = int(torch.randint(2**31, ()))
        hidden.append(sample_paths(model.log_emission, model.chain, 1, seed=seed).squeeze(0))
    paths = torch.cat(hidden)
    return paths, first.regimes.to(paths.device)[paths]


def fill_missing(pair: Pair, y: Tensor, hidden: Tensor, latents: Latents) -> Tensor:
    """Draw missing entries along paths of hidden states, shape ``(num_draws, num_series, T, E)``."""
    if not y.isnan().any():
        return y.expand(len(hidden), *y.shape)
    story = series_story(pair, "impute")
    return vmap_draws(lambda path: story.fill(y, path), latents, hidden)


def draw_weighted_paths(pair: Pair, y: Tensor, latents: Latents, num_draws: int) -> WeightedPaths:
    """Draw paths from a Gaussian sum smoother, importance-weighted by ``p(x, s, y) / q(x, s)``.

    Weights are computed for each series separately, and Pareto-smoothed. A few paths share each draw of the parameters,
    with equal total weight: the guide is fitted to the series, which must not count twice. Arguments as for
    ``draw_paths``; the number of paths may exceed ``num_draws``.
    """
    few = {name: value[::PATHS_PER_DRAW] for name, value in latents.items()}
    number = -(-num_draws // PATHS_PER_DRAW) if latents else 1
    paths_each = -(-max(num_draws, MIN_PATHS) // number)
    x, ratios, likelihood = draw_state_paths(pair, y, few, number, paths_each)
    x = x.flatten(0, 1)
    latents = {name: value.repeat_interleave(paths_each, 0) for name, value in few.items()}
    smoothed, pareto_k = smoothed_weights((ratios - likelihood.unsqueeze(1)).flatten(0, 1))
    grouped = smoothed.unflatten(0, (-1, paths_each))
    weights = (grouped / grouped.sum(1, keepdim=True) / len(grouped)).flatten(0, 1)
    trusted = (pareto_k <= GOOD_K) | (weights.square().sum(dim=0) * len(x) < NEARLY_UNIFORM)
    weights = torch.where(trusted, weights, 1 / len(x))
    chunks = []
    for chosen, subset, model in draw_chunks(pair, y, latents, len(x)):
        assert isinstance(model, SwitchingLinearGaussian), ONE_KIND
        chains = regime_chains(pair, y, x[chosen].to(y.dtype), subset)
        probabilities = forward_backward(chains.log_emission, chains.chain).smoothed
        seed = int(torch.randint(2**31, ()))
        regimes = sample_paths(chains.log_emission, chains.chain, 1, seed=seed).squeeze(0)
        C, d, R = (select_regime(part, regimes) for part in (model.C, model.d, model.R))
        complete = draw_missing(y.double(), x[chosen], C, d, R)
        chunks.append((x[chosen], regimes, matvec(C, x[chosen]) + d, complete, probabilities))
    *parts, probabilities = (torch.cat(part) for part in zip(*chunks, strict=True))
    return WeightedPaths(Paths(*parts), weights, probabilities, pareto_k, trusted)


def draw_state_paths(
    pair: Pair, y: Tensor, latents: Latents, num_draws: int, num_paths: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw paths of a switching story's states by backward sampling from a Gaussian sum filter.

    Returns
    -------
    states : Tensor
        Shape ``(num_draws, num_paths, num_series, T, D)``.
    log_ratios : Tensor
        ``log p(y, s, x) - log q(s, x)`` in nats, shape ``(num_draws, num_paths, num_series)``.
    log_likelihood : Tensor
        The filter's approximation, in nats, shape ``(num_draws, num_series)``.
    """
    chunks = []
    for _, subset, model in draw_chunks(pair, y, latents, num_draws, paths=num_paths):
        assert isinstance(model, SwitchingLinearGaussian), ONE_KIND
        by_state = transitions(pair, subset, model)
        options: dict[str, Any] = {"lengths": series_lengths(y).clamp_min(1), "log_transition": by_state}
        filtered = gaussian_sum_filter(y.double(), model, **options)
        drawn = draw_switching_paths(y.double(), filtered, model, num_paths, **options)
        chunks.append((drawn.states.transpose(1, 2), drawn.log_ratios.transpose(1, 2), filtered.log_likelihood))
    states, log_ratios, log_likelihood = (torch.cat(part) for part in zip(*chunks, strict=True))
    return states, log_ratios, log_likelihood


def select_regime(part: Tensor, regimes: Tensor) -> Tensor:
    """Select a parameter's value in each regime of a path.

    Parameters
    ----------
    part
        Shape ``(num_draws, 1, K, ...)``.
    regimes
        Shape ``(num_draws, num_series, ...)``.
    """
    draws = torch.arange(len(part), device=part.device).reshape(-1, *(1,) * (regimes.ndim - 1))
    return part[draws, 0, regimes]


def _gaussian(pair: Pair, y: Tensor, latents: Latents, num_draws: int) -> Paths:
    """Draw series of a linear Gaussian story by the simulation smoother."""
    chunks = []
    for _, _, model in draw_chunks(pair, y, latents, num_draws):
        assert isinstance(model, LinearGaussian), ONE_KIND
        states = draw_states(kalman_filter_scan(y.double(), model), model)
        complete = draw_missing(y.double(), states, model.C, model.d, model.R)
        chunks.append((states, matvec(model.C, states) + model.d, complete))
    states, signal, complete = (torch.cat(part) for part in zip(*chunks, strict=True))
    return Paths(states, None, signal, complete)
