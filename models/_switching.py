r"""Paths of a continuous state whose dynamics switch, and what is seen of them, the regimes summed out of both.

Given a path x the regimes are a hidden Markov chain that is seen through the steps of the path::

    p(x)     = p(x_1) sum_s p(s_1) prod_t p(s_t | s_{t-1}, x_{t-1}) Normal(x_t; A[s_t] x_{t-1} + b[s_t], Q[s_t])
    p(y | x) = p(x, y) / p(x)

so each is a normaliser of ``_chain``, or the ratio of two.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from pplgen.models._chain import log_normaliser
from pplgen.models._missing import WhereSeen
from torch import Tensor
from torch.distributions import constraints


class Dynamics(NamedTuple):
    """How regime and state move: K regimes, D dimensions."""

    log_pi: Tensor
    """``log p(s_1)``, shape ``(K,)``."""
    log_P: Tensor
    """``log p(s_t | s_{t-1})`` up to the recurrence, shape ``(K, K)``."""
    m0: Tensor
    """``E[x_1]``, shape ``(D,)``."""
    L0: Tensor
    """Cholesky factor of ``Cov[x_1]``, shape ``(D, D)``."""
    A: Tensor
    """Shape ``(K, D, D)``."""
    b: Tensor
    """Shape ``(K, D)``."""
    L: Tensor
    """Cholesky factors of ``Q``, shape ``(K, D, D)``."""
    W: Tensor | None = None
    """``p(s_t | s_{t-1}, x_{t-1})`` is proportional to ``P exp(W x_{t-1})``, shape ``(K, D)``; ``None`` for ``P``."""

    @classmethod
    def of(cls, theta: Mapping[str, Tensor]) -> Dynamics:
        """Sort parameters by name; the Cholesky factor of a regime's noise is ``B diag(q)``, with ``l`` below B's ones."""
        L = torch.diag_embed(theta["q"])
        if "l" in theta:
            L = L + (theta["l"] @ _below(L)).unflatten(-1, L.shape[1:]) * theta["q"].unsqueeze(-2)
        start = theta["m0"], torch.diag_embed(theta["s0"])
        return cls(theta["pi"].log(), theta["P"].log(), *start, theta["A"], theta["b"], L, theta.get("W"))

    def log_transition(self, x: Tensor) -> Tensor:
        """Log probabilities of the next regime given the state, shape ``(..., K, K)``, or ``(K, K)`` where they agree.

        Parameters
        ----------
        x
            States, shape ``(..., D)``.
        """
        if self.W is None:
            return self.log_P
        return (self.log_P + (x @ self.W.mT).unsqueeze(-2)).log_softmax(-1)

    def log_steps(self, x: Tensor) -> Tensor:
        """Log density in nats of each step of a path but the first in each regime, shape ``(..., T - 1, K)``."""
        K, D, _ = self.A.shape
        whiten = torch.linalg.solve_triangular(self.L, torch.eye(D, dtype=x.dtype, device=x.device), upper=False)
        now, before = whiten.reshape(K * D, D), (whiten @ self.A).reshape(K * D, D)
        shift = (whiten @ self.b.unsqueeze(-1)).reshape(K * D)
        noise = (x[..., 1:, :] @ now.mT - x[..., :-1, :] @ before.mT - shift).unflatten(-1, (K, D))
        log_volume = self.L.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return -0.5 * noise.square().sum(-1) - log_volume - 0.5 * D * math.log(2 * math.pi)


class Emission(NamedTuple):
    """How a state is seen: ``y_t ~ Normal(C[s_t] x_t + d[s_t], diag(r[s_t]^2))``, K = 1 where regimes do not differ."""

    C: Tensor
    """Shape ``(K, E, D)``."""
    d: Tensor
    """Shape ``(K, E)``."""
    r: Tensor
    """Shape ``(K, E)``."""

    @classmethod
    def of(cls, theta: Mapping[str, Tensor]) -> Emission:
        """Sort parameters by name; those without an axis of regimes are shared."""
        C, d, r = theta["C"], theta["d"], theta["r"]
        return cls(C, d, r) if C.ndim == 3 else cls(C[None], d[None], r[None])

    def columns(self, x: Tensor) -> WhereSeen:
        """Distribution of each step of series given paths, in each regime: batch shape ``(..., T, K)``."""
        K, E, D = self.C.shape
        mean = (x @ self.C.reshape(K * E, D).mT).unflatten(-1, (K, E)) + self.d
        return WhereSeen(dist.Normal(mean, self.r))

    def given(self, path: SwitchingPath, x: Tensor) -> Any:
        """Distribution of series given paths x."""
        if len(self.C) > 1:
            return SwitchingObservations(path, x, self)
        return WhereSeen(dist.Normal(x @ self.C[0].mT + self.d[0], self.r[0])).to_event(1)


class SwitchingPath(dist.TorchDistribution):
    """Paths of the state.

    Parameters
    ----------
    dynamics
        Of regime and state.
    inside
        Steps that belong to the series, shape ``(..., T)``. Past a series' end its steps are standard normal, as they
        are in the guides, and so count for nothing.
    """

    arg_constraints: dict = {}  # noqa: RUF012
    support = constraints.independent(constraints.real, 2)
    has_rsample = False

    def __init__(self, dynamics: Dynamics, inside: Tensor) -> None:
        self.dynamics, self.inside = dynamics, inside
        event = torch.Size([inside.shape[-1], dynamics.m0.shape[-1]])
        super().__init__(inside.shape[:-1], event, validate_args=False)

    def expand(self, batch_shape: torch.Size, _instance: None = None) -> SwitchingPath:
        """Repeat along new axes of series."""
        return SwitchingPath(self.dynamics, self.inside.expand(*batch_shape, -1))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats, shape ``(...)``."""
        return self._start(value) + log_normaliser(*self.chain(value))

    def chain(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the chain of regimes that a path tells of, as ``log_normaliser`` takes it."""
        steps = torch.where(self.inside[..., 1:, None], self.dynamics.log_steps(x), 0.0)
        # the first step says nothing of its regime
        seen = torch.nn.functional.pad(steps, (0, 0, 1, 0))
        log_pi = self.dynamics.log_pi.expand(*seen.shape[:-2], -1)
        return log_pi, self.dynamics.log_transition(x[..., :-1, :]), seen

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw paths."""
        return self.sample_with_regimes(torch.Size(sample_shape))[0]

    def sample_with_regimes(self, sample_shape: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """Draw paths and their regimes, shapes ``(..., T, D)`` and ``(..., T)``."""
        log_pi, _, m0, L0, A, b, L, _ = self.dynamics
        shape = (*sample_shape, *self.batch_shape)
        s = dist.Categorical(logits=log_pi.expand(*shape, -1)).sample()
        x = m0 + (L0 @ torch.randn(*shape, len(m0), 1, dtype=m0.dtype, device=m0.device)).squeeze(-1)
        states, regimes = [x], [s]
        for _ in range(1, self.event_shape[0]):
            every = self.dynamics.log_transition(x).expand(*shape, *self.dynamics.log_P.shape)
            logits = torch.gather(every, -2, s[..., None, None].expand(*shape, 1, every.shape[-1])).squeeze(-2)
            s = dist.Categorical(logits=logits).sample()
            noise = torch.randn(*shape, len(m0), 1, dtype=m0.dtype, device=m0.device)
            x = (A[s] @ x.unsqueeze(-1) + L[s] @ noise).squeeze(-1) + b[s]
            states.append(x)
            regimes.append(s)
        return torch.stack(states, -2), torch.stack(regimes, -1)

    def _start(self, x: Tensor) -> Tensor:
        """Log density of the first step, and of those past the end."""
        first = dist.MultivariateNormal(self.dynamics.m0, scale_tril=self.dynamics.L0).log_prob(x[..., 0, :])
        outside = -0.5 * (x.square() + math.log(2 * math.pi)).sum(-1)
        return first + torch.where(self.inside, 0.0, outside).sum(-1)


class SwitchingObservations(dist.TorchDistribution):
    """What is seen of given paths where regimes differ in how they show, missing entries integrated out.

    Parameters
    ----------
    path
        Distribution of the paths.
    x
        The paths, shape ``(..., T, D)``.
    emission
        How each regime shows them.
    """

    arg_constraints: dict = {}  # noqa: RUF012
    has_rsample = False

    def __init__(self, path: SwitchingPath, x: Tensor, emission: Emission) -> None:
        self.path, self.x, self.emission = path, x, emission
        super().__init__(x.shape[:-2], torch.Size([x.shape[-2], emission.d.shape[-1]]), validate_args=False)

    def expand(self, batch_shape: torch.Size, _instance: None = None) -> SwitchingObservations:
        """Repeat along new axes of series."""
        x = self.x.expand(*batch_shape, *self.x.shape[-2:])
        return SwitchingObservations(self.path.expand(batch_shape), x, self.emission)

    def log_emission(self, y: Tensor) -> Tensor:
        """Log density of each step in each regime in nats, zero where nothing is seen, shape ``(..., T, K)``."""
        return self.emission.columns(self.x).log_prob(y.unsqueeze(-2))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of the seen entries in nats, shape ``(...)``."""
        log_pi, links, seen = self.path.chain(self.x)
        both = log_normaliser(log_pi, links, seen + self.log_emission(value))
        return both - log_normaliser(log_pi, links, seen)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw what is seen, along regimes drawn given the paths."""
        s = backward_sample(*self.path.chain(self.x), torch.Size(sample_shape))
        every = self.emission.columns(self.x).columns.sample(torch.Size(sample_shape))
        return torch.gather(every, -2, s[..., None, None].expand(*s.shape, 1, every.shape[-1])).squeeze(-2)


def _below(L: Tensor) -> Tensor:
    """Places below the diagonal of a matrix, row by row, as unit vectors of its entries."""
    D = L.shape[-1]
    every = torch.eye(D * D, dtype=L.dtype, device=L.device)
    return torch.stack([every[D * i + j] for i in range(D) for j in range(i)])


def backward_sample(log_pi: Tensor, links: Tensor, seen: Tensor, sample_shape: torch.Size) -> Tensor:
    """Draw paths of regimes given what is seen of them, shape ``(*sample_shape, ..., T)``; arguments as above."""
    T, K = seen.shape[-2:]
    timed = links.expand(*seen.shape[:-2], T - 1, K, K)
    forward = [log_pi + seen[..., 0, :]]
    for t in range(1, T):
        joint = forward[-1].unsqueeze(-1) + timed[..., t - 1, :, :]
        forward.append((joint.logsumexp(-2) + seen[..., t, :]).log_softmax(-1))
    s = dist.Categorical(logits=forward[-1]).sample(sample_shape)
    path = [s]
    for t in range(T - 2, -1, -1):
        into = timed[..., t, :, :].mT.expand(*s.shape, K, K)
        chosen = torch.gather(into, -2, s[..., None, None].expand(*s.shape, 1, K)).squeeze(-2)
        s = dist.Categorical(logits=forward[t] + chosen).sample()
        path.append(s)
    return torch.stack(path[::-1], -1)
