r"""Emissions of a switching model given the path of its state, the regimes summed out if the emissions switch.

If C, d and r depend on the regime, the density of a series given a path is::

    p(y | x) = p(x, y) / p(x)

a ratio of two normalisers (``pplgen/distributions/hidden_markov.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pplgen.distributions.hidden_markov import log_normaliser
from pplgen.distributions.missing import MarginalIndependent
from pplgen.distributions.switching_path import SwitchingLinearGaussianPath


class Emission(NamedTuple):
    """Parameters of ``y_t ~ Normal(C[s_t] x_t + d[s_t], diag(r[s_t]^2))``, or without an axis of regimes, shared."""

    C: Float[Tensor, "*regimes observed state"]
    """Loadings."""
    d: Float[Tensor, "*regimes observed"]
    """Means."""
    r: Float[Tensor, "*regimes observed"]
    """Standard deviations."""

    @property
    def switches(self) -> bool:
        """Whether the regimes have separate parameters."""
        return self.C.ndim == 3

    def each(self) -> Emission:
        """Return the parameters with an axis of regimes, of length one if they share them."""
        return self if self.switches else Emission(*(part.unsqueeze(0) for part in self))

    def per_regime(self, x: Float[Tensor, "... time state"]) -> MarginalIndependent:
        """Return the distribution of each step given paths x in each regime, batch shape ``(..., T, K)``."""
        C, d, r = self.each()
        K, E, D = C.shape
        return MarginalIndependent(dist.Normal((x @ C.reshape(K * E, D).mT).unflatten(-1, (K, E)) + d, r))

    def observations(self, path: SwitchingLinearGaussianPath, x: Float[Tensor, "... time state"]) -> Any:
        """Return the distribution of series given paths x."""
        if self.switches:
            return SwitchingObservations(path, x, self)
        return MarginalIndependent(dist.Normal(x @ self.C.mT + self.d, self.r)).to_event(1)


class SwitchingObservations(dist.TorchDistribution):
    """Distribution of series given paths with switching emissions; missing entries are integrated out.

    Parameters
    ----------
    path
        Distribution of the paths.
    x
        The paths.
    emission
        Emission parameters of each regime.
    """

    arg_constraints: dict = {}  # noqa: RUF012
    has_rsample = False

    def __init__(
        self, path: SwitchingLinearGaussianPath, x: Float[Tensor, "... time state"], emission: Emission
    ) -> None:
        self.path, self.x, self.emission = path, x, emission
        super().__init__(x.shape[:-2], torch.Size([x.shape[-2], emission.d.shape[-1]]), validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> SwitchingObservations:
        """Expand to more batch axes."""
        x = self.x.expand(*batch_shape, *self.x.shape[-2:])
        return SwitchingObservations(self.path.expand(batch_shape), x, self.emission)

    def log_emission(self, y: Float[Tensor, "... time observed"]) -> Float[Tensor, "... time regimes"]:
        """Log density in nats of each step in each regime, zero for missing steps."""
        return self.emission.per_regime(self.x).log_prob(y.unsqueeze(-2))

    def log_prob(self, value: Float[Tensor, "... time observed"]) -> Float[Tensor, "..."]:
        """Log density of the observed entries in nats."""
        log_pi, log_P, log_emission = self.path.chain(self.x)
        joint = log_normaliser(log_pi, log_P, log_emission + self.log_emission(value))
        return joint - log_normaliser(log_pi, log_P, log_emission)

    def sample(self, sample_shape: Sequence[int] = ()) -> Float[Tensor, "... time observed"]:
        """Draw series, given regimes drawn given the paths."""
        log_pi, log_P, log_emission = self.path.chain(self.x)
        s = backward_sample(log_pi, log_P, log_emission, torch.Size(sample_shape))
        draws = self.emission.per_regime(self.x).columns.sample(torch.Size(sample_shape))
        return torch.gather(draws, -2, s[..., None, None].expand(*s.shape, 1, draws.shape[-1])).squeeze(-2)


def backward_sample(
    log_pi: Float[Tensor, "... regimes"],
    log_P: Float[Tensor, "... regimes regimes"],
    log_emission: Float[Tensor, "... time regimes"],
    sample_shape: torch.Size,
) -> Int[Tensor, "... time"]:
    """Draw paths of regimes by forward filtering, backward sampling.

    Parameters are those of ``log_normaliser``.
    """
    T, K = log_emission.shape[-2:]
    timed = log_P.expand(*log_emission.shape[:-2], T - 1, K, K)
    forward = [log_pi + log_emission[..., 0, :]]
    for t in range(1, T):
        joint = forward[-1].unsqueeze(-1) + timed[..., t - 1, :, :]
        forward.append((joint.logsumexp(-2) + log_emission[..., t, :]).log_softmax(-1))
    s = dist.Categorical(logits=forward[-1]).sample(sample_shape)
    path = [s]
    for t in range(T - 2, -1, -1):
        into = timed[..., t, :, :].mT.expand(*s.shape, K, K)
        chosen = torch.gather(into, -2, s[..., None, None].expand(*s.shape, 1, K)).squeeze(-2)
        s = dist.Categorical(logits=forward[t] + chosen).sample()
        path.append(s)
    return torch.stack(path[::-1], -1)
