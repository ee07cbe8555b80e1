"""Parameter draws of a state space model, batched so that filters and smoothers run on many draws at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pplgen.compiler.traceable_pyro import FunctionalFills
from pplgen.compiler.vectorisation import map_draws
from pplgen.errors import InputError
from pplgen.exact.gaussian_sums import MAX_TERMS as MAX_COMPONENTS
from pplgen.exact.switching import per_regime
from pplgen.story.dynamics import HiddenMarkov, LinearGaussian, MarkovChain, StateSpace, SwitchingLinearGaussian
from pplgen.story.pair import Pair
from pplgen.story.state_space import StateSpaceStory

__all__ = [
    "draw_chunks",
    "first_model",
    "model_at_draws",
    "regime_chains",
    "select_draws",
    "series_story",
    "transitions",
    "vmap_draws",
]

Latents = Mapping[str, Tensor]
"""Draws of the parameters by name, shape ``(num_draws, ...)`` each."""
MAX_CHUNK = 2**21
"""Largest size of an intermediate result for a chunk of draws of a linear Gaussian model; other models have fewer such
results, and chunks eight times as large."""


def series_story(pair: Pair, verb: str) -> StateSpaceStory:
    """Return the pair's story, or raise ``InputError`` if it is no state space story."""
    if not isinstance(pair.story, StateSpaceStory):
        name = type(pair.story).__name__ if pair.story else "a bare pair"
        raise InputError(f"{verb}: expected a state space story, not {name}")
    return pair.story


def select_draws(latents: Latents, chosen: slice) -> dict[str, Tensor]:
    """Select a slice of the draws."""
    return {name: value[chosen] for name, value in latents.items()}


def first_model(pair: Pair, y: Tensor, latents: Latents) -> StateSpace:
    """Return the story's state space model at the first draw, without batch axes."""
    story = series_story(pair, "state space")
    with torch.no_grad(), pyro.validation_enabled(False):
        model: StateSpace = poutine.condition(story.state_space, _first(latents))(y)
    return model


def model_at_draws(pair: Pair, y: Tensor, latents: Latents, num_draws: int) -> StateSpace:
    """Return the story's state space model at each draw; call it inside ``pair.isolated``.

    Parameters
    ----------
    pair
        Pair of a state space story.
    y
        Series, NaN where missing, shape ``(num_series, T, E)``.
    latents
        Draws of the parameters.
    num_draws
        Number of draws.

    Returns
    -------
    StateSpace
        In double precision, with leading batch axes ``(num_draws, num_series)`` (1 for ``num_series`` where the series
        share a parameter), then a time axis where there is one, and a regime axis where ``per_regime`` gives one.
        ``regimes`` of a hidden Markov model has no batch axes.
    """
    story = series_story(pair, "state space")

    def one(latent: dict[str, Tensor]) -> StateSpace:
        model: StateSpace = poutine.condition(story.state_space, latent)(y)
        return per_regime(y, model) if isinstance(model, SwitchingLinearGaussian) else model

    return _with_batch_axes(map_draws(one, num_draws, latents))


def draw_chunks(
    pair: Pair, y: Tensor, latents: Latents, num_draws: int, *, paths: int = 0
) -> Iterator[tuple[slice, dict[str, Tensor], Any]]:
    """Split draws into chunks that fit into memory, of at least one draw each.

    Parameters
    ----------
    pair, y, latents, num_draws
        As for ``model_at_draws``.
    paths
        Paths of a switching story's states per draw, simulated from a Gaussian sum filter.

    Yields
    ------
    tuple
        Slice of draws, their parameters, and the model at them.
    """
    first = first_model(pair, y, latents)
    entries, limit = y.shape[0] * y.shape[1], 8 * MAX_CHUNK
    if isinstance(first, LinearGaussian):
        entries, limit = entries * max(first.m0.shape[-1], y.shape[-1]) ** 2, MAX_CHUNK
    elif isinstance(first, HiddenMarkov):
        entries *= first.regimes.numel() ** 2
    else:
        K, D = first.pi.numel(), first.m0.numel()
        size = max(D, y.shape[-1])
        entries *= (K * size + paths) * size + ((MAX_COMPONENTS + K) * D * (D + 2) if paths else 0)
    each = max(1, min(num_draws, limit // max(1, entries)))
    for start in range(0, num_draws, each):
        chosen = slice(start, min(start + each, num_draws))
        subset = select_draws(latents, chosen)
        yield chosen, subset, model_at_draws(pair, y, subset, chosen.stop - chosen.start)


def regime_chains(pair: Pair, y: Tensor, x: Tensor, latents: Latents) -> HiddenMarkov:
    """Return the chain of regimes given paths of states x, shape ``(num_draws, num_series, T, D)``.

    Batch axes as for ``model_at_draws``.
    """
    story = series_story(pair, "regimes")

    def one(latent: dict[str, Tensor]) -> HiddenMarkov:
        latent = dict(latent)
        path = latent.pop("_path")
        return poutine.condition(story.regimes_given, latent)(y, path)

    chains = _with_batch_axes(map_draws(one, len(x), {**latents, "_path": x}))
    assert isinstance(chains, HiddenMarkov), "the regimes given the states are a chain"
    return chains


def transitions(pair: Pair, latents: Latents, model: SwitchingLinearGaussian) -> Callable[[Tensor], Tensor] | None:
    """Return the log transition probabilities of regimes as a function of the state, where they depend on it.

    Parameters
    ----------
    pair, latents
        As for ``model_at_draws``.
    model
        Model at the draws; its initial state is used to test for dependence.

    Returns
    -------
    callable or None
        Function from states ``(num_draws, ..., D)`` to ``log p(s_{t+1} | s_t, x_t)``, shape ``(num_draws, ..., K, K)``.
    """
    story = series_story(pair, "regimes")
    if type(story).log_transition is StateSpaceStory.log_transition:
        return None
    dtype = next((value.dtype for value in latents.values()), torch.get_default_dtype())
    matrix = poutine.condition(story.log_transition, _first(latents))(model.m0[0].to(dtype))
    if matrix is None or matrix.ndim == 2:  # the same matrix for all states
        return None

    def one(latent: dict[str, Tensor], states: Tensor) -> Tensor:
        return poutine.condition(story.log_transition, latent)(states)

    def at_draws(states: Tensor) -> Tensor:
        with pyro.validation_enabled(False):
            return torch.func.vmap(one)(dict(latents), states.to(dtype)).double()

    return at_draws


def vmap_draws(function: Callable[..., Tensor], latents: Latents, *values: Tensor) -> Tensor:
    """Evaluate a random function of a conditioned story at each draw: by ``vmap`` if possible, else in a loop.

    Unlike ``map_draws`` it never traces, which would unroll loops over time.
    """

    def one(latent: dict[str, Tensor], *arguments: Tensor) -> Tensor:
        return poutine.condition(function, latent)(*arguments)

    with pyro.validation_enabled(False):
        try:
            with FunctionalFills():
                return torch.func.vmap(one, randomness="different")(dict(latents), *values)
        except (RuntimeError, NotImplementedError, ValueError):
            each = [one({n: v[s] for n, v in latents.items()}, *(v[s] for v in values)) for s in range(len(values[0]))]
            return torch.stack(each)


def _first(latents: Latents) -> dict[str, Tensor]:
    """Select the first draw."""
    return {name: value[0] for name, value in latents.items()}


def _with_batch_axes(stacked: Any) -> StateSpace:
    """Insert the axis of series, and of time where there is one, after that of draws; in double precision."""
    if isinstance(stacked, HiddenMarkov):
        initial, moves = stacked.chain
        chain = MarkovChain(_axes(initial, 1, 1), _axes(moves, 2, 2))
        return HiddenMarkov(chain, _axes(stacked.log_emission, 2, 1), stacked.regimes[0])
    if isinstance(stacked, SwitchingLinearGaussian):
        return SwitchingLinearGaussian(*(part.double().unsqueeze(1) for part in stacked))
    m0, S0, A, b, Q, C, d, R = stacked
    timed = (_axes(A, 2, 2), _axes(b, 1, 2), _axes(Q, 2, 2), _axes(C, 2, 2), _axes(d, 1, 2), _axes(R, 2, 2))
    return LinearGaussian(_axes(m0, 1, 1), _axes(S0, 2, 1), *timed)


def _axes(part: Tensor, core: int, batch: int) -> Tensor:
    """Insert batch axes: draws first, then ``batch`` axes before the last ``core``, of length 1 where absent."""
    absent = batch - (part.ndim - 1 - core)
    return part.double()[(slice(None), *(None,) * absent)]
