r"""What is seen of paths of a switching model's state, the regimes summed out where they differ in how they show.

With C, d and r of the regime, a series given a path is::

    p(y | x) = p(x, y) / p(x)

a ratio of two normalisers of ``_chain``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from pplgen.models._distributions.chain import log_normaliser
from pplgen.models._distributions.missing import WhereSeen
from pplgen.models._distributions.switching import SwitchingPath
from torch import Tensor


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
        log_pi, links, seen = self.path.chain(self.x)
        s = backward_sample(log_pi, links, seen, torch.Size(sample_shape))
        every = self.emission.columns(self.x).columns.sample(torch.Size(sample_shape))
        return torch.gather(every, -2, s[..., None, None].expand(*s.shape, 1, every.shape[-1])).squeeze(-2)


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
