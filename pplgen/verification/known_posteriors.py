"""Pairs whose posterior is known, and claims that a default fit finds it.

References are closed forms, or sums over a grid of the log density, written in plain torch without Pyro.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoMultivariateNormal
from torch import Tensor

from pplgen.fitting.fit import fit
from pplgen.posterior.linear_response import posterior_covariance
from pplgen.story.isolation import seeded
from pplgen.verification.claim import Claim
from pplgen.verification.data_sources import Sources

__all__ = ["CLAIMS", "KNOWN", "KnownPosterior", "errors"]

SEEDS = (0, 1, 2)
"""Seeds of the fits of a claim."""
MEAN_ERROR, SD_ERROR = 0.05, 0.04
"""Allowed errors of means, in posterior sd, and of sds, relative, where the guide's family contains the posterior."""
APPROXIMATE_MEAN_ERROR, RESPONSE_ERROR = 0.15, 0.1
"""Allowed errors elsewhere, of means and of linear-response sds."""

Moments = dict[str, tuple[Tensor, Tensor]]
"""Posterior mean and standard deviation of each site."""


@dataclass(frozen=True)
class KnownPosterior:
    """A model with data, and its posterior moments.

    Attributes
    ----------
    what
        Description of model, data and guide.
    model, guide
        The pair; a guide of ``None`` is fit's default, ``AutoNormal``.
    data
        Arguments of both.
    moments
        Returns mean and standard deviation of each site.
    exact
        Whether the guide's family contains the posterior; otherwise linear-response standard deviations are compared.
    source
        How the moments are computed.
    """

    what: str
    model: Callable[..., Any]
    guide: Callable[..., Any] | None
    data: tuple[Tensor, ...]
    moments: Callable[..., Moments]
    exact: bool = False
    source: str = "closed form"


def errors(known: KnownPosterior, seed: int, **options: Any) -> tuple[float, float]:
    """Return the largest error of a default fit's means, in posterior sd, and of its standard deviations, relative."""
    found = fit(known.model, known.data, known.guide, seed=seed, progress=False, **options)
    with found._ready(None):
        computed = posterior_covariance(found.pair, found.best.optimum, seed)
    covariance = computed.guide if known.exact else computed.linear_response
    moments = known.moments(*known.data)
    mean, sd = (torch.cat([moments[name][part].reshape(-1).double() for name in computed.shapes]) for part in (0, 1))
    mean_error, sd_error = (computed.mean - mean) / sd, covariance.diag().sqrt() / sd - 1
    return float(mean_error.abs().max()), float(sd_error.abs().max())


def _draw(seed: int, draw: Callable[[], Any]) -> Any:
    """Draw data with their own seed."""
    with seeded(seed):
        return draw()


def _on_grid(log_density: Callable[..., Tensor], axes: dict[str, tuple[float, float]], size: int = 200) -> Moments:
    """Sum a log density over a grid; ``axes`` has the interval of each scalar site."""
    lines = [torch.linspace(low, high, size, dtype=torch.float64) for low, high in axes.values()]
    points = torch.meshgrid(*lines, indexing="ij")
    weights = log_density(*points).flatten().softmax(0)
    mean = {name: weights @ point.flatten() for name, point in zip(axes, points, strict=True)}
    square = {name: weights @ (point.flatten() - mean[name]).square() for name, point in zip(axes, points, strict=True)}
    return {name: (mean[name], square[name].sqrt()) for name in axes}


def _log_normal(x: Tensor, mean: Any, sd: Any) -> Tensor:
    """Log density of a normal in nats, up to a constant."""
    sd = torch.as_tensor(sd, dtype=torch.float64)
    return -0.5 * ((x - mean) / sd).square() - sd.log()


# a normal mean far from the start


def _normal(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(torch.zeros((), dtype=y.dtype), 10.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def _normal_moments(y: Tensor) -> Moments:
    precision = torch.tensor(len(y) + 0.01, dtype=torch.float64)
    return {"mu": (y.double().sum() / precision, precision.rsqrt())}


# a normal with unknown mean and standard deviation


def _normal_sd(y: Tensor) -> None:
    mu, sigma = pyro.sample("mu", dist.Normal(0.0, 10.0)), pyro.sample("sigma", dist.Exponential(1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, sigma), obs=y)


def _normal_sd_moments(y: Tensor) -> Moments:
    def log_density(mu: Tensor, sigma: Tensor) -> Tensor:
        n, mean, square = len(y), y.double().mean(), y.double().var(correction=0)
        likelihood = -n * sigma.log() - 0.5 * n * (square + (mean - mu).square()) / sigma.square()
        return likelihood + _log_normal(mu, 0.0, 10.0) - sigma

    return _on_grid(log_density, {"mu": (2.0, 4.0), "sigma": (1.2, 3.2)}, 800)


# conjugate counts, with a guide of the conjugate family


def _poisson(y: Tensor) -> None:
    rate = pyro.sample("rate", dist.Gamma(2.0, 0.5))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Poisson(rate), obs=y)


def _gamma_guide(y: Tensor) -> None:
    a = pyro.param("a", torch.tensor(1.0), constraint=constraints.positive)
    b = pyro.param("b", torch.tensor(1.0), constraint=constraints.positive)
    pyro.sample("rate", dist.Gamma(a, b))


def _poisson_moments(y: Tensor) -> Moments:
    a, b = 2.0 + y.double().sum(), torch.tensor(0.5 + len(y), dtype=torch.float64)
    return {"rate": (a / b, a.sqrt() / b)}


def _bernoulli(y: Tensor) -> None:
    p = pyro.sample("p", dist.Beta(2.0, 3.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Bernoulli(p), obs=y)


def _beta_guide(y: Tensor) -> None:
    a = pyro.param("a", torch.tensor(2.0), constraint=constraints.positive)
    b = pyro.param("b", torch.tensor(2.0), constraint=constraints.positive)
    pyro.sample("p", dist.Beta(a, b))


def _bernoulli_moments(y: Tensor) -> Moments:
    a, b = 2.0 + y.double().sum(), 3.0 + (1 - y.double()).sum()
    return {"p": (a / (a + b), (a * b / (a + b + 1)).sqrt() / (a + b))}


def _categories(y: Tensor) -> None:
    p = pyro.sample("p", dist.Dirichlet(torch.ones(4)))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Categorical(p), obs=y)


def _dirichlet_guide(y: Tensor) -> None:
    pyro.sample("p", dist.Dirichlet(pyro.param("a", torch.ones(4), constraint=constraints.positive)))


def _categories_moments(y: Tensor) -> Moments:
    a = 1.0 + torch.bincount(y.long(), minlength=4).double()
    p = a / a.sum()
    return {"p": (p, (p * (1 - p) / (a.sum() + 1)).sqrt())}


# regressions


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
        total = _log_normal(a, 0.0, 5.0) + _log_normal(b, 0.0, 5.0)
        for each_x, each_y in zip(x.double(), y.double(), strict=True):
            total = total + log_likelihood(a + b * each_x, each_y)
        return total

    return _on_grid(log_density, {"a": (-0.5, 2.5), "b": (-0.5, 2.5)}, 600)


def _bernoulli_logits(predictor: Tensor) -> Any:
    return dist.Bernoulli(logits=predictor)


def _log_bernoulli(predictor: Tensor, y: Tensor) -> Tensor:
    return y * predictor - torch.nn.functional.softplus(predictor)


def _poisson_log_rate(predictor: Tensor) -> Any:
    return dist.Poisson(predictor.exp())


def _log_poisson(predictor: Tensor, y: Tensor) -> Tensor:
    return y * predictor - predictor.exp()


# eight schools


def _schools(y: Tensor, sigma: Tensor) -> None:
    mu, tau = pyro.sample("mu", dist.Normal(0.0, 5.0)), pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * z, sigma), obs=y)


# series


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

    return _on_grid(log_density, {"phi": (-0.999, 0.999), "theta": (-0.999, 0.999)}, 600)


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

    return _on_grid(log_density, {"alpha": (1e-4, 0.9999), "beta": (1e-4, 0.9999)}, 600)


def _volatility_data() -> Tensor:
    y, variance = torch.zeros(151), torch.ones(())
    for t in range(1, 151):
        variance = 0.2 + 0.3 * y[t - 1] ** 2 + 0.4 * variance
        y[t] = variance.sqrt() * torch.randn(())
    return y


def _student(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.StudentT(3.0, mu, 1.0), obs=y)


def _student_moments(y: Tensor) -> Moments:
    def log_density(mu: Tensor) -> Tensor:
        return -2 * (1 + (y.double() - mu[:, None]).square() / 3).log().sum(-1) + _log_normal(mu, 0.0, 10.0)

    return _on_grid(log_density, {"mu": (3.0, 7.0)}, 4000)


def _exponential(y: Tensor) -> None:
    rate = pyro.sample("rate", dist.Gamma(1.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Exponential(rate), obs=y)


def _exponential_moments(y: Tensor) -> Moments:
    a, b = torch.tensor(1.0 + len(y), dtype=torch.float64), 1.0 + y.double().sum()
    return {"rate": (a / b, a.sqrt() / b)}


FAR = _draw(0, lambda: (10 + torch.randn(1000)).double())
CORRELATED = _draw(0, lambda: torch.randn(200, 6) @ (torch.eye(6) + 0.8 * torch.ones(6, 6)))
RESPONSES = _draw(1, lambda: CORRELATED @ torch.tensor([1.0, -1.0, 0.5, 0.0, 2.0, -0.5]) + torch.randn(200))
PREDICTOR = _draw(0, lambda: torch.randn(300))
COUNTS = _draw(1, lambda: torch.poisson((1 + 0.5 * PREDICTOR).exp()))
OUTCOMES = _draw(1, lambda: torch.bernoulli((1 + 0.5 * PREDICTOR).sigmoid()))
LAGS, NEXT = _draw(0, _autoregression_data)
GRID = "sum over a grid"
_logistic, _log_linear = partial(_generalised, _bernoulli_logits), partial(_generalised, _poisson_log_rate)
_logistic_moments = partial(_generalised_moments, _log_bernoulli)
_log_linear_moments = partial(_generalised_moments, _log_poisson)

KNOWN: dict[str, KnownPosterior] = {
    "normal-double": KnownPosterior(
        "a normal mean ten prior sds away, float64", _normal, None, (FAR,), _normal_moments, True
    ),
    "normal-single": KnownPosterior(
        "a normal mean ten prior sds away, float32", _normal, None, (FAR.float(),), _normal_moments, True
    ),
    "normal-sd": KnownPosterior(
        "a normal with unknown mean and sd, 60 rows",
        _normal_sd,
        None,
        (_draw(2, lambda: 3 + 2 * torch.randn(60)),),
        _normal_sd_moments,
        source=GRID,
    ),
    "gamma-poisson": KnownPosterior(
        "a Poisson rate, gamma guide",
        _poisson,
        _gamma_guide,
        (torch.tensor([3.0, 5, 2, 4, 7, 3]),),
        _poisson_moments,
        True,
    ),
    "beta-binomial": KnownPosterior(
        "a probability, beta guide",
        _bernoulli,
        _beta_guide,
        (torch.tensor([1.0, 0, 1, 1, 0, 1, 1, 1]),),
        _bernoulli_moments,
        True,
    ),
    "dirichlet-multinomial": KnownPosterior(
        "probabilities of four categories, Dirichlet guide",
        _categories,
        _dirichlet_guide,
        (torch.tensor([0.0, 1, 1, 2, 2, 2, 3, 0, 1, 2]),),
        _categories_moments,
        True,
    ),
    "exponential": KnownPosterior(
        "an exponential rate, 12 rows, gamma guide",
        _exponential,
        _gamma_guide,
        (torch.linspace(0.1, 2.5, 12),),
        _exponential_moments,
        True,
    ),
    "regression-full-rank": KnownPosterior(
        "a regression on six correlated features, full-rank guide",
        _regression,
        AutoMultivariateNormal(_regression),
        (CORRELATED, RESPONSES),
        _regression_moments,
        True,
    ),
    "regression-mean-field": KnownPosterior(
        "the same, mean-field guide", _regression, None, (CORRELATED, RESPONSES), _regression_moments
    ),
    "logistic": KnownPosterior(
        "a logistic regression, 300 rows", _logistic, None, (PREDICTOR, OUTCOMES), _logistic_moments, source=GRID
    ),
    "logistic-full-rank": KnownPosterior(
        "the same, full-rank guide",
        _logistic,
        AutoMultivariateNormal(_logistic),
        (PREDICTOR, OUTCOMES),
        _logistic_moments,
        source=GRID,
    ),
    "poisson": KnownPosterior(
        "a Poisson regression, 300 rows", _log_linear, None, (PREDICTOR, COUNTS), _log_linear_moments, source=GRID
    ),
    "poisson-full-rank": KnownPosterior(
        "the same, full-rank guide",
        _log_linear,
        AutoMultivariateNormal(_log_linear),
        (PREDICTOR, COUNTS),
        _log_linear_moments,
        source=GRID,
    ),
    "autoregression": KnownPosterior(
        "AR(5) with known variance, 300 steps, full-rank guide",
        _regression,
        AutoMultivariateNormal(_regression),
        (LAGS, NEXT),
        _regression_moments,
        True,
    ),
    "autoregression-mean-field": KnownPosterior(
        "the same, mean-field guide", _regression, None, (LAGS, NEXT), _regression_moments
    ),
    "student": KnownPosterior(
        "the location of Student's t with 3 degrees of freedom, 50 rows",
        _student,
        None,
        (_draw(3, lambda: 5 + torch.randn(50)),),
        _student_moments,
        source=GRID,
    ),
    "arma": KnownPosterior(
        "ARMA(1, 1), written as a loop of 100 steps",
        _moving_average,
        None,
        (_draw(0, _moving_average_data),),
        _moving_average_moments,
        source=GRID,
    ),
    "garch": KnownPosterior(
        "GARCH(1, 1), written as a loop of 150 steps",
        _volatility,
        None,
        (_draw(0, _volatility_data),),
        _volatility_moments,
        source=GRID,
    ),
}


def _largest(name: str, which: int, sources: Sources) -> float:
    return max(errors(KNOWN[name], seed)[which] for seed in SEEDS)


def _claims(name: str, known: KnownPosterior) -> tuple[Claim, Claim]:
    kind = "the guide's" if known.exact else "linear-response"
    seeds = f"largest of {len(SEEDS)} seeds"
    allowed = (MEAN_ERROR, SD_ERROR) if known.exact else (APPROXIMATE_MEAN_ERROR, RESPONSE_ERROR)
    return (
        Claim(
            f"known-mean-{name}",
            "fit",
            f"{known.what}: error of the means (posterior sd), {seeds}",
            0.0,
            allowed[0],
            "Monte Carlo error of the optimum" if known.exact else "a normal guide on the unconstrained scale",
            known.source,
            partial(_largest, name, 0),
            slow=True,
        ),
        Claim(
            f"known-sd-{name}",
            "fit",
            f"{known.what}: relative error of {kind} sds, {seeds}",
            0.0,
            allowed[1],
            "Monte Carlo error of the optimum" if known.exact else "first order in the guide's error",
            known.source,
            partial(_largest, name, 1),
            slow=True,
        ),
    )


CLAIMS = tuple(claim for name, known in KNOWN.items() for claim in _claims(name, known))
