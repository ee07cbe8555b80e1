"""Models of groups, components or states whose posterior is known: sums over a grid, or posteriordb's draws."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from pyro.infer.autoguide.initialization import init_to_value
from torch import Tensor

from pplgen.verification.data_sources import Sources
from pplgen.verification.known_posterior import GRID, KnownPosterior, Moments, log_normal, on_grid

__all__ = ["HMM_EXAMPLE", "KNOWN", "POSTERIORDB", "eight_schools"]

POSTERIORDB = "posteriordb's reference draws (Magnusson et al. 2024)"
HMM_EXAMPLE = {"A11": (0.66665, 0.1012), "A21": (0.07313, 0.0284), "mu1": (3.02152, 0.2245), "mu2": (8.82728, 0.1106)}
LOW_DIM_GAUSS_MIX = {
    "mu1": (-2.73351, 0.0420),
    "mu2": (2.86983, 0.0546),
    "sigma1": (1.02807, 0.0314),
    "sigma2": (1.02382, 0.0405),
    "theta": (0.62155, 0.0155),
}
"""Posterior means and standard deviations of posteriordb's reference draws."""


def eight_schools(y: Tensor, sigma: Tensor) -> None:
    """Eight schools, non-centred, as in posteriordb."""
    mu, tau = pyro.sample("mu", dist.Normal(0.0, 5.0)), pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * z, sigma), obs=y)


def _eight_schools_moments(y: Tensor, sigma: Tensor) -> Moments:
    """Given mu and tau, effects are independent and normal."""

    def log_density(mu: Tensor, tau: Tensor) -> Tensor:
        total = log_normal(mu, 0.0, 5.0) - (1 + (tau / 5).square()).log()
        for effect, error in zip(y.double(), sigma.double(), strict=True):
            total = total + log_normal(effect, mu, (error.square() + tau.square()).sqrt())
        return total

    return on_grid(log_density, {"mu": (-20.0, 25.0), "tau": (1e-3, 120.0)}, 1000)


def _low_dim_gauss_mix(y: Tensor) -> None:
    """Two normal components, as in posteriordb, but for the order of the means."""
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfNormal(2.0).expand([2]).to_event(1))
    theta = pyro.sample("theta", dist.Beta(5.0, 5.0))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Bernoulli(1 - theta), infer={"enumerate": "parallel"}).long()
        pyro.sample("y", dist.Normal(mu[z], sigma[z]), obs=y)


def _low_dim_gauss_mix_guide() -> Any:
    """Start at the mode whose means are in order; the other one is a hundred standard deviations away."""
    start = init_to_value(values={"mu": torch.tensor([-1.0, 1.0])})
    return AutoNormal(poutine.block(_low_dim_gauss_mix, hide=["z"]), init_loc_fn=start, init_scale=0.05)


def _low_dim_gauss_mix_moments(y: Tensor) -> Moments:
    mean, sd = torch.tensor(list(LOW_DIM_GAUSS_MIX.values()), dtype=torch.float64).T
    parts = {"mu": slice(0, 2), "sigma": slice(2, 4), "theta": slice(4, 5)}
    return {name: (mean[part], sd[part]) for name, part in parts.items()}


def _hmm_example(y: Tensor) -> None:
    """Two states with normal emissions, as in posteriordb; the first state has probability 1/2."""
    theta = pyro.sample("theta", dist.Dirichlet(torch.ones(2, 2)).to_event(1))
    mu = pyro.sample("mu", dist.Normal(torch.tensor([3.0, 10.0]), 1.0).to_event(1))
    emission = dist.Normal(mu, 1.0)
    pyro.sample("first", dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), emission), obs=y[0])
    pyro.sample("others", dist.DiscreteHMM(emission.log_prob(y[0]), theta.log(), emission), obs=y[1:])


def _hmm_example_moments(y: Tensor) -> Moments:
    mean, sd = torch.tensor(list(HMM_EXAMPLE.values()), dtype=torch.float64).T
    return {"theta": (torch.stack([mean[:2], 1 - mean[:2]], 1), sd[:2, None].expand(2, 2)), "mu": (mean[2:], sd[2:])}


def _level(y: Tensor) -> None:
    """Local level; the first level is that before the first observation."""
    q, r = pyro.sample("q", dist.HalfNormal(100.0)), pyro.sample("r", dist.HalfNormal(200.0))
    none, one = torch.zeros(1), torch.ones(1, 1)
    covariances = (torch.full((1, 1), 1e6), q.square() * one, r.square() * one)
    initial, step, noise = (dist.MultivariateNormal(none, covariance) for covariance in covariances)
    pyro.sample("y", dist.GaussianHMM(initial, one, step, one, noise, duration=len(y)), obs=y[:, None] - 1000)


def _level_moments(y: Tensor) -> Moments:
    def log_density(q: Tensor, r: Tensor) -> Tensor:
        total, level, variance = log_normal(q, 0.0, 100.0) + log_normal(r, 0.0, 200.0), 1000.0 + 0 * q, 1e6 + 0 * q
        for value in y.double():
            variance = variance + q.square()
            total = total + log_normal(value, level, (variance + r.square()).sqrt())
            gain = variance / (variance + r.square())
            level, variance = level + gain * (value - level), (1 - gain) * variance
        return total

    return on_grid(log_density, {"q": (1e-3, 300.0), "r": (50.0, 250.0)}, 600)


KNOWN: dict[str, KnownPosterior] = {
    "eight-schools": KnownPosterior(
        "eight schools, non-centred; the tail of tau is heavier than log-normal",
        eight_schools,
        None,
        Sources.schools,
        _eight_schools_moments,
        source=GRID,
        allowed=(0.25, 0.25),
    ),
    "low-dim-gauss-mix": KnownPosterior(
        "two normal components with enumerated labels, 1,000 rows: low_dim_gauss_mix",
        _low_dim_gauss_mix,
        _low_dim_gauss_mix_guide(),
        lambda sources: (sources.posteriordb("low_dim_gauss_mix").float(),),
        _low_dim_gauss_mix_moments,
        source=POSTERIORDB,
    ),
    "hmm-example": KnownPosterior(
        "a hidden Markov model of two states, 100 steps: hmm_example",
        _hmm_example,
        None,
        lambda sources: (sources.posteriordb("hmm_example").float(),),
        _hmm_example_moments,
        source=POSTERIORDB,
    ),
    "nile": KnownPosterior(
        "standard deviations of a local level, the Nile",
        _level,
        None,
        lambda sources: (sources.nile()[:, 0],),
        _level_moments,
        source=GRID,
    ),
}
