"""What state space models a story is at draws of its parameters, laid out so that algorithms run on many at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pplgen.compiler.tracing import FunctionalFills
from pplgen.compiler.vectorised import map_draws
from pplgen.errors import InputError
from pplgen.exact.gaussian_sums import MAX_TERMS as MOST_PASTS
from pplgen.exact.switching import per_regime
from pplgen.story.dynamics import HiddenMarkov, LinearGaussian, MarkovChain, StateSpace, SwitchingLinearGaussian
from pplgen.story.pair import Pair
from pplgen.story.state_space import StateSpaceStory

__all__ = ["at", "chains_given", "describe", "first_model", "per_draw", "pieces", "series_story", "transitions"]

Latents = Mapping[str, Tensor]
"""Draws of the parameters by name, shape ``(num_draws, ...)`` each."""
MOST = 2**21
"""Entries of the largest intermediate result of as many draws as are computed at once, of a linear Gaussian model;
others have fewer such results, and take eight times as many."""


def series_story(pair: Pair, verb: str) -> StateSpaceStory:
    """Return the pair's story, or raise ``InputError`` where its rows are no series."""
    if not isinstance(pair.story, StateSpaceStory):
        name = type(pair.story).__name__ if pair.story else "a bare pair"
        raise InputError(f"{verb}: the rows of {name} are no series; a state space story's are")
    return pair.story


def at(latents: Latents, chosen: slice) -> dict[str, Tensor]:
    """Take some of the draws."""
    return {name: value[chosen] for name, value in latents.items()}


def first_model(pair: Pair, y: Tensor, latents: Latents) -> StateSpace:
    """Ask the story what it is at the first draw alone, as it says it."""
    story = series_story(pair, "state space")
    with torch.no_grad(), pyro.validation_enabled(False):
        model: StateSpace = poutine.condition(story.state_space, _first(latents))(y)
    return model


def describe(pair: Pair, y: Tensor, latents: Latents, num_draws: int) -> StateSpace:
    """Ask the story what it is at each draw; call it inside ``pair.isolated``.

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
    StateSpace
        In doubles, with the batch axes ``(num_draws, num_series)`` in front of every part (1 in place of
        ``num_series`` for what series share), then a time axis where the parts have one and a regime axis wherever
        ``per_regime`` gives one. ``regimes`` of a hidden Markov model has no draws.
    """
    story = series_story(pair, "state space")

    def one(latent: dict[str, Tensor]) -> StateSpace:
        model: StateSpace = poutine.condition(story.state_space, latent)(y)
        return per_regime(y, model) if isinstance(model, SwitchingLinearGaussian) else model

    return _laid_out(map_draws(one, num_draws, latents))


def pieces(
    pair: Pair, y: Tensor, latents: Latents, num_draws: int, *, paths: int = 0
) -> Iterator[tuple[slice, dict[str, Tensor], Any]]:
    """Cut draws into pieces that fit into memory, of at least one draw.

    Parameters
    ----------
    pair, y, latents, num_draws
        As of ``describe``.
    paths
        How many paths of a switching story's states are drawn at each, from sums of Gaussians.

    Yields
    ------
    tuple
        Which draws, their parameters, and what the story is at them.
    """
    first = first_model(pair, y, latents)
    entries, most = y.shape[0] * y.shape[1], 8 * MOST
    if isinstance(first, LinearGaussian):
        entries, most = entries * max(first.m0.shape[-1], y.shape[-1]) ** 2, MOST
    elif isinstance(first, HiddenMarkov):
        entries *= first.regimes.numel() ** 2
    else:
        K, D = first.pi.numel(), first.m0.numel()
        size = max(D, y.shape[-1])
        entries *= (K * size + paths) * size + ((MOST_PASTS + K) * D * (D + 2) if paths else 0)
    each = max(1, min(num_draws, most // max(1, entries)))
    for start in range(0, num_draws, each):
        chosen = slice(start, min(start + each, num_draws))
        own = at(latents, chosen)
        yield chosen, own, describe(pair, y, own, chosen.stop - chosen.start)


def chains_given(pair: Pair, y: Tensor, x: Tensor, latents: Latents) -> HiddenMarkov:
    """Ask a switching story for the regimes given paths of states x, of shape ``(num_draws, num_series, T, D)``.

    Laid out as by ``describe``.
    """
    story = series_story(pair, "regimes")

    def one(latent: dict[str, Tensor]) -> HiddenMarkov:
        latent = dict(latent)
        path = latent.pop("_path")
        return poutine.condition(story.regimes_given, latent)(y, path)

    chains = _laid_out(map_draws(one, len(x), {**latents, "_path": x}))
    assert isinstance(chains, HiddenMarkov), "the regimes given the states are a chain"
    return chains


def transitions(pair: Pair, latents: Latents, model: SwitchingLinearGaussian) -> Callable[[Tensor], Tensor] | None:
    """Return a story's transitions of regimes as a function of states, where they depend on them.

    Parameters
    ----------
    pair, latents
        As for ``describe``.
    model
        What the story is at the draws; its first state shows whether they do.

    Returns
    -------
    callable or None
        From states ``(num_draws, ..., D)`` to ``log p(s_{t+1} | s_t, x_t)``, shape ``(num_draws, ..., K, K)``.
    """
    story = series_story(pair, "regimes")
    if type(story).log_transition is StateSpaceStory.log_transition:
        return None
    dtype = next((value.dtype for value in latents.values()), torch.get_default_dtype())
    there = poutine.condition(story.log_transition, _first(latents))(model.m0[0].to(dtype))
    if there is None or there.ndim == 2:  # the same matrix for all states
        return None

    def one(latent: dict[str, Tensor], states: Tensor) -> Tensor:
        return poutine.condition(story.log_transition, latent)(states)

    def at_draws(states: Tensor) -> Tensor:
        with pyro.validation_enabled(False):
            return torch.func.vmap(one)(dict(latents), states.to(dtype)).double()

    return at_draws


def per_draw(function: Callable[..., Tensor], latents: Latents, *values: Tensor) -> Tensor:
    """Evaluate a random function of a conditioned story at each draw: in one go where that can be, else in turn.

    Unlike ``map_draws`` it never traces, which would unroll whatever goes step by step.
    """

    def one(latent: dict[str, Tensor], *own: Tensor) -> Tensor:
        return poutine.condition(function, latent)(*own)

    with pyro.validation_enabled(False):
        try:
            with FunctionalFills():
                return torch.func.vmap(one, randomness="different")(dict(latents), *values)
        except (RuntimeError, NotImplementedError, ValueError):
            each = [one({n: v[s] for n, v in latents.items()}, *(v[s] for v in values)) for s in range(len(values[0]))]
            return torch.stack(each)


def _first(latents: Latents) -> dict[str, Tensor]:
    """Take the first draw."""
    return {name: value[0] for name, value in latents.items()}


def _laid_out(stacked: Any) -> StateSpace:
    """Put the axis of series, and of time where there is one, behind the stacked draws; in doubles."""
    if isinstance(stacked, HiddenMarkov):
        initial, moves = stacked.chain
        chain = MarkovChain(_axes(initial, 1, 1), _axes(moves, 2, 2))
        return HiddenMarkov(chain, _axes(stacked.log_emission, 2, 1), stacked.regimes[0])
    if isinstance(stacked, SwitchingLinearGaussian):
        return SwitchingLinearGaussian(*(part.double().unsqueeze(1) for part in stacked))
    m0, S0, A, b, Q, C, d, R = stacked
    timed = (_axes(A, 2, 2), _axes(b, 1, 2), _axes(Q, 2, 2), _axes(C, 2, 2), _axes(d, 1, 2), _axes(R, 2, 2))
    return LinearGaussian(_axes(m0, 1, 1), _axes(S0, 2, 1), *timed)


def _axes(part: Tensor, core: int, wanted: int) -> Tensor:
    """Give a part its batch axes: draws first, then ``wanted`` in front of its last ``core``, of length 1 if absent."""
    absent = wanted - (part.ndim - 1 - core)
    return part.double()[(slice(None), *(None,) * absent)]
