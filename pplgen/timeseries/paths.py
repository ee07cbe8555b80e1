"""Whole series drawn from their posterior: paths of states and regimes, and what is missing along them."""

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
from pplgen.posterior.weighted import GOOD_K, smoothed_weights
from pplgen.story.dynamics import HiddenMarkov, LinearGaussian, SwitchingLinearGaussian
from pplgen.story.pair import Pair
from pplgen.story.state_space import series_lengths, step_mask
from pplgen.timeseries.parameters import Latents, chains_given, first_model, per_draw, pieces, series_story, transitions

__all__ = [
    "Paths",
    "Weighted",
    "draw_hidden",
    "draw_paths",
    "draw_weighted",
    "fill",
    "impute_series",
    "of_regime",
    "smoothed_states",
]

PATHS_OF_A_DRAW = 10
"""Paths that share a draw of the parameters."""
LEAST_PATHS = 100
"""Paths that are weighted, at the least: of fewer, weights say little."""
EVEN = 1.1
"""Mean square of weights, in units of their squared mean, below which they hardly matter, whatever Pareto k is."""
ONE_KIND = "a story is of one kind at all draws"


class Paths(NamedTuple):
    """Draws of whole series, shape ``(num_draws, num_series, T, ...)`` each; ``None`` for what the story has not."""

    states: Tensor | None
    """Continuous states, the last axis of length D."""
    regimes: Tensor | None
    """Integers."""
    signal: Tensor | None
    """``C x + d``, what is seen without its noise, the last axis of length E; ``None`` without continuous states."""
    y: Tensor
    """The series, missing entries drawn, the last axis of length E."""

    def each(self, function: Callable[..., Tensor], *others: Paths) -> Paths:
        """Apply a function to each part of this and of others, where there is one."""
        parts = [None if own[0] is None else function(*own) for own in zip(self, *others, strict=True)]
        return Paths(*parts)  # type: ignore[arg-type]


class Weighted(NamedTuple):
    """Paths of a switching story's states drawn from sums of Gaussians, and their weights towards the posterior."""

    paths: Paths
    """At draws of the parameters, one path of each series to a draw."""
    weights: Tensor
    """Of each draw of each series, summing to one over the draws, shape ``(num_draws, num_series)``."""
    probabilities: Tensor
    """Of the regimes given each path, shape ``(num_draws, num_series, T, K)``."""
    pareto_k: Tensor
    """Shape ``(num_series,)``."""
    trusted: Tensor
    """Whether the weights of each series are used: elsewhere they are all the same. Shape ``(num_series,)``."""

    @property
    def estimator(self) -> str:
        """Say in words how the draws were weighted."""
        if self.trusted.all():
            return "Gaussian sum smoother (importance-weighted)"
        unweighted = f"unweighted where Pareto k is above {GOOD_K}"
        return f"Gaussian sum smoother ({'importance-weighted; ' if self.trusted.any() else ''}{unweighted})"

    @property
    def effective_draws(self) -> Tensor:
        """Of how many draws of equal weight each series' are worth, shape ``(num_series,)``."""
        return 1 / self.weights.square().sum(dim=0)

    def resampled(self, number: int) -> Paths:
        """Pick so many draws of each series by their weights, systematically, in random order."""
        S, N = self.weights.shape
        offset = torch.rand(N, 1).to(self.weights)
        points = (torch.arange(number, device=offset.device) + offset) / number
        reached = self.weights.T.cumsum(dim=1).contiguous()
        picked = torch.searchsorted(reached, points * reached[:, -1:]).clamp_max(S - 1).T[torch.randperm(number)]
        series = torch.arange(N, device=picked.device)
        return self.paths.each(lambda part: part[picked, series])


def impute_series(pair: Pair, data: tuple[Any, ...], num_draws: int) -> Tensor:
    """Draw missing entries of series; call it inside ``pair.isolated``.

    Returns shape ``(num_draws, num_series, T, E)``; seen entries are repeated, and steps past a series' end are NaN.
    """
    y = data[0]
    drawn = draw_paths(pair, y, draw_shared(pair, num_draws), num_draws).y.to(y.dtype)
    return torch.where(step_mask(y).unsqueeze(-1), drawn, torch.nan)


def draw_paths(pair: Pair, y: Tensor, latents: Latents, num_draws: int) -> Paths:
    """Draw whole series from ``p(x, s, y_missing | y_seen, theta)`` at draws of the parameters.

    Parameters
    ----------
    pair
        Of a state space story.
    y
        Series, NaN where missing, shape ``(num_series, T, E)``.
    latents
        Draws of the parameters.
    num_draws
        How many.

    Returns
    -------
    Paths
        In random order and equally weighted. Those of a switching story are resampled by their weights.
    """
    match first_model(pair, y, latents):
        case LinearGaussian():
            return _gaussian(pair, y, latents, num_draws)
        case HiddenMarkov():
            hidden, regimes = draw_hidden(pair, y, latents, num_draws)
            return Paths(None, regimes, None, fill(pair, y, hidden, latents))
        case _:
            return draw_weighted(pair, y, latents, num_draws).resampled(num_draws)


def draw_hidden(pair: Pair, y: Tensor, latents: Latents, num_draws: int) -> tuple[Tensor, Tensor]:
    """Draw paths of hidden states, and the regimes these belong to, shape ``(num_draws, num_series, T)`` each."""
    first = first_model(pair, y, latents)
    assert isinstance(first, HiddenMarkov), "hidden states are a hidden Markov story's"
    hidden = []
    for _, _, model in pieces(pair, y, latents, num_draws):
        assert isinstance(model, HiddenMarkov), ONE_KIND
        seed = int(torch.randint(2**31, ()))
        hidden.append(sample_paths(model.log_emission, model.chain, 1, seed=seed).squeeze(0))
    paths = torch.cat(hidden)
    return paths, first.regimes.to(paths.device)[paths]


def fill(pair: Pair, y: Tensor, hidden: Tensor, latents: Latents) -> Tensor:
    """Draw missing entries along paths of hidden states, shape ``(num_draws, num_series, T, E)``."""
    if not y.isnan().any():
        return y.expand(len(hidden), *y.shape)
    story = series_story(pair, "impute")
    return per_draw(lambda path: story.fill(y, path), latents, hidden)


def draw_weighted(pair: Pair, y: Tensor, latents: Latents, num_draws: int) -> Weighted:
    """Draw paths of a switching story's states from sums of Gaussians, weighted by ``p(x, s, y) / q(x, s)``.

    Weights are made for each series on its own, and Pareto-smoothed. A few paths share each draw of the parameters, and
    weigh as much together as those of any other: the guide's parameters have learned from the series already, which
    must not count twice. Arguments as of ``draw_paths``; there may be more paths than draws were asked for.
    """
    few = {name: value[::PATHS_OF_A_DRAW] for name, value in latents.items()}
    number = -(-num_draws // PATHS_OF_A_DRAW) if latents else 1
    sharing = -(-max(num_draws, LEAST_PATHS) // number)
    x, ratios, likelihood = smoothed_states(pair, y, few, number, sharing)
    x = x.flatten(0, 1)
    latents = {name: value.repeat_interleave(sharing, 0) for name, value in few.items()}
    smoothed, pareto_k = smoothed_weights((ratios - likelihood.unsqueeze(1)).flatten(0, 1))
    together = smoothed.unflatten(0, (-1, sharing))
    weights = (together / together.sum(1, keepdim=True) / len(together)).flatten(0, 1)
    trusted = (pareto_k <= GOOD_K) | (weights.square().sum(dim=0) * len(x) < EVEN)
    weights = torch.where(trusted, weights, 1 / len(x))
    found = []
    for chosen, own, model in pieces(pair, y, latents, len(x)):
        assert isinstance(model, SwitchingLinearGaussian), ONE_KIND
        chains = chains_given(pair, y, x[chosen].to(y.dtype), own)
        probabilities = forward_backward(chains.log_emission, chains.chain).smoothed
        seed = int(torch.randint(2**31, ()))
        regimes = sample_paths(chains.log_emission, chains.chain, 1, seed=seed).squeeze(0)
        C, d, R = (of_regime(part, regimes) for part in (model.C, model.d, model.R))
        complete = draw_missing(y.double(), x[chosen], C, d, R)
        found.append((x[chosen], regimes, matvec(C, x[chosen]) + d, complete, probabilities))
    *parts, probabilities = (torch.cat(part) for part in zip(*found, strict=True))
    return Weighted(Paths(*parts), weights, probabilities, pareto_k, trusted)


def smoothed_states(
    pair: Pair, y: Tensor, latents: Latents, num_draws: int, num_paths: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw paths of a switching story's states at draws of the parameters, from a filter of sums of Gaussians.

    Returns
    -------
    states : Tensor
        Shape ``(num_draws, num_paths, num_series, T, D)``.
    log_ratios : Tensor
        ``log p(y, s, x) - log q(s, x)`` in nats, shape ``(num_draws, num_paths, num_series)``.
    log_likelihood : Tensor
        The filter's, an approximation, in nats, shape ``(num_draws, num_series)``.
    """
    found = []
    for _, own, model in pieces(pair, y, latents, num_draws, paths=num_paths):
        assert isinstance(model, SwitchingLinearGaussian), ONE_KIND
        by_state = transitions(pair, own, model)
        options: dict[str, Any] = {"lengths": series_lengths(y).clamp_min(1), "log_transition": by_state}
        filtered = gaussian_sum_filter(y.double(), model, **options)
        drawn = draw_switching_paths(y.double(), filtered, model, num_paths, **options)
        found.append((drawn.states.transpose(1, 2), drawn.log_ratios.transpose(1, 2), filtered.log_likelihood))
    states, log_ratios, log_likelihood = (torch.cat(part) for part in zip(*found, strict=True))
    return states, log_ratios, log_likelihood


def of_regime(part: Tensor, regimes: Tensor) -> Tensor:
    """Take a parameter's value in each regime of a path.

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
    found = []
    for _, _, model in pieces(pair, y, latents, num_draws):
        assert isinstance(model, LinearGaussian), ONE_KIND
        states = draw_states(kalman_filter_scan(y.double(), model), model)
        complete = draw_missing(y.double(), states, model.C, model.d, model.R)
        found.append((states, matvec(model.C, states) + model.d, complete))
    states, signal, complete = (torch.cat(part) for part in zip(*found, strict=True))
    return Paths(states, None, signal, complete)
