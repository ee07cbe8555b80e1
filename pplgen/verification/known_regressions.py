"""Regressions and series whose posterior is known.

References are closed forms, or sums over a grid of the log density, written in plain torch without Pyro.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoMultivariateNormal
from torch import Tensor

from pplgen.verification.known_posterior import GRID, KnownPosterior, Moments, drawn, fixed, log_normal, on_grid

__all__ = ["KNOWN"]


def _regression(x: Tensor, y: Tensor) -> None:
    beta = pyro.sample("beta", dist.Normal(torch.zeros(x.shape[-1]), 3.0).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(x @ beta, 1.0), obs=y)


def _regression_moments(x: Tensor, y: Tensor) -> Moments:
    precision = x.double().mT @ x.double() + torch.eye(x.shape[-1], dtype=torch.float64) / 9
    covariance = torch.linalg.inv(precision)
    return {"beta": (covariance @ x.double().mT @ y.double(), covariance.diag().sqrt())}


def _generalised(likelihood: Callable[[Tensor], Any], x: Tensor, y: Tensor) -> None:
    a, b = pyro.sample("a", dist.Normal(0.0, 5.0)), pyro.sample("b", dist.Normal(0.0, 5.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", likelihood(a + b * x), obs=y)


def _generalised_moments(log_likelihood: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> Moments:
    def log_density(a: Tensor, b: Tensor) -> Tensor:
        total = log_normal(a, 0.0, 5.0) + log_normal(b, 0.0, 5.0)
        for each_x, each_y in zip(x.double(), y.double(), strict=True):
            total = total + log_likelihood(a + b * each_x, each_y)
        return total

    return on_grid(log_density, {"a": (-0.5, 2.5), "b": (-0.5, 2.5)}, 600)


def _bernoulli_logits(predictor: Tensor) -> Any:
    return dist.Bernoulli(logits=predictor)


def _log_bernoulli(predictor: Tensor, y: Tensor) -> Tensor:
    return y * predictor - torch.nn.functional.softplus(predictor)


def _poisson_log_rate(predictor: Tensor) -> Any:
    return dist.Poisson(predictor.exp())


def _log_poisson(predictor: Tensor, y: Tensor) -> Tensor:
    return y * predictor - predictor.exp()


def _autoregression_data() -> tuple[Tensor, Tensor]:
    y = torch.zeros(305)
    for t in range(5, 305):
        y[t] = 0.5 * y[t - 1] - 0.2 * y[t - 2] + 0.1 * y[t - 3] + 0.2 * y[t - 5] + torch.randn(())
    return torch.stack([y[5 - lag : -lag] for lag in range(1, 6)], -1), y[5:]


def _moving_average(y: Tensor) -> None:
    """ARMA(1, 1), as a loop; the first error is zero."""
    phi, theta = (pyro.sample(name, dist.Uniform(-1.0, 1.0)) for name in ("phi", "theta"))
    error = torch.zeros(())
    for t in range(1, len(y)):
        mean = phi * y[t - 1] + theta * error
        pyro.sample(f"y_{t}", dist.Normal(mean, 1.0), obs=y[t])
        error = y[t] - mean


def _moving_average_moments(y: Tensor) -> Moments:
    def log_density(phi: Tensor, theta: Tensor) -> Tensor:
        total, error = torch.zeros_like(phi), torch.zeros_like(phi)
        for t in range(1, len(y)):
            error = y[t] - phi * y[t - 1] - theta * error
            total = total - 0.5 * error.square()
        return total

    return on_grid(log_density, {"phi": (-0.999, 0.999), "theta": (-0.999, 0.999)}, 600)


def _moving_average_data() -> Tensor:
    y, errors = torch.zeros(101), torch.randn(101)
    for t in range(1, 101):
        y[t] = 0.6 * y[t - 1] + 0.3 * errors[t - 1] + errors[t]
    return y


def _volatility(y: Tensor) -> None:
    """GARCH(1, 1) with a known constant term."""
    alpha, beta = (pyro.sample(name, dist.Beta(2.0, 2.0)) for name in ("alpha", "beta"))
    variance = torch.ones(())
    for t in range(1, len(y)):
        variance = 0.2 + alpha * y[t - 1] ** 2 + beta * variance
        pyro.sample(f"y_{t}", dist.Normal(0.0, variance.sqrt()), obs=y[t])


def _volatility_moments(y: Tensor) -> Moments:
    def log_density(alpha: Tensor, beta: Tensor) -> Tensor:
        total, variance = (alpha * (1 - alpha) * beta * (1 - beta)).log(), torch.ones_like(alpha)
        for t in range(1, len(y)):
            variance = 0.2 + alpha * y[t - 1] ** 2 + beta * variance
            total = total - 0.5 * y[t] ** 2 / variance - 0.5 * variance.log()
        return total

    return on_grid(log_density, {"alpha": (1e-4, 0.9999), "beta": (1e-4, 0.9999)}, 600)


def _volatility_data() -> Tensor:
    y, variance = torch.zeros(151), torch.ones(())
    for t in range(1, 151):
        variance = 0.2 + 0.3 * y[t - 1] ** 2 + 0.4 * variance
        y[t] = variance.sqrt() * torch.randn(())
    return y


CORRELATED = drawn(0, lambda: torch.randn(200, 6) @ (torch.eye(6) + 0.8 * torch.ones(6, 6)))
RESPONSES = drawn(1, lambda: CORRELATED @ torch.tensor([1.0, -1.0, 0.5, 0.0, 2.0, -0.5]) + torch.randn(200))
PREDICTOR = drawn(0, lambda: torch.randn(300))
COUNTS = drawn(1, lambda: torch.poisson((1 + 0.5 * PREDICTOR).exp()))
OUTCOMES = drawn(1, lambda: torch.bernoulli((1 + 0.5 * PREDICTOR).sigmoid()))
LAGS, NEXT = drawn(0, _autoregression_data)
_logistic, _log_linear = partial(_generalised, _bernoulli_logits), partial(_generalised, _poisson_log_rate)
_logistic_moments = partial(_generalised_moments, _log_bernoulli)
_log_linear_moments = partial(_generalised_moments, _log_poisson)

KNOWN: dict[str, KnownPosterior] = {
    "regression-full-rank": KnownPosterior(
        "a regression on six correlated features, full-rank guide",
        _regression,
        AutoMultivariateNormal(_regression),
        fixed(CORRELATED, RESPONSES),
        _regression_moments,
        True,
    ),
    "regression-mean-field": KnownPosterior(
        "the same, mean-field guide", _regression, None, fixed(CORRELATED, RESPONSES), _regression_moments
    ),
    "logistic": KnownPosterior(
        "a logistic regression, 300 rows", _logistic, None, fixed(PREDICTOR, OUTCOMES), _logistic_moments, source=GRID
    ),
    "logistic-full-rank": KnownPosterior(
        "the same, full-rank guide",
        _logistic,
        AutoMultivariateNormal(_logistic),
        fixed(PREDICTOR, OUTCOMES),
        _logistic_moments,
        source=GRID,
    ),
    "poisson": KnownPosterior(
        "a Poisson regression, 300 rows", _log_linear, None, fixed(PREDICTOR, COUNTS), _log_linear_moments, source=GRID
    ),
    "poisson-full-rank": KnownPosterior(
        "the same, full-rank guide",
        _log_linear,
        AutoMultivariateNormal(_log_linear),
        fixed(PREDICTOR, COUNTS),
        _log_linear_moments,
        source=GRID,
    ),
    "autoregression": KnownPosterior(
        "AR(5) with known variance, 300 steps, full-rank guide",
        _regression,
        AutoMultivariateNormal(_regression),
        fixed(LAGS, NEXT),
        _regression_moments,
        True,
    ),
    "autoregression-mean-field": KnownPosterior(
        "the same, mean-field guide", _regression, None, fixed(LAGS, NEXT), _regression_moments
    ),
    "arma": KnownPosterior(
        "ARMA(1, 1), written as a loop of 100 steps",
        _moving_average,
        None,
        fixed(drawn(0, _moving_average_data)),
        _moving_average_moments,
        source=GRID,
    ),
    "garch": KnownPosterior(
        "GARCH(1, 1), written as a loop of 150 steps",
        _volatility,
        None,
        fixed(drawn(0, _volatility_data)),
        _volatility_moments,
        source=GRID,
    ),
}
