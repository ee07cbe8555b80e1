"""Parameters of normals, counts and other simple samples whose posterior is known.

References are closed forms, or sums over a grid of the log density, written in plain torch without Pyro.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from pplgen.verification.known_posterior import GRID, KnownPosterior, Moments, drawn, fixed, log_normal, on_grid

__all__ = ["KNOWN"]


def _normal(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(torch.zeros((), dtype=y.dtype), 10.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def _normal_moments(y: Tensor) -> Moments:
    precision = torch.tensor(len(y) + 0.01, dtype=torch.float64)
    return {"mu": (y.double().sum() / precision, precision.rsqrt())}


def _normal_sd(y: Tensor) -> None:
    mu, sigma = pyro.sample("mu", dist.Normal(0.0, 10.0)), pyro.sample("sigma", dist.Exponential(1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, sigma), obs=y)


def _normal_sd_moments(y: Tensor) -> Moments:
    def log_density(mu: Tensor, sigma: Tensor) -> Tensor:
        n, mean, square = len(y), y.double().mean(), y.double().var(correction=0)
        likelihood = -n * sigma.log() - 0.5 * n * (square + (mean - mu).square()) / sigma.square()
        return likelihood + log_normal(mu, 0.0, 10.0) - sigma

    return on_grid(log_density, {"mu": (2.0, 4.0), "sigma": (1.2, 3.2)}, 800)


def _sample(name: str, prior: Callable[[], Any], likelihood: Callable[[Tensor], Any], y: Tensor) -> None:
    """Rows given one parameter, of the given name, prior and likelihood."""
    parameter = pyro.sample(name, prior())
    with pyro.plate("data", len(y)):
        pyro.sample("y", likelihood(parameter), obs=y)


def _conjugate_guide(name: str, family: Callable[[Tensor, Tensor], Any], start: float, y: Tensor) -> None:
    """Draw from a gamma or beta guide, both of whose parameters start at the same number."""
    a, b = (pyro.param(each, torch.tensor(start), constraint=constraints.positive) for each in ("a", "b"))
    pyro.sample(name, family(a, b))


def _poisson_moments(y: Tensor) -> Moments:
    a, b = 2.0 + y.double().sum(), torch.tensor(0.5 + len(y), dtype=torch.float64)
    return {"rate": (a / b, a.sqrt() / b)}


def _bernoulli_moments(y: Tensor) -> Moments:
    a, b = 2.0 + y.double().sum(), 3.0 + (1 - y.double()).sum()
    return {"p": (a / (a + b), (a * b / (a + b + 1)).sqrt() / (a + b))}


def _dirichlet_guide(y: Tensor) -> None:
    pyro.sample("p", dist.Dirichlet(pyro.param("a", torch.ones(4), constraint=constraints.positive)))


def _categories_moments(y: Tensor) -> Moments:
    a = 1.0 + torch.bincount(y.long(), minlength=4).double()
    p = a / a.sum()
    return {"p": (p, (p * (1 - p) / (a.sum() + 1)).sqrt())}


def _student_moments(y: Tensor) -> Moments:
    def log_density(mu: Tensor) -> Tensor:
        return -2 * (1 + (y.double() - mu[:, None]).square() / 3).log().sum(-1) + log_normal(mu, 0.0, 10.0)

    return on_grid(log_density, {"mu": (3.0, 7.0)}, 4000)


def _exponential_moments(y: Tensor) -> Moments:
    a, b = torch.tensor(1.0 + len(y), dtype=torch.float64), 1.0 + y.double().sum()
    return {"rate": (a / b, a.sqrt() / b)}


FAR = drawn(0, lambda: (10 + torch.randn(1000)).double())

KNOWN: dict[str, KnownPosterior] = {
    "normal-double": KnownPosterior(
        "a normal mean far from the start, float64", _normal, None, fixed(FAR), _normal_moments, True
    ),
    "normal-single": KnownPosterior(
        "a normal mean far from the start, float32", _normal, None, fixed(FAR.float()), _normal_moments, True
    ),
    "normal-sd": KnownPosterior(
        "a normal with unknown mean and sd, 60 rows",
        _normal_sd,
        None,
        fixed(drawn(2, lambda: 3 + 2 * torch.randn(60))),
        _normal_sd_moments,
        source=GRID,
    ),
    "gamma-poisson": KnownPosterior(
        "a Poisson rate, gamma guide",
        partial(_sample, "rate", lambda: dist.Gamma(2.0, 0.5), dist.Poisson),
        partial(_conjugate_guide, "rate", dist.Gamma, 1.0),
        fixed(torch.tensor([3.0, 5, 2, 4, 7, 3])),
        _poisson_moments,
        True,
    ),
    "beta-binomial": KnownPosterior(
        "a probability, beta guide",
        partial(_sample, "p", lambda: dist.Beta(2.0, 3.0), dist.Bernoulli),
        partial(_conjugate_guide, "p", dist.Beta, 2.0),
        fixed(torch.tensor([1.0, 0, 1, 1, 0, 1, 1, 1])),
        _bernoulli_moments,
        True,
    ),
    "dirichlet-multinomial": KnownPosterior(
        "probabilities of four categories, Dirichlet guide",
        partial(_sample, "p", lambda: dist.Dirichlet(torch.ones(4)), dist.Categorical),
        _dirichlet_guide,
        fixed(torch.tensor([0.0, 1, 1, 2, 2, 2, 3, 0, 1, 2])),
        _categories_moments,
        True,
    ),
    "exponential": KnownPosterior(
        "an exponential rate, 12 rows, gamma guide",
        partial(_sample, "rate", lambda: dist.Gamma(1.0, 1.0), dist.Exponential),
        partial(_conjugate_guide, "rate", dist.Gamma, 1.0),
        fixed(torch.linspace(0.1, 2.5, 12)),
        _exponential_moments,
        True,
    ),
    "student": KnownPosterior(
        "the location of Student's t with 3 degrees of freedom, 50 rows",
        partial(_sample, "mu", lambda: dist.Normal(0.0, 10.0), lambda mu: dist.StudentT(3.0, mu, 1.0)),
        None,
        fixed(drawn(3, lambda: 5 + torch.randn(50))),
        _student_moments,
        source=GRID,
    ),
}
