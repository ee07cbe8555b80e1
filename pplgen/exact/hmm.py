"""Hidden Markov models: forward-backward, Viterbi, forward filtering backward sampling, and a parallel scan.

The weight of a path of states ``s_1, ..., s_T`` is ``exp(initial[s_1] + emission_1[s_1] + sum_t (transition_t[s_{t-1},
s_t] + emission_t[s_t]))``. With log probabilities as potentials the sum over all paths is ``p(y_1:T)``; initial and
transition potentials need not be normalised. A missing observation has log emissions of zero. (Bishop 2006, Pattern
Recognition and Machine Learning, section 13.2.)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pplgen.errors import InputError
from pplgen.exact.scan import Elements, associative_scan
from pplgen.exact.shapes import along_time, broadcast_batches, check_dtypes, check_shape
from pplgen.exact.simulation import draw_categorical
from pplgen.story.dynamics import MarkovChain

__all__ = ["Posterior", "forward_backward", "log_normaliser", "sample_paths", "viterbi"]


class Posterior(NamedTuple):
    """Results of forward-backward; past the end of a shorter series its last state is repeated."""

    log_normaliser: Float[Tensor, "..."]
    """``log p(y_1:T)`` in nats."""
    log_densities: Float[Tensor, "... time"]
    """``log p(y_t | y_1:t-1)`` in nats; they sum to ``log_normaliser``."""
    filtered: Float[Tensor, "... time regimes"]
    """``p(s_t | y_1:t)``."""
    smoothed: Float[Tensor, "... time regimes"]
    """``p(s_t | y_1:T)``."""
    pairs: Float[Tensor, "... time-1 regimes regimes"]
    """``p(s_t, s_{t+1} | y_1:T)``."""


def forward_backward(
    log_emission: Float[Tensor, "... time regimes"], chain: MarkovChain, *, lengths: Int[Tensor, "..."] | None = None
) -> Posterior:
    """Compute marginals of states and of adjacent pairs by the sequential forward-backward algorithm.

    Parameters
    ----------
    log_emission
        ``log p(y_t | s_t)``.
    chain
        The Markov chain; batch axes broadcast.
    lengths
        Number of steps of each series, from 1 to T, integers; T by default.

    Raises
    ------
    InputError
        If shapes, dtypes or lengths do not match.
    """
    first, links = _log_potentials(log_emission, chain, lengths)
    forward = _forward(first, links)
    backward = [torch.zeros_like(first)]
    for t in reversed(range(links.shape[-3])):
        backward.append(_log_sum(links[..., t, :, :] + backward[-1].unsqueeze(-2), -1))
    future = torch.stack(backward[::-1], -2)
    pairs = forward[..., :-1, :].unsqueeze(-1) + links + future[..., 1:, :].unsqueeze(-2)
    log_normalisers = _log_sum(forward, -1)
    return Posterior(
        log_normalisers[..., -1],
        torch.cat([log_normalisers[..., :1], log_normalisers.diff(dim=-1)], -1),
        forward.softmax(dim=-1),
        (forward + future).softmax(dim=-1),
        pairs.flatten(-2).softmax(dim=-1).unflatten(-1, pairs.shape[-2:]),
    )


def log_normaliser(
    log_emission: Float[Tensor, "... time regimes"], chain: MarkovChain, *, lengths: Int[Tensor, "..."] | None = None
) -> Float[Tensor, "..."]:
    """Compute the log normaliser in parallel over time, by a scan of matrix products in the log semiring.

    Its gradient in ``log_emission`` is the smoothed marginals, in a time-varying ``log_transition`` the pair marginals.
    Arguments and errors as for ``forward_backward``.

    Returns
    -------
    Tensor
        ``log p(y_1:T)`` in nats.
    """
    first, links = _log_potentials(log_emission, chain, lengths)
    start = first.unsqueeze(-2).expand(*first.shape, first.shape[-1]).unsqueeze(-3)
    (products,) = associative_scan(_log_matrix_product, (torch.cat([start, links], -3),), dim=-3)
    return _log_sum(products[..., -1, 0, :], -1)


def viterbi(
    log_emission: Float[Tensor, "... time regimes"], chain: MarkovChain, *, lengths: Int[Tensor, "..."] | None = None
) -> tuple[Int[Tensor, "... time"], Float[Tensor, "..."]]:
    """Compute the most probable path (Viterbi); arguments and errors as for ``forward_backward``.

    Returns
    -------
    path : Tensor
        Past the end of a shorter series its last state is repeated.
    log_weight : Tensor
        ``log p(path, y_1:T)`` in nats.
    """
    first, links = _log_potentials(log_emission, chain, lengths)
    best, predecessors = first, []
    for t in range(links.shape[-3]):
        best, previous = (best.unsqueeze(-1) + links[..., t, :, :]).max(dim=-2)
        predecessors.append(previous)
    log_weight, last = best.max(dim=-1)
    path = [last]
    for previous in reversed(predecessors):
        path.append(torch.take_along_dim(previous, path[-1].unsqueeze(-1), -1).squeeze(-1))
    return torch.stack(path[::-1], -1), log_weight


def sample_paths(
    log_emission: Float[Tensor, "... time regimes"],
    chain: MarkovChain,
    num_paths: int,
    *,
    lengths: Int[Tensor, "..."] | None = None,
    seed: int = 0,
) -> Int[Tensor, "{num_paths} ... time"]:
    """Draw paths from their posterior by forward filtering backward sampling.

    Parameters
    ----------
    log_emission, chain, lengths
        As for ``forward_backward``, with the same errors.
    num_paths
        Number of independent paths.
    seed
        Seed of the generator.

    Returns
    -------
    Tensor
        Past the end of a shorter series its last state is repeated.
    """
    first, links = _log_potentials(log_emission, chain, lengths)
    forward = _forward(first, links)
    generator = torch.Generator(device=first.device).manual_seed(seed)
    path = [draw_categorical(forward[..., -1, :].expand(num_paths, *first.shape), generator)]
    for t in reversed(range(links.shape[-3])):
        link = links[..., t, :, :].expand(num_paths, *first.shape, -1)
        into_next = torch.take_along_dim(link, path[-1][..., None, None], -1).squeeze(-1)
        path.append(draw_categorical(forward[..., t, :] + into_next, generator))
    return torch.stack(path[::-1], -1)


def _log_potentials(
    log_emission: Float[Tensor, "... time regimes"], chain: MarkovChain, lengths: Int[Tensor, "..."] | None
) -> tuple[Float[Tensor, "... regimes"], Float[Tensor, "... time-1 regimes regimes"]]:
    """Return log potentials of the first state and of the later steps."""
    log_initial, log_transition = chain
    check_dtypes(log_emission=log_emission, log_initial=log_initial, log_transition=log_transition)
    if log_emission.ndim < 2 or 0 in log_emission.shape[-2:]:
        raise InputError(
            f"log_emission has shape {tuple(log_emission.shape)}; expected (..., T, K) with at least one step and state"
        )
    T, K = log_emission.shape[-2:]
    check_shape("log_initial", log_initial, K)
    links = along_time("log_transition", log_transition, T - 1, K, K)
    batches = {"log_emission": log_emission.shape[:-2], "log_initial": log_initial.shape[:-1]}
    batch = broadcast_batches(**batches, log_transition=links.shape[:-3])
    first = (log_initial + log_emission[..., 0, :]).expand(*batch, K)
    links = (links + log_emission[..., 1:, :].unsqueeze(-2)).expand(*batch, T - 1, K, K)
    return first, links if lengths is None else _pad_with_identity(links, lengths)


def _pad_with_identity(
    links: Float[Tensor, "... links regimes regimes"], lengths: Int[Tensor, "..."]
) -> Float[Tensor, "... links regimes regimes"]:
    """Replace log potentials past the end of each series by those of the identity."""
    T, K = links.shape[-3] + 1, links.shape[-1]
    if lengths.is_floating_point() or lengths.shape != links.shape[:-3]:
        kind = f"{str(lengths.dtype).removeprefix('torch.')}s of shape {tuple(lengths.shape)}"
        raise InputError(f"lengths are {kind}; expected integers of shape {tuple(links.shape[:-3])}")
    if not ((lengths >= 1) & (lengths <= T)).all():
        raise InputError(f"lengths run from {lengths.min()} to {lengths.max()}; expected between 1 and {T}")
    continues = torch.arange(1, T, device=links.device) < lengths.unsqueeze(-1)
    identity = torch.eye(K, dtype=links.dtype, device=links.device).log()
    return torch.where(continues[..., None, None], links, identity)


def _forward(
    first: Float[Tensor, "... regimes"], links: Float[Tensor, "... links regimes regimes"]
) -> Float[Tensor, "... links+1 regimes"]:
    """Return ``log p(s_t, y_1:t)``."""
    forward = [first]
    for t in range(links.shape[-3]):
        forward.append(_log_sum(forward[-1].unsqueeze(-1) + links[..., t, :, :], -2))
    return torch.stack(forward, -2)


def _log_matrix_product(earlier: Elements, later: Elements) -> Elements:
    return (_log_sum(earlier[0].unsqueeze(-1) + later[0].unsqueeze(-3), -2),)


def _log_sum(x: Float[Tensor, "..."], dim: int) -> Float[Tensor, "..."]:
    """``logsumexp`` with gradient zero, not NaN, where all terms are minus infinity."""
    impossible = (x == -torch.inf).all(dim=dim, keepdim=True)
    return torch.where(impossible.squeeze(dim), -torch.inf, torch.where(impossible, 0, x).logsumexp(dim=dim))
