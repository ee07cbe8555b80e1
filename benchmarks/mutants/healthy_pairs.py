"""Healthy bare pairs: data from the model itself, and the posterior in closed form where there is one."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from mutants.pair_under_test import Subject

__all__ = ["PAIRS"]


def _plate(y: Tensor) -> pyro.plate:
    return pyro.plate("data", len(y))


def normal_means() -> Subject:
    """Ten means, independent columns of known variance."""

    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(torch.zeros(10), 5.0).to_event(1))
        with _plate(y):
            pyro.sample("y", dist.Normal(mu, 1.0).to_event(1), obs=y)

    def guide(y: Tensor) -> None:
        precision = 0.04 + len(y)
        pyro.sample("mu", dist.Normal(y.sum(0) / precision, torch.full((10,), precision**-0.5)).to_event(1))

    y = 3 * torch.randn(10) + torch.randn(60, 10)
    return Subject("normal means", model, (y,), "real", guide, closed=True, fixed_noise=True)


def normal_gamma() -> Subject:
    """Mean and precision of normal rows (Bernardo and Smith 1994, section 5.2)."""

    def model(y: Tensor) -> None:
        tau = pyro.sample("tau", dist.Gamma(2.0, 2.0))
        mu = pyro.sample("mu", dist.Normal(0.0, (0.1 * tau).rsqrt()))
        with _plate(y):
            pyro.sample("y", dist.Normal(mu, tau.rsqrt()), obs=y)

    def guide(y: Tensor) -> None:
        n, mean = len(y), y.mean()
        rate = 2 + 0.5 * (y - mean).square().sum() + 0.5 * n * 0.1 / (n + 0.1) * mean.square()
        tau = pyro.sample("tau", dist.Gamma(2 + n / 2, rate))
        pyro.sample("mu", dist.Normal(n * mean / (n + 0.1), ((n + 0.1) * tau).rsqrt()))

    return Subject("normal mean and precision", model, (2 + 1.2 * torch.randn(100),), "real", guide, closed=True)


def correlated_means() -> Subject:
    """Mean of rows whose columns are correlated; the prior is uncorrelated."""
    scale = torch.tensor([[1.0, 0.0, 0.0], [0.95, 0.3, 0.0], [0.9, 0.1, 0.3]])

    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(torch.zeros(3), 5.0).to_event(1))
        with _plate(y):
            pyro.sample("y", dist.MultivariateNormal(mu, scale_tril=scale), obs=y)

    def guide(y: Tensor) -> None:
        inverse = (scale @ scale.T).inverse()
        precision = len(y) * inverse + 0.04 * torch.eye(3)
        pyro.sample("mu", dist.MultivariateNormal(precision.inverse() @ inverse @ y.sum(0), precision_matrix=precision))

    y = torch.tensor([1.0, -2.0, 3.0]) + torch.randn(50, 3) @ scale.T
    return Subject("correlated means", model, (y,), "real", guide, closed=True, fixed_noise=True)


def counts() -> Subject:
    """Poisson counts with a gamma prior of the rate."""

    def model(y: Tensor) -> None:
        rate = pyro.sample("rate", dist.Gamma(2.0, 0.3))
        with _plate(y):
            pyro.sample("y", dist.Poisson(rate), obs=y)

    def guide(y: Tensor) -> None:
        pyro.sample("rate", dist.Gamma(2 + y.sum(), 0.3 + len(y)))

    return Subject("Poisson counts", model, (torch.poisson(torch.full((100,), 6.0)),), "counts", guide, closed=True)


def counts_of_columns() -> Subject:
    """Poisson counts of four columns."""

    def model(y: Tensor) -> None:
        rate = pyro.sample("rate", dist.Gamma(torch.full((4,), 2.0), 0.3).to_event(1))
        with _plate(y):
            pyro.sample("y", dist.Poisson(rate).to_event(1), obs=y)

    def guide(y: Tensor) -> None:
        pyro.sample("rate", dist.Gamma(2 + y.sum(0), torch.full((4,), 0.3 + len(y))).to_event(1))

    y = torch.poisson(torch.tensor([3.0, 6.0, 9.0, 15.0]).expand(60, 4))
    return Subject("Poisson counts of columns", model, (y,), "counts", guide, closed=True)


def negative_binomial() -> Subject:
    """Negative binomial counts of known concentration."""

    def model(y: Tensor) -> None:
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        with _plate(y):
            pyro.sample("y", dist.NegativeBinomial(3.0, probs=p), obs=y)

    def guide(y: Tensor) -> None:
        pyro.sample("p", dist.Beta(1 + y.sum(), 1 + 3.0 * len(y)))

    y = dist.NegativeBinomial(3.0, probs=torch.tensor(0.6)).sample((150,))
    return Subject("negative binomial counts", model, (y,), "counts", guide, closed=True)


def successes() -> Subject:
    """Success probabilities of five columns of Bernoulli rows."""

    def model(y: Tensor) -> None:
        p = pyro.sample("p", dist.Beta(torch.ones(5), 1.0).to_event(1))
        with _plate(y):
            pyro.sample("y", dist.Bernoulli(p).to_event(1), obs=y)

    def guide(y: Tensor) -> None:
        pyro.sample("p", dist.Beta(1 + y.sum(0), 1 + (1 - y).sum(0)).to_event(1))

    y = torch.bernoulli(torch.tensor([0.2, 0.4, 0.5, 0.6, 0.8]).expand(80, 5))
    return Subject("Bernoulli successes", model, (y,), "binary", guide, closed=True)


def categories() -> Subject:
    """Categories with a Dirichlet prior."""

    def model(y: Tensor) -> None:
        p = pyro.sample("p", dist.Dirichlet(torch.ones(4)))
        with _plate(y):
            pyro.sample("y", dist.Categorical(p), obs=y)

    def guide(y: Tensor) -> None:
        pyro.sample("p", dist.Dirichlet(1.0 + torch.stack([(y == k).sum() for k in range(4)])))

    y = torch.multinomial(torch.tensor([0.1, 0.2, 0.3, 0.4]), 120, replacement=True)
    return Subject("categories", model, (y,), "category", guide, closed=True)


def durations() -> Subject:
    """Exponential durations with a gamma prior."""

    def model(y: Tensor) -> None:
        rate = pyro.sample("rate", dist.Gamma(2.0, 2.0))
        with _plate(y):
            pyro.sample("y", dist.Exponential(rate), obs=y)

    def guide(y: Tensor) -> None:
        pyro.sample("rate", dist.Gamma(2.0 + len(y), 2.0 + y.sum()))

    y = dist.Exponential(0.7).sample((100,))
    return Subject("exponential durations", model, (y,), "positive", guide, closed=True)


def sizes() -> Subject:
    """Log-normal sizes of known scale."""

    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
        with _plate(y):
            pyro.sample("y", dist.LogNormal(mu, 0.5), obs=y)

    def guide(y: Tensor) -> None:
        precision = 1 / 9 + 4 * len(y)
        pyro.sample("mu", dist.Normal(4 * y.log().sum() / precision, precision**-0.5))

    y = dist.LogNormal(1.0, 0.5).sample((80,))
    return Subject("log-normal sizes", model, (y,), "positive", guide, closed=True, fixed_noise=True)


def line() -> Subject:
    """Linear regression with known noise on four correlated covariates."""

    def model(x: Tensor, y: Tensor) -> None:
        beta = pyro.sample("beta", dist.Normal(torch.zeros(4), 2.0).to_event(1))
        with _plate(y):
            pyro.sample("y", dist.Normal(x @ beta, 1.0), obs=y)

    def guide(x: Tensor, y: Tensor) -> None:
        precision = x.T @ x + 0.25 * torch.eye(4)
        pyro.sample("beta", dist.MultivariateNormal(precision.inverse() @ x.T @ y, precision_matrix=precision))

    x = torch.randn(100, 1) + 0.7 * torch.randn(100, 4)
    y = x @ torch.tensor([2.0, -1.0, 1.0, 0.5]) + torch.randn(100)
    return Subject("regression", model, (x, y), "real", guide, closed=True, covariates=0, fixed_noise=True)


def line_and_noise() -> Subject:
    """Linear regression with unknown noise, the normal-gamma prior of Bernardo and Smith."""

    def model(x: Tensor, y: Tensor) -> None:
        tau = pyro.sample("tau", dist.Gamma(2.0, 2.0))
        beta = pyro.sample("beta", dist.Normal(torch.zeros(3), (0.25 * tau).rsqrt()).to_event(1))
        with _plate(y):
            pyro.sample("y", dist.Normal(x @ beta, tau.rsqrt()), obs=y)

    def guide(x: Tensor, y: Tensor) -> None:
        precision = x.T @ x + 0.25 * torch.eye(3)
        mean = precision.inverse() @ x.T @ y
        tau = pyro.sample("tau", dist.Gamma(2 + len(y) / 2, 2 + 0.5 * (y.square().sum() - mean @ precision @ mean)))
        pyro.sample("beta", dist.MultivariateNormal(mean, precision_matrix=tau * precision))

    x = torch.randn(120, 3)
    y = x @ torch.tensor([1.5, -1.0, 0.5]) + 0.8 * torch.randn(120)
    return Subject("regression with unknown noise", model, (x, y), "real", guide, closed=True, covariates=0)


def _groups(y: Tensor, group: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Precision and precision times mean of (overall mean, effects of groups) given normal rows."""
    x = torch.cat([torch.ones(len(y), 1), torch.eye(8)[group]], dim=1)
    return x.T @ x + torch.diag(torch.tensor([0.04, *[scale**-2] * 8])), x.T @ y


def groups() -> Subject:
    """Rows of eight groups: an overall mean, effects of the groups, and known noise."""

    def model(group: Tensor, y: Tensor) -> None:
        beta = pyro.sample("beta", dist.Normal(torch.zeros(9), torch.tensor([5.0, *[1.0] * 8])).to_event(1))
        with _plate(y):
            pyro.sample("y", dist.Normal(beta[0] + beta[1:][group], 1.0), obs=y)

    def guide(group: Tensor, y: Tensor) -> None:
        precision, moment = _groups(y, group, 1.0)
        pyro.sample("beta", dist.MultivariateNormal(precision.inverse() @ moment, precision_matrix=precision))

    group = torch.randint(8, (96,))
    y = 3 + torch.randn(8)[group] + torch.randn(96)
    pooled = "groups ignored"

    def ignored(group: Tensor, y: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
        with _plate(y):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    def of_the_next(group: Tensor, y: Tensor) -> None:
        model(group.roll(1), y)

    variants = {pooled: ignored, "groups of the row before": of_the_next}
    return Subject(
        "hierarchical means", model, (group, y), "real", guide, closed=True, fixed_noise=True, variants=variants
    )


def autoregression() -> Subject:
    """AR(2) of known noise, as a regression on lags."""

    def model(lags: Tensor, y: Tensor) -> None:
        phi = pyro.sample("phi", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with _plate(y):
            pyro.sample("y", dist.Normal(lags @ phi, 1.0), obs=y)

    def guide(lags: Tensor, y: Tensor) -> None:
        precision = lags.T @ lags + torch.eye(2)
        pyro.sample("phi", dist.MultivariateNormal(precision.inverse() @ lags.T @ y, precision_matrix=precision))

    y = [torch.zeros(()), torch.zeros(())]
    for _ in range(150):
        y.append(0.9 * y[-1] - 0.5 * y[-2] + torch.randn(()))
    series = torch.stack(y)
    lags = torch.stack([series[1:-1], series[:-2]], dim=1)
    return Subject(
        "autoregression", model, (lags, series[2:]), "real", guide, closed=True, covariates=0, ordered=True,
        fixed_noise=True,
    )  # fmt: skip


def level() -> Subject:
    """Levels of a random walk, 40 steps seen with known noise: the levels are one normal latent."""
    steps = torch.arange(40.0)
    prior = torch.minimum(steps[:, None], steps[None]) + 1.0

    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.MultivariateNormal(torch.zeros(40), prior))
        with _plate(y):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    def guide(y: Tensor) -> None:
        precision = prior.inverse() + torch.eye(40)
        precision = (precision + precision.T) / 2
        pyro.sample("mu", dist.MultivariateNormal(precision.inverse() @ y, precision_matrix=precision))

    y = torch.randn(40).cumsum(0) + torch.randn(40)
    return Subject(
        "levels of a random walk", model, (y,), "real", guide, closed=True, ordered=True,
        describes=frozenset({"order"}), fixed_noise=True,
    )  # fmt: skip


def logistic() -> Subject:
    """Logistic regression."""

    def of(link: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], None]:
        def model(x: Tensor, y: Tensor) -> None:
            beta = pyro.sample("beta", dist.Normal(torch.zeros(3), 2.0).to_event(1))
            with _plate(y):
                pyro.sample("y", dist.Bernoulli(link(x @ beta)), obs=y)

        return model

    x = torch.randn(200, 3)
    y = torch.bernoulli(torch.sigmoid(x @ torch.tensor([1.5, -1.0, 0.5])))
    variants = {"a link that saturates at .5": of(lambda eta: 0.5 * torch.sigmoid(eta) + 1e-4)}
    return Subject(
        "logistic regression", of(torch.sigmoid), (x, y), "binary", "full-rank", covariates=0, variants=variants
    )


def poisson_regression() -> Subject:
    """Poisson regression with exposures."""

    def of(rate: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor, Tensor], None]:
        def model(x: Tensor, exposure: Tensor, y: Tensor) -> None:
            beta = pyro.sample("beta", dist.Normal(torch.zeros(3), 2.0).to_event(1))
            with _plate(y):
                pyro.sample("y", dist.Poisson(rate(x @ beta, exposure)), obs=y)

        return model

    x, exposure = torch.cat([torch.randn(150, 2), torch.ones(150, 1)], 1), 1 + 4 * torch.rand(150)
    y = torch.poisson(exposure * torch.exp(x @ torch.tensor([1.0, -0.6, 0.5])))
    variants = {
        "wrong sign of the offset": of(lambda eta, e: torch.exp(eta) / e),
        "offset dropped": of(lambda eta, e: torch.exp(eta)),
        "wrong link": of(lambda eta, e: e * torch.nn.functional.softplus(eta) + 1e-6),
    }
    model = of(lambda eta, e: e * torch.exp(eta))
    return Subject(
        "Poisson regression", model, (x, exposure, y), "counts", "full-rank", covariates=0, variants=variants
    )


def schools() -> Subject:
    """Hierarchy of ten groups, not centred, whose spread is unknown."""

    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.LogNormal(0.0, 0.5))
        z = pyro.sample("z", dist.Normal(torch.zeros(10), 1.0).to_event(1))
        with _plate(y):
            pyro.sample("y", dist.Normal(mu + tau * z, 1.0).to_event(1), obs=y)

    y = 2 + 1.2 * torch.randn(10) + torch.randn(12, 10)
    return Subject("non-centred hierarchy", model, (y,), "real", "full-rank", fixed_noise=True)


def robust_line() -> Subject:
    """Regression with Student's errors."""

    def model(x: Tensor, y: Tensor) -> None:
        beta = pyro.sample("beta", dist.Normal(torch.zeros(3), 2.0).to_event(1))
        sigma = pyro.sample("sigma", dist.LogNormal(0.0, 1.0))
        with _plate(y):
            pyro.sample("y", dist.StudentT(4.0, x @ beta, sigma), obs=y)

    x = torch.randn(150, 3)
    y = x @ torch.tensor([1.0, -2.0, 0.5]) + 0.7 * dist.StudentT(4.0).sample((150,))
    return Subject("robust regression", model, (x, y), "real", "full-rank", covariates=0)


def signed_mean() -> Subject:
    """Mean, fitted from six starts; seen without its sign it has two modes."""

    def of(seen: Callable[[Tensor], Tensor]) -> Callable[[Tensor], None]:
        def model(y: Tensor) -> None:
            mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
            with _plate(y):
                pyro.sample("y", dist.Normal(seen(mu), 1.0), obs=y)

        return model

    y = 1.5 + torch.randn(40)
    return Subject(
        "a mean, six restarts", of(lambda mu: mu), (y,), "real", "full-rank", options={"restarts": 6},
        variants={"a mode missed": of(torch.abs)}, fixed_noise=True,
    )  # fmt: skip


PAIRS: tuple[Callable[[], Subject], ...] = (
    normal_means,
    normal_gamma,
    correlated_means,
    counts,
    counts_of_columns,
    negative_binomial,
    successes,
    categories,
    durations,
    sizes,
    line,
    line_and_noise,
    groups,
    autoregression,
    level,
    logistic,
    poisson_regression,
    schools,
    robust_line,
    signed_mean,
)
"""Each makes a pair with a data set; seed torch first."""
