"""Time series and processes as small pairs: local levels, autoregression, Gaussian processes, change points."""

import math

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.infer import autoguide as auto
from torch.distributions import constraints


def walk(times=20, dtype=torch.float32):
    generator = torch.Generator().manual_seed(11)
    steps = 0.3 * torch.randn(times, generator=generator, dtype=dtype)
    return steps.cumsum(0) + 0.2 * torch.randn(times, generator=generator, dtype=dtype)


def positive(name, value):
    return pyro.param(name, torch.as_tensor(value), constraint=constraints.positive)


def local_level():
    """Innovations in a plate of times, summed up."""

    def model(y):
        drift = pyro.sample("drift", dist.LogNormal(-1.0, 1.0))
        noise = pyro.sample("noise", dist.LogNormal(-1.0, 1.0))
        with pyro.plate("times", len(y), dim=-1):
            steps = pyro.sample("steps", dist.Normal(0.0, 1.0))
        level = drift * steps.cumsum(-1)
        with pyro.plate("observed times", len(y), dim=-1):
            pyro.sample("y", dist.Normal(level, noise), obs=y)

    return model, auto.AutoNormal(model), (walk(),), Trace_ELBO()


def seasonal_level():
    """A level and a season that repeats, with heavy-tailed innovations."""

    def model(y):
        scale = pyro.sample("scale", dist.LogNormal(-1.0, 1.0))
        with pyro.plate("season", 4):
            season = pyro.sample("season_level", dist.Normal(0.0, 1.0))
        with pyro.plate("times", len(y)):
            steps = pyro.sample("steps", dist.StudentT(5.0, 0.0, 0.3))
            level = pyro.deterministic("level", steps.cumsum(-1) + season[torch.arange(len(y)) % 4])
            pyro.sample("y", dist.Normal(level, scale), obs=y)

    return model, auto.AutoLowRankMultivariateNormal(model, rank=3), (walk(),), Trace_ELBO()


def autoregression():
    def model(y):
        phi = pyro.sample("phi", dist.Normal(torch.zeros(2), 0.5).to_event(1))
        sigma = pyro.sample("sigma", dist.Gamma(2.0, 4.0))
        past = torch.stack([y[1:-1], y[:-2]], -1)
        with pyro.plate("times", len(y) - 2):
            pyro.sample("y", dist.Normal(past @ phi, sigma), obs=y[2:])

    return model, auto.AutoMultivariateNormal(model), (walk(dtype=torch.float64),), Trace_ELBO()


def sampled_path():
    """A chain of latents, one site for each time, with a Markov guide."""

    def model(y):
        sigma = pyro.sample("sigma", dist.LogNormal(-1.0, 0.5))
        level = torch.tensor(0.0)
        for t in pyro.markov(range(len(y))):
            level = pyro.sample(f"level_{t}", dist.Normal(0.9 * level, 0.3))
            pyro.sample(f"y_{t}", dist.Normal(level, sigma), obs=y[t])

    def guide(y):
        pyro.sample("sigma", dist.LogNormal(pyro.param("log_sigma", torch.tensor(-1.0)), 0.2))
        gain = pyro.param("gain", torch.tensor(0.5), constraint=constraints.unit_interval)
        level = torch.tensor(0.0)
        for t in pyro.markov(range(len(y))):
            loc = gain * y[t] + (1 - gain) * level
            level = pyro.sample(f"level_{t}", dist.Normal(loc, positive("width", 0.2)))

    return model, guide, (walk(8),), Trace_ELBO()


def gaussian_hmm():
    """States are integrated out by ``GaussianHMM``."""

    def model(y):
        drift = pyro.sample("drift", dist.LogNormal(-1.0, 0.5))
        noise = pyro.sample("noise", dist.LogNormal(-1.0, 0.5))
        eye = torch.eye(1)
        process = dist.GaussianHMM(
            dist.Normal(0.0, 1.0).expand([1]).to_event(1),
            eye,
            dist.Normal(torch.zeros(1), drift).to_event(1),
            eye,
            dist.Normal(torch.zeros(1), noise).to_event(1),
            duration=len(y),
        )
        pyro.sample("y", process, obs=y)

    return model, auto.AutoNormal(model), (walk(12)[:, None],), Trace_ELBO()


def gaussian_process():
    """The marginal likelihood of a process with a squared exponential and a periodic part."""
    x = torch.linspace(0.0, 3.0, 15, dtype=torch.float64)

    def model(x, y):
        variance, length, period = (pyro.sample(n, dist.LogNormal(x.new_zeros(()), 0.5)) for n in ("v", "l", "p"))
        noise = pyro.sample("noise", dist.HalfNormal(x.new_tensor(0.5)))
        distance = (x[:, None] - x).abs()
        smooth = variance * (-0.5 * (distance / length) ** 2).exp()
        periodic = 0.5 * (-2.0 * (math.pi * distance / period).sin() ** 2).exp()
        covariance = smooth + periodic + (noise**2 + 1e-4) * torch.eye(len(x), dtype=x.dtype)
        pyro.sample("y", dist.MultivariateNormal(x.new_zeros(len(x)), covariance), obs=y)

    return model, auto.AutoLaplaceApproximation(model), (x, walk(15, torch.float64)), Trace_ELBO()


def sparse_process():
    """Inducing inputs are parameters, and the covariance is that of their regression: low rank and a diagonal."""
    x = torch.linspace(0.0, 3.0, 15)

    def model(x, y):
        length = pyro.sample("length", dist.LogNormal(0.0, 0.5))
        inducing = pyro.param("inducing", torch.linspace(0.2, 2.8, 4))
        noise = positive("noise", 0.3)

        def kernel(a, b):
            return (-0.5 * ((a[:, None] - b) / length) ** 2).exp()

        factor = torch.linalg.cholesky(kernel(inducing, inducing) + 1e-3 * torch.eye(4))
        W = torch.linalg.solve_triangular(factor, kernel(inducing, x), upper=False).T
        y_hat = dist.LowRankMultivariateNormal(torch.zeros(len(x)), W, (noise**2).expand(len(x)))
        pyro.sample("y", y_hat, obs=y)

    return model, auto.AutoNormal(model), (x, walk(15)), Trace_ELBO()


def change_point():
    """Counts whose rate changes once, at a time that is summed out."""
    generator = torch.Generator().manual_seed(12)
    counts = torch.poisson(torch.where(torch.arange(20) < 12, 4.0, 1.5), generator=generator)

    @config_enumerate
    def model(counts):
        with pyro.plate("phases", 2):
            rates = pyro.sample("rates", dist.Gamma(2.0, 1.0))
        change = pyro.sample("change", dist.Categorical(torch.ones(len(counts)) / len(counts)))
        with pyro.plate("years", len(counts)):
            phase = (torch.arange(len(counts)) >= change).long()
            pyro.sample("counts", dist.Poisson(rates[phase]), obs=counts)

    return model, None, (counts,), TraceEnum_ELBO(max_plate_nesting=1)


def epidemic():
    """Susceptible, infected, recovered: Euler steps of the ODE with learned rates, negative binomial reports."""
    reports = torch.tensor([1.0, 2, 4, 6, 9, 11, 10, 8, 6, 4])

    def model(reports):
        infection = pyro.sample("infection", dist.LogNormal(0.0, 0.5))
        recovery = pyro.sample("recovery", dist.Beta(2.0, 2.0))
        S, I = torch.tensor(99.0), torch.tensor(1.0)  # noqa: E741
        new = []
        for _ in range(len(reports)):
            infected = infection * S * I / 100.0
            S, I = S - infected, I + infected - recovery * I  # noqa: E741
            new.append(infected.clamp(min=1e-3))
        rates = torch.stack(new)
        with pyro.plate("weeks", len(reports)):
            pyro.sample("reports", dist.GammaPoisson(10.0, 10.0 / rates), obs=reports)

    return model, auto.AutoMultivariateNormal(model, init_scale=0.05), (reports,), Trace_ELBO()


PAIRS = {
    "local level": local_level,
    "seasonal level": seasonal_level,
    "autoregression": autoregression,
    "sampled path": sampled_path,
    "Gaussian HMM": gaussian_hmm,
    "Gaussian process, periodic": gaussian_process,
    "sparse Gaussian process": sparse_process,
    "change point": change_point,
    "epidemic": epidemic,
}
REFUSED = {}
