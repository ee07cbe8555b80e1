r"""Markov switching autoregressions, the regimes summed out by a chain of windows of regimes.

With ``d_t = y_t - mu[s_t]`` the step ``d_t = sum_i phi_i[s_t] d_{t-i} + N(0, sigma[s_t]^2)`` depends on the regimes
``s_{t-w}, ..., s_t``, where w is the order p, or 0 if all regimes share a mean. Such a window is one of
``H = K^(w + 1)`` hidden states, numbered in base K with ``s_t`` the last digit. Windows w + 1 steps apart share no
regime: the transition matrix over w + 1 steps has no structural zeros, and its log entries are plain sums.

References
----------
Hamilton (1989), A new approach to the economic analysis of nonstationary time series and the business cycle.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pplgen.distributions.hidden_markov import LOG_ZERO, log_normaliser, log_product, sample_chain
from pplgen.story.dynamics import MarkovChain


class MarkovSwitchingAutoregression(dist.TorchDistribution):
    """Distribution of univariate series given their first p steps; shorter series are padded by NaN.

    Parameters
    ----------
    P
        Transition probabilities, rows summing to one.
    mu, sigma
        Mean and standard deviation of each regime.
    phi
        Coefficients of lags 1, ..., p.
    num_steps
        Length T of the series.
    memory
        Number w of previous regimes that a step depends on.
    """

    arg_constraints: dict = {}  # noqa: RUF012
    has_rsample = False

    def __init__(
        self,
        P: Float[Tensor, "regimes regimes"],
        mu: Float[Tensor, "regimes"],
        sigma: Float[Tensor, "regimes"],
        phi: Float[Tensor, "regimes lags"],
        num_steps: int,
        memory: int,
    ) -> None:
        self.P, self.mu, self.sigma, self.phi = P, mu, sigma, phi
        self.num_steps, self.memory = num_steps, memory
        self.K, self.order = phi.shape
        super().__init__(torch.Size(), torch.Size([num_steps, 1]), validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> MarkovSwitchingAutoregression:
        """Expand to more batch axes."""
        new = MarkovSwitchingAutoregression(self.P, self.mu, self.sigma, self.phi, self.num_steps, self.memory)
        new._batch_shape = torch.Size(batch_shape)
        return new

    def chain(self) -> MarkovChain:
        """Return the Markov chain of windows, started at its stationary distribution."""
        log_P, log_initial = self.P.log(), stationary(self.P).log()
        H = self.K ** (self.memory + 1)
        for _ in range(self.memory):
            log_initial = (log_initial.unsqueeze(-1) + log_P.repeat(len(log_initial) // self.K, 1)).flatten()
        before = torch.arange(H, device=log_P.device)[:, None]
        after = torch.arange(H, device=log_P.device)
        follows = before % (H // self.K) == after // self.K
        links = log_P.repeat(H // self.K, 1).repeat(1, H // self.K)
        return MarkovChain(log_initial, torch.where(follows, links, -torch.inf))

    def log_emission(self, value: Float[Tensor, "... time 1"]) -> Float[Tensor, "... time windows"]:
        """Log density in nats of each step in each window, zero for the first p and past the end."""
        y, T = value.squeeze(-1), value.shape[-2]
        gap = y.isnan()
        mean, sd = self.step_moments(value)
        density = dist.Normal(mean.squeeze(-1), sd.squeeze(-1)).log_prob(torch.where(gap, 0.0, y).unsqueeze(-1))
        scored = ~gap & (torch.arange(T, device=y.device) >= self.order)
        return torch.where(scored.unsqueeze(-1), density, 0.0)

    def step_moments(
        self, value: Float[Tensor, "... time 1"]
    ) -> tuple[Float[Tensor, "... time windows 1"], Float[Tensor, "... windows 1"]]:
        """Mean of each step in each window given the steps before it, and its standard deviation."""
        y, q, T = value.squeeze(-1), self.memory + 1, value.shape[-2]
        y = torch.where(y.isnan(), 0.0, y)
        expected = self._along(self.mu, q - 1, q)
        for lag in range(1, min(self.order, T) + 1):
            earlier = torch.nn.functional.pad(y[..., : T - lag], (lag, 0))
            deviation = earlier.reshape(*y.shape, *[1] * q) - self._along(self.mu, max(q - 1 - lag, 0), q)
            expected = expected + self._along(self.phi[:, lag - 1], q - 1, q) * deviation
        mean = _contiguous(expected.expand(*y.shape, *[self.K] * q)).flatten(-q)
        sd = self._along(self.sigma, q - 1, q).expand(*[self.K] * q)
        return mean.unsqueeze(-1), _contiguous(sd).flatten(-q).unsqueeze(-1)

    def log_prob(self, value: Float[Tensor, "... time 1"]) -> Float[Tensor, "..."]:
        """Log density in nats given the first p steps, shape ``batch_shape``."""
        emission, chain = self.log_emission(value)[..., self.order :, :], self.chain()
        H, q = emission.shape[-1], self.memory + 1
        if q == 1 or emission.shape[-2] <= q:
            if emission.shape[-2] == 0:
                return emission.sum((-2, -1))
            return log_normaliser(chain.log_initial.expand(*emission.shape[:-2], H), chain.log_transition, emission)
        first = chain.log_initial + emission[..., 0, :]
        blocks = self._blocks(emission[..., 1:, :])
        total = (first.unsqueeze(-1) + log_product(blocks)).flatten(-2).logsumexp(-1)
        return torch.where(total > LOG_ZERO / 2, total, -torch.inf)

    def sample(self, sample_shape: Sequence[int] = ()) -> Float[Tensor, "... time 1"]:
        """Draw series, with the steps before the first at their means."""
        shape = torch.Size([*sample_shape, *self.batch_shape])
        K, initial = self.K, stationary(self.P).log()
        path = sample_chain(initial.expand(*shape, K), self.P.log().expand(*shape, K, K), self.num_steps)
        return self.continue_series(self.mu.new_full((*shape, self.num_steps, 1), torch.nan), path)

    def continue_series(
        self, y: Float[Tensor, "... time 1"], regimes: Int[Tensor, "... time"]
    ) -> Float[Tensor, "... time 1"]:
        """Draw the missing ends of series given paths of regimes.

        The last p deviations ``d_t, ..., d_{t-p+1}`` are an affine map of the previous ones, constant where y is
        observed. Maps are composed by a parallel scan in log2 T rounds.
        """
        y, mean, phi = y.squeeze(-1), self.mu[regimes], self.phi[regimes]
        gap, p = y.isnan(), self.order
        deviation = torch.where(gap, self.sigma[regimes] * torch.randn_like(mean), y - mean)
        if p:
            shift = torch.eye(p, dtype=mean.dtype, device=mean.device)[:-1].expand(*mean.shape, p - 1, p)
            maps = torch.cat([torch.where(gap.unsqueeze(-1), phi, 0.0).unsqueeze(-2), shift], -2)
            state = torch.nn.functional.pad(deviation[..., None, None], (0, 0, 0, p - 1))
            stride = 1
            while stride < y.shape[-1]:
                later = maps[..., stride:, :, :]
                reached = state[..., stride:, :, :] + _product(later, state[..., :-stride, :, :])
                state = torch.cat([state[..., :stride, :, :], reached], -3)
                maps = torch.cat([maps[..., :stride, :, :], _product(later, maps[..., :-stride, :, :])], -3)
                stride *= 2
            deviation = state[..., 0, 0]
        return torch.where(gap, mean + deviation, y).unsqueeze(-1)

    def _blocks(self, emission: Float[Tensor, "... time windows"]) -> Float[Tensor, "... blocks windows windows"]:
        """Return the log weights between windows w + 1 steps apart."""
        q, K, T = self.memory + 1, self.K, emission.shape[-2]
        emission = torch.nn.functional.pad(emission, (0, 0, 0, -T % q))  # padded steps have log weight zero
        emission = emission.unflatten(-2, (-1, q))
        total = emission.new_zeros([1] * 2 * q)
        for step in range(q):  # the regimes of both windows are 2q axes
            ones_before, ones_after = [1] * (step + 1), [1] * (q - 1 - step)
            link = self.P.log().reshape(*[1] * (q - 1 + step), K, K, *ones_after)
            weight = emission[..., step, :].unflatten(-1, [K] * q)
            total = total + link + weight.reshape(*emission.shape[:-2], *ones_before, *[K] * q, *ones_after)
        total = _contiguous(total.expand(*emission.shape[:-2], *[K] * 2 * q))
        return total.flatten(-q).flatten(-q - 1, -2)

    def _along(self, values: Float[Tensor, "regimes"], axis: int, axes: int) -> Float[Tensor, "..."]:
        """Reshape one value per regime to lie along one of several axes."""
        return values.reshape(*[1] * axis, -1, *[1] * (axes - 1 - axis))


def stationary(P: Float[Tensor, "regimes regimes"]) -> Float[Tensor, "regimes"]:
    """Return the stationary distribution of a transition matrix.

    Gaussian elimination of one regime after the other without subtractions, which would lose precision.

    References
    ----------
    Grassmann, Taksar and Heyman (1985), Regenerative analysis and steady state distributions for Markov chains.
    """
    visits = []
    for last in range(len(P) - 1, 0, -1):
        leaving = P[last, :last]
        visits.append(P[:last, last] / leaving.sum().clamp_min(torch.finfo(P.dtype).tiny))
        P = P[:last, :last] + visits[-1].unsqueeze(-1) * leaving
    pi = torch.ones_like(P[0])
    for each in reversed(visits):
        pi = torch.cat([pi, (pi * each).sum(0, keepdim=True)])
    return pi / pi.sum()


def _product(
    left: Float[Tensor, "... rows inner"], right: Float[Tensor, "... inner columns"]
) -> Float[Tensor, "... rows columns"]:
    """Multiply small matrices as a broadcast sum."""
    return (left.unsqueeze(-1) * right.unsqueeze(-3)).sum(-2)


def _contiguous(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Copy to contiguous memory, so that axes can be flattened under ``vmap``."""
    return x.clone(memory_format=torch.contiguous_format)
