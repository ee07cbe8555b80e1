"""Hidden Markov chains: normalising constant, posterior marginals, draws, and series with the regimes summed out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from pplgen.distributions.missing import MarginalIndependent
from pplgen.story.base import InputError

MAX_ELEMENTWISE_REGIMES = 6
"""Up to this many regimes products are computed entry by entry in log space, without underflow; above it, as matrix
products in double precision, which lose paths 700 nats below the best of their step."""
LOG_ZERO = -1e30
"""Log probability of impossible transitions: finite, so that gradients are, and below any sum of log densities."""


def log_normaliser(
    log_initial: Float[Tensor, "... regimes"],
    log_transition: Float[Tensor, "... regimes regimes"],
    log_emission: Float[Tensor, "... time regimes"],
) -> Float[Tensor, "..."]:
    """Log normaliser of a hidden Markov chain, by a parallel scan in log2 T rounds for T steps.

    Weights need not sum to one; where no path is possible the result is minus infinity, with gradient zero. Otherwise
    the gradient in ``log_emission`` is the marginals of regimes, in ``log_transition`` those of successive pairs.

    Parameters
    ----------
    log_initial
        ``log p(s_1)``.
    log_transition
        ``log p(s_{t+1} | s_t)``, from rows to columns; with an axis of T - 1 steps before, and so two more axes than
        ``log_initial``, if it varies over time.
    log_emission
        ``log p(y_t | s_t)``, zero for missing steps.

    Returns
    -------
    Tensor
        ``log p(y_1:T)`` in nats.
    """
    first = (log_initial + log_emission[..., 0, :]).clamp_min(LOG_ZERO)
    if log_emission.shape[-2] > 1:
        timed = log_transition if log_transition.ndim == log_initial.ndim + 2 else log_transition.unsqueeze(-3)
        first = (first.unsqueeze(-1) + log_product(timed, log_emission[..., 1:, :])).flatten(-2)
    total = first.logsumexp(-1)
    return torch.where(total > LOG_ZERO / 2, total, -torch.inf)


def log_product(
    links: Float[Tensor, "... steps regimes regimes"], emission: Float[Tensor, "... time regimes"] | None = None
) -> Float[Tensor, "... regimes regimes"]:
    """Log of the product of matrices given by their logs: a parallel scan in log2 T rounds.

    Parameters
    ----------
    links
        Log matrices, T or, if all are the same, one.
    emission
        Added to the columns of each log matrix.

    Returns
    -------
    Tensor
        Log of the product, at most ``LOG_ZERO`` where it is zero.
    """
    K = links.shape[-1]
    if K > MAX_ELEMENTWISE_REGIMES:
        return _product_by_matmul((links if emission is None else links + emission.unsqueeze(-2)).clamp_min(LOG_ZERO))
    T = links.shape[-3] if emission is None else emission.shape[-2]
    L = 2 ** (((T - 1).bit_length() + 1) // 2)
    B = -(-T // L)
    if links.shape[-3] == T:
        grid = _fold(links.flatten(-2), L, B).unflatten(-3, (K, K))
    else:
        grid = links.movedim(-3, -1).unsqueeze(-1)
    if emission is not None:
        grid = grid + _fold(emission, L, B).unsqueeze(-4)
    inside = torch.arange(L, device=links.device)[:, None] + L * torch.arange(B, device=links.device) < T
    identity = LOG_ZERO * (1 - torch.eye(K, dtype=links.dtype, device=links.device))
    return _product_elementwise(torch.where(inside, grid.clamp_min(LOG_ZERO), identity[..., None, None]))


def marginals(
    log_initial: Float[Tensor, "... regimes"],
    log_transition: Float[Tensor, "... regimes regimes"],
    log_emission: Float[Tensor, "... time regimes"],
) -> tuple[Float[Tensor, "..."], Float[Tensor, "... time regimes"], Float[Tensor, "... time-1 regimes regimes"]]:
    """Return ``log p(y_1:T)``, and the marginals of regimes and of successive pairs given y.

    Parameters are those of ``log_normaliser``.
    """
    T, K = log_emission.shape[-2:]
    timed = log_transition if log_transition.ndim == log_initial.ndim + 2 else log_transition.unsqueeze(-3)
    with torch.enable_grad():
        emission = log_emission.detach().requires_grad_()
        links = timed.detach().expand(*log_emission.shape[:-2], T - 1, K, K).clone().requires_grad_()
        total = log_normaliser(log_initial.detach().expand(*log_emission.shape[:-2], K), links, emission)
        regimes, pairs = torch.autograd.grad(total.sum(), (emission, links), materialize_grads=True)
    return total.detach(), regimes, pairs


def sample_chain(
    log_initial: Float[Tensor, "... regimes"], log_transition: Float[Tensor, "... regimes regimes"], num_steps: int
) -> Int[Tensor, "... {num_steps}"]:
    """Draw paths of a Markov chain, in log2 T rounds.

    The next regime is drawn for each step and each previous regime; these maps are then composed.

    Parameters
    ----------
    log_initial
        ``log p(s_1)``.
    log_transition
        ``log p(s_{t+1} | s_t)``, with the same batch axes.
    num_steps
        Length T of the paths.
    """
    first = dist.Categorical(logits=log_initial).sample().unsqueeze(-1)
    if num_steps == 1:
        return first
    K = log_initial.shape[-1]
    links = log_transition.unsqueeze(-3).expand(*log_transition.shape[:-2], num_steps - 1, K, K)
    maps = dist.Categorical(logits=links.clamp_min(LOG_ZERO)).sample()
    stride = 1
    while stride < num_steps - 1:
        reached = torch.gather(maps[..., stride:, :], -1, maps[..., :-stride, :])
        maps = torch.cat([maps[..., :stride, :], reached], -2)
        stride *= 2
    later = torch.gather(maps, -1, first.unsqueeze(-2).expand(*maps.shape[:-1], 1)).squeeze(-1)
    return torch.cat([first, later], -1)


class HiddenMarkovSeries(dist.TorchDistribution):
    """Hidden Markov model of series, the regimes summed out.

    Parameters
    ----------
    log_initial, log_transition
        Log probabilities of the chain.
    emission
        Distribution of one step in each regime, any with batch shape ``(..., K)`` and event shape ``()``, ``(D,)`` or
        of more axes. Steps with missing entries take one of ``pplgen/distributions/missing.py``.
    num_steps
        Length T of the series.
    """

    arg_constraints: dict = {}  # noqa: RUF012
    has_rsample = False

    def __init__(
        self,
        log_initial: Float[Tensor, "... regimes"],
        log_transition: Float[Tensor, "... regimes regimes"],
        emission: Any,
        num_steps: int,
    ) -> None:
        self.log_initial, self.log_transition = log_initial, log_transition
        self.emission, self.num_steps = emission, num_steps
        self._time = -1 - len(emission.event_shape)
        batch = torch.broadcast_shapes(log_initial.shape[:-1], emission.batch_shape[:-1])
        super().__init__(batch, torch.Size([num_steps, *emission.event_shape]), validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> HiddenMarkovSeries:
        """Expand to more batch axes."""
        series = HiddenMarkovSeries(self.log_initial, self.log_transition, self.emission, self.num_steps)
        series._batch_shape = torch.Size(batch_shape)
        return series

    def log_prob(self, value: Num[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Log density of the observed entries in nats, shape ``batch_shape``."""
        return log_normaliser(self.log_initial, self.log_transition, self.log_emission(value))

    def log_emission(self, value: Num[Tensor, "..."]) -> Float[Tensor, "... time regimes"]:
        """Log density of each step in each regime in nats."""
        return self.emission.log_prob(self._steps(value)).movedim(0, -2)

    def step_moments(
        self, value: Num[Tensor, "... time columns"]
    ) -> tuple[Float[Tensor, "... 1 regimes columns"], Float[Tensor, "... 1 regimes columns"]]:
        """Mean and standard deviation of the columns of a step in each regime, of normal emissions.

        Raises
        ------
        InputError
            For other emissions.
        """
        normal: Any = self.emission
        while isinstance(normal, dist.Independent | MarginalIndependent):
            normal = normal.columns if isinstance(normal, MarginalIndependent) else normal.base_dist
        if isinstance(normal, dist.Normal):
            mean, sd = normal.loc, normal.scale
        elif hasattr(normal, "scale_tril"):
            mean, sd = normal.loc, normal.scale_tril.square().sum(-1).sqrt()
        else:
            raise InputError(f"steps have no moments: the emission is {type(normal).__name__}; expected a normal one")
        return mean.unsqueeze(-3), sd.unsqueeze(-3)

    def sample(self, sample_shape: Sequence[int] = ()) -> Float[Tensor, "..."]:
        """Draw series."""
        shape = torch.Size(sample_shape)
        K = self.log_initial.shape[-1]
        path = sample_chain(
            self.log_initial.expand(*shape, *self.batch_shape, K),
            self.log_transition.expand(*shape, *self.batch_shape, K, K),
            self.num_steps,
        )
        draws = self.emission.expand((*self.batch_shape, K)).sample(torch.Size([self.num_steps, *shape]))
        return self._chosen(draws, path).to(self.log_initial.dtype)

    def complete(self, value: Num[Tensor, "..."], path: Int[Tensor, "... time"]) -> Num[Tensor, "..."]:
        """Draw the missing entries of series given the observed ones and paths of regimes."""
        emission = self.emission.expand((*path.movedim(-1, 0).shape, self.log_initial.shape[-1]))
        return self._chosen(emission.complete(self._steps(value)), path)

    def _steps(self, value: Num[Tensor, "..."]) -> Num[Tensor, "..."]:
        """Move time to the front, and add an axis for the regimes."""
        return value.movedim(self._time, 0).unsqueeze(self._time)

    def _chosen(self, steps: Num[Tensor, "..."], path: Int[Tensor, "... time"]) -> Num[Tensor, "..."]:
        """Choose from values of each step in each regime, time first, those of the regimes of a path."""
        axes = self.event_shape[1:]
        index = path.movedim(-1, 0)[(..., None, *[None] * len(axes))]
        chosen = torch.gather(steps, self._time, index.expand(*index.shape[: self._time], 1, *axes))
        return chosen.squeeze(self._time).movedim(0, self._time)


def _fold(x: Float[Tensor, "... time entries"], L: int, B: int) -> Float[Tensor, "... entries {L} {B}"]:
    """Fold time into B blocks of L steps, padded by zeros at the end.

    Blocks are the contiguous axis: entries of many small matrices are adjacent in memory, as vector units require,
    and are paired along L. Stacking makes compilers keep this layout.
    """
    x = torch.nn.functional.pad(x, (0, 0, 0, L * B - x.shape[-2])).unflatten(-2, (B, L))
    return torch.stack([x[..., m].mT for m in range(x.shape[-1])], -3)


def _product_elementwise(
    grid: Float[Tensor, "... regimes regimes steps blocks"],
) -> Float[Tensor, "... regimes regimes"]:
    """Multiply entry by entry in log space all steps of all blocks; their number in a block is a power of two."""
    while (L := grid.shape[-2]) > 1:
        pairs = grid.unflatten(-2, (L // 2, 2))
        grid = (pairs[..., 0, :].unsqueeze(-3) + pairs[..., 1, :].unsqueeze(-5)).logsumexp(-4)
    return log_product(grid.squeeze(-2).movedim(-1, -3)) if grid.shape[-1] > 1 else grid[..., 0, 0]


def _product_by_matmul(steps: Float[Tensor, "... time regimes regimes"]) -> Float[Tensor, "... regimes regimes"]:
    """Multiply as matrices, each row and each column scaled by its maximum."""
    product = steps.double()
    eye = torch.eye(steps.shape[-1], dtype=product.dtype, device=product.device)
    while (T := product.shape[-3]) > 1:
        if T % 2:
            product = torch.cat([product, (LOG_ZERO * (1 - eye)).expand(*product.shape[:-3], 1, *eye.shape)], -3)
        pairs = product.unflatten(-3, (-1, 2))
        earlier, later = pairs[..., 0, :, :], pairs[..., 1, :, :]
        rows, columns = earlier.amax(-1, keepdim=True).detach(), later.amax(-2, keepdim=True).detach()
        linear = (earlier - rows).exp() @ (later - columns).exp()
        logarithm = linear.clamp_min(torch.finfo(linear.dtype).tiny).log()
        product = torch.where(linear > 0, logarithm, LOG_ZERO) + rows + columns
    return product.squeeze(-3).to(steps.dtype)
