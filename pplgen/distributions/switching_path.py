r"""Paths of a continuous state with switching dynamics, the regimes summed out.

Given a path x the regimes are a hidden Markov chain whose emissions are the steps of the path::

    p(x) = p(x_1) sum_s p(s_1) prod_t p(s_t | s_{t-1}, x_{t-1}) Normal(x_t; A[s_t] x_{t-1} + b[s_t], Q[s_t])

so the sum is a ``log_normaliser`` of ``pplgen/distributions/hidden_markov.py``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.distributions import constraints

from pplgen.distributions.hidden_markov import log_normaliser


class Dynamics(NamedTuple):
    """Parameters of the dynamics of regime and state: K regimes, D dimensions."""

    pi: Float[Tensor, "regimes"]
    """``p(s_1)``."""
    P: Float[Tensor, "regimes regimes"]
    """``p(s_t | s_{t-1})`` up to the recurrence."""
    m0: Float[Tensor, "state"]
    """``E[x_1]``."""
    s0: Float[Tensor, "state"]
    """Standard deviations of x_1."""
    A: Float[Tensor, "regimes state state"]
    """``x_t = A[s_t] x_{t-1} + b[s_t] + N(0, Q[s_t])``."""
    b: Float[Tensor, "regimes state"]
    """``x_t = A[s_t] x_{t-1} + b[s_t] + N(0, Q[s_t])``."""
    q: Float[Tensor, "regimes state"]
    """Diagonal of the Cholesky factors of ``Q``."""
    l: Float[Tensor, "regimes below"] | None = None  # noqa: E741
    """Entries of B below its unit diagonal, row by row, where ``B diag(q)`` is the Cholesky factor of ``Q``; ``None``
    if ``Q`` is diagonal."""
    W: Float[Tensor, "regimes state"] | None = None
    """``p(s_t | s_{t-1}, x_{t-1})`` is proportional to ``P exp(W x_{t-1})``; ``None`` for ``P``."""

    @property
    def L(self) -> Float[Tensor, "regimes state state"]:
        """Cholesky factors of ``Q``."""
        L = torch.diag_embed(self.q)
        if self.l is None:
            return L
        D = L.shape[-1]
        entries = torch.eye(D * D, dtype=L.dtype, device=L.device)[[D * i + j for i in range(D) for j in range(i)]]
        return L + (self.l @ entries).unflatten(-1, (D, D)) * self.q.unsqueeze(-2)

    def log_transition(self, x: Float[Tensor, "... state"]) -> Float[Tensor, "... regimes regimes"]:
        """Log transition probabilities of regimes given the state; without batch axes if not recurrent."""
        if self.W is None:
            return self.P.log()
        return (self.P.log() + (x @ self.W.mT).unsqueeze(-2)).log_softmax(-1)

    def log_steps(self, x: Float[Tensor, "... time state"]) -> Float[Tensor, "... time-1 regimes"]:
        """Log density in nats of each step of a path in each regime, except the first."""
        (K, D, _), L = self.A.shape, self.L
        whiten = torch.linalg.solve_triangular(L, torch.eye(D, dtype=x.dtype, device=x.device), upper=False)
        now, before = whiten.reshape(K * D, D), (whiten @ self.A).reshape(K * D, D)
        shift = (whiten @ self.b.unsqueeze(-1)).reshape(K * D)
        noise = (x[..., 1:, :] @ now.mT - x[..., :-1, :] @ before.mT - shift).unflatten(-1, (K, D))
        log_volume = L.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return -0.5 * noise.square().sum(-1) - log_volume - 0.5 * D * math.log(2 * math.pi)


class SwitchingLinearGaussianPath(dist.TorchDistribution):
    """Distribution of paths of the state.

    Parameters
    ----------
    dynamics
        Dynamics of regime and state.
    inside
        Steps that belong to the series. Steps past a series' end are standard normal here and in the guides, and so
        cancel in the ELBO.
    """

    arg_constraints: dict = {}  # noqa: RUF012
    support = constraints.independent(constraints.real, 2)
    has_rsample = False

    def __init__(self, dynamics: Dynamics, inside: Bool[Tensor, "... time"]) -> None:
        self.dynamics, self.inside = dynamics, inside
        event = torch.Size([inside.shape[-1], dynamics.m0.shape[-1]])
        super().__init__(inside.shape[:-1], event, validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> SwitchingLinearGaussianPath:
        """Expand to more batch axes."""
        return SwitchingLinearGaussianPath(self.dynamics, self.inside.expand(*batch_shape, -1))

    def log_prob(self, value: Float[Tensor, "... time state"]) -> Float[Tensor, "..."]:
        """Log density in nats."""
        return self._start(value) + log_normaliser(*self.chain(value))

    def chain(
        self, x: Float[Tensor, "... time state"]
    ) -> tuple[Float[Tensor, "... regimes"], Float[Tensor, "... regimes regimes"], Float[Tensor, "... time regimes"]]:
        """Return the hidden Markov chain of regimes given a path, as arguments of ``log_normaliser``."""
        steps = torch.where(self.inside[..., 1:, None], self.dynamics.log_steps(x), 0.0)
        # the first step does not depend on its regime
        log_emission = torch.nn.functional.pad(steps, (0, 0, 1, 0))
        log_pi = self.dynamics.pi.log().expand(*log_emission.shape[:-2], -1)
        return log_pi, self.dynamics.log_transition(x[..., :-1, :]), log_emission

    def sample(self, sample_shape: Sequence[int] = ()) -> Float[Tensor, "... time state"]:
        """Draw paths."""
        return self.sample_with_regimes(torch.Size(sample_shape))[0]

    def sample_with_regimes(
        self, sample_shape: Sequence[int] = ()
    ) -> tuple[Float[Tensor, "... time state"], Int[Tensor, "... time"]]:
        """Draw paths and their regimes."""
        (pi, _, m0, s0, A, b, *_), L = self.dynamics, self.dynamics.L
        shape = (*sample_shape, *self.batch_shape)
        s = dist.Categorical(logits=pi.log().expand(*shape, -1)).sample()
        x = m0 + s0 * torch.randn(*shape, len(m0), dtype=m0.dtype, device=m0.device)
        states, regimes = [x], [s]
        for _ in range(1, self.event_shape[0]):
            log_P = self.dynamics.log_transition(x).expand(*shape, *self.dynamics.P.shape)
            logits = torch.gather(log_P, -2, s[..., None, None].expand(*shape, 1, log_P.shape[-1])).squeeze(-2)
            s = dist.Categorical(logits=logits).sample()
            noise = torch.randn(*shape, len(m0), 1, dtype=m0.dtype, device=m0.device)
            x = (A[s] @ x.unsqueeze(-1) + L[s] @ noise).squeeze(-1) + b[s]
            states.append(x)
            regimes.append(s)
        return torch.stack(states, -2), torch.stack(regimes, -1)

    def _start(self, x: Float[Tensor, "... time state"]) -> Float[Tensor, "..."]:
        """Log density in nats of the first step and of those past the end."""
        first = dist.Normal(self.dynamics.m0, self.dynamics.s0).log_prob(x[..., 0, :]).sum(-1)
        outside = -0.5 * (x.square() + math.log(2 * math.pi)).sum(-1)
        return first + torch.where(self.inside, 0.0, outside).sum(-1)
