"""Chains of regimes: the sum over all paths, regime probabilities, draws, and series whose regimes are summed out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

FEW = 6
"""Regimes up to which products are summed entry by entry in logarithms, which loses nothing to underflow."""
LEAST = -1e4
"""Logarithm of what is impossible: finite, so that gradients are."""


def log_normaliser(log_initial: Tensor, log_transition: Tensor, log_emission: Tensor) -> Tensor:
    """Sum the weights of all paths of regimes, by products of neighbouring steps: log2 T rounds for T steps.

    Its gradient in ``log_emission`` is the probabilities of regimes, in ``log_transition`` those of neighbours.

    Parameters
    ----------
    log_initial
        ``log p(s_1)``, shape ``(..., K)``.
    log_transition
        ``log p(s_{t+1} | s_t)``, from rows to columns, shape ``(..., K, K)``, or ``(..., T - 1, K, K)`` as long as it
        has more axes than ``log_initial`` by two.
    log_emission
        ``log p(y_t | s_t)``, zero where nothing is seen, shape ``(..., T, K)``.

    Returns
    -------
    Tensor
        ``log p(y_1:T)`` in nats, shape ``(...)``.
    """
    first = (log_initial + log_emission[..., 0, :]).clamp_min(LEAST)
    if log_emission.shape[-2] == 1:
        return first.logsumexp(-1)
    timed = log_transition if log_transition.ndim == log_initial.ndim + 2 else log_transition.unsqueeze(-3)
    steps = (timed + log_emission[..., 1:, None, :]).clamp_min(LEAST)
    while (T := steps.shape[-3]) > 1:
        product = _log_product(steps[..., 0 : T - 1 : 2, :, :], steps[..., 1:T:2, :, :])
        steps = torch.cat([product, steps[..., T - 1 :, :, :]], -3) if T % 2 else product
    return (first.unsqueeze(-1) + steps.squeeze(-3)).flatten(-2).logsumexp(-1)


def marginals(log_initial: Tensor, log_transition: Tensor, log_emission: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``log p(y_1:T)``, and the probabilities of regimes and of neighbours given y.

    Arguments as of ``log_normaliser``; shapes ``(...)``, ``(..., T, K)`` and ``(..., T - 1, K, K)``.
    """
    T, K = log_emission.shape[-2:]
    timed = log_transition if log_transition.ndim == log_initial.ndim + 2 else log_transition.unsqueeze(-3)
    with torch.enable_grad():
        emission = log_emission.detach().requires_grad_()
        links = timed.detach().expand(*log_emission.shape[:-2], T - 1, K, K).clone().requires_grad_()
        total = log_normaliser(log_initial.detach().expand(*log_emission.shape[:-2], K), links, emission)
        regimes, pairs = torch.autograd.grad(total.sum(), (emission, links))
    return total.detach(), regimes, pairs


def sample_chain(log_initial: Tensor, log_transition: Tensor, num_steps: int) -> Tensor:
    """Draw paths of regimes, shape ``(..., num_steps)``, in log2 T rounds.

    For each step and each regime before it the next regime is drawn; these maps are then composed.

    Parameters
    ----------
    log_initial
        ``log p(s_1)``, shape ``(..., K)``.
    log_transition
        ``log p(s_{t+1} | s_t)``, shape ``(..., K, K)``, of the same batch axes.
    num_steps
        Length T of the paths.
    """
    first = dist.Categorical(logits=log_initial).sample().unsqueeze(-1)
    if num_steps == 1:
        return first
    K = log_initial.shape[-1]
    links = log_transition.unsqueeze(-3).expand(*log_transition.shape[:-2], num_steps - 1, K, K)
    maps = dist.Categorical(logits=links.clamp_min(LEAST)).sample()
    stride = 1
    while stride < num_steps - 1:
        reached = torch.gather(maps[..., stride:, :], -1, maps[..., :-stride, :])
        maps = torch.cat([maps[..., :stride, :], reached], -2)
        stride *= 2
    later = torch.gather(maps, -1, first.unsqueeze(-2).expand(*maps.shape[:-1], 1)).squeeze(-1)
    return torch.cat([first, later], -1)


class HiddenMarkovSeries(dist.TorchDistribution):
    """Series seen through a chain of regimes, which are summed out.

    Parameters
    ----------
    log_initial, log_transition
        Of the chain, shapes ``(..., K)`` and ``(..., K, K)``.
    emission
        Distribution of one step of each regime, NaN being missing: batch shape ``(..., K)``, event shape ``(D,)``.
    num_steps
        Length T of the series.
    """

    arg_constraints: dict = {}  # noqa: RUF012
    has_rsample = False

    def __init__(self, log_initial: Tensor, log_transition: Tensor, emission: Any, num_steps: int) -> None:
        self.log_initial, self.log_transition = log_initial, log_transition
        self.emission, self.num_steps = emission, num_steps
        batch = torch.broadcast_shapes(log_initial.shape[:-1], emission.batch_shape[:-1])
        super().__init__(batch, torch.Size([num_steps, *emission.event_shape]), validate_args=False)

    def expand(self, batch_shape: torch.Size, _instance: None = None) -> HiddenMarkovSeries:
        """Repeat along new axes of series."""
        K = self.log_initial.shape[-1]
        return HiddenMarkovSeries(
            self.log_initial.expand(*batch_shape, K),
            self.log_transition.expand(*batch_shape, K, K),
            self.emission.expand((*batch_shape, K)),
            self.num_steps,
        )

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of the seen entries in nats, shape ``batch_shape``."""
        return log_normaliser(self.log_initial, self.log_transition, self.log_emission(value))

    def log_emission(self, value: Tensor) -> Tensor:
        """Log density of each step in each regime in nats, shape ``(..., T, K)``."""
        return self.emission.log_prob(value.movedim(-2, 0).unsqueeze(-2)).movedim(0, -2)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw series."""
        shape = torch.Size(sample_shape)
        K = self.log_initial.shape[-1]
        path = sample_chain(
            self.log_initial.expand(*shape, *self.batch_shape, K),
            self.log_transition.expand(*shape, *self.batch_shape, K, K),
            self.num_steps,
        )
        every = self.emission.expand((*self.batch_shape, K)).sample(torch.Size([self.num_steps, *shape]))
        chosen = path.movedim(-1, 0)[..., None, None].expand(*every.shape[:-2], 1, every.shape[-1])
        return torch.gather(every, -2, chosen).squeeze(-2).movedim(0, -2).to(self.log_initial.dtype)


def _log_product(earlier: Tensor, later: Tensor) -> Tensor:
    """Multiply matrices given by their logarithms."""
    if earlier.shape[-1] <= FEW:
        return (earlier.unsqueeze(-1) + later.unsqueeze(-3)).logsumexp(-2)
    rows, columns = earlier.amax(-1, keepdim=True).detach(), later.amax(-2, keepdim=True).detach()
    product = (earlier - rows).exp() @ (later - columns).exp()
    return product.clamp_min(torch.finfo(product.dtype).tiny).log() + rows + columns
