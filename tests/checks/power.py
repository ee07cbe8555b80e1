"""Deliberately broken fits, each beside its healthy twin: what the checks are worth.

``python tests/checks/power.py`` prints the table of the documentation.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pplgen.models import LinearGaussianSSM

import pplgen
from pplgen.checks import importance_weights, latents, missed_modes, optimisation, predictive, sanity, series, width
from pplgen.checks.check import Check
from pplgen.checks.inputs import CheckInputs
from pplgen.story.isolation import seeded
from pplgen.story.pair import Pair
from pplgen.timeseries.one_step import one_step_pit

_SPEC = importlib.util.spec_from_file_location("latent_toys", Path(__file__).parents[1] / "latent_toys.py")
latent_toys = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(latent_toys)

SEED = 0


@dataclass(frozen=True)
class Case:
    """A check, and what makes inputs that it should fail on, and inputs that it should pass."""

    what: str
    check: Callable[[CheckInputs], Check]
    broken: Callable[[], CheckInputs]
    healthy: Callable[[], CheckInputs]

    def judged(self):
        """Run the check on both."""
        found = []
        for make in (self.broken, self.healthy):
            with seeded(SEED):
                inputs = make()
            with seeded(SEED), inputs.pair.isolated(), torch.no_grad():
                found.append(self.check(inputs))
        return found


def fitted(fit):
    runs = tuple(sorted(fit.runs, key=lambda run: -run.elbo))
    return CheckInputs(fit.pair, runs=runs, one_step_pit=one_step_pit)


def means(width=1.0, count=2, prior=False):
    """Twenty means, each seen ``count`` times, and a guide whose deviations are ``width`` times the posterior's."""
    x = torch.randn(count, 20) + 2

    def model(x):
        mu = pyro.sample("mu", dist.Normal(torch.zeros(20), 1.0).to_event(1))
        with pyro.plate("data", count):
            pyro.sample("x", dist.Normal(mu, 1.0).to_event(1), obs=x)

    def guide(x):
        precision = 1.0 + count
        exact = dist.Normal(x.sum(0) / precision, width * precision**-0.5)
        pyro.sample("mu", (dist.Normal(torch.zeros(20), 1.0) if prior else exact).to_event(1))

    return CheckInputs(Pair(model, guide, (x,)))


def one_width(factor):
    """Twenty means and their exact posterior, but for the standard deviation of one."""
    x = torch.randn(2, 20) + 2

    def model(x):
        mu = pyro.sample("mu", dist.Normal(torch.zeros(20), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0).to_event(1), obs=x)

    def guide(x):
        sd = torch.full((20,), 3**-0.5)
        sd[7] *= factor
        pyro.sample("mu", dist.Normal(x.sum(0) / 3, sd).to_event(1))

    return CheckInputs(Pair(model, guide, (x,)))


def correlated(mean_field):
    """A regression on two features that are nearly the same, with the exact posterior or the best mean field."""
    first = torch.randn(50)
    features = torch.stack([first, first + 0.3 * torch.randn(50)], 1)
    y = features @ torch.tensor([1.0, -1.0]) + torch.randn(50)

    def model(features, y):
        beta = pyro.sample("beta", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", 50):
            pyro.sample("y", dist.Normal(features @ beta, 1.0), obs=y)

    def guide(features, y):
        precision = features.T @ features + torch.eye(2)
        mean = torch.linalg.solve(precision, features.T @ y)
        if mean_field:
            pyro.sample("beta", dist.Normal(mean, precision.diagonal() ** -0.5).to_event(1))
        else:
            pyro.sample("beta", dist.MultivariateNormal(mean, precision_matrix=precision))

    return CheckInputs(Pair(model, guide, (features, y)))


def signs(both):
    """A mean that is seen with its sign, or without, which leaves two modes that the prior tells apart."""

    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.3, 3.0))
        with pyro.plate("data", 20):
            pyro.sample("x", dist.Normal(mu.abs() if both else mu, 1.0), obs=x)

    x = torch.randn(20) + 1.5
    return fitted(pplgen.fit(model, x, seed=SEED, restarts=6, steps=800, compile="graph", progress=False))


def three_groups(places):
    """A mixture of three on three groups, and a guide with its locations at given places."""
    x = torch.cat([torch.randn(20) + place for place in (-8.0, 0.0, 8.0)])

    def model(x):
        mu = pyro.sample("mu", dist.Normal(torch.zeros(3), 10.0).to_event(1))
        with pyro.plate("data", 60):
            z = pyro.sample("z", dist.Categorical(torch.ones(3)), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)

    def guide(x):
        where = pyro.param("where", torch.tensor(places))
        pyro.sample("mu", dist.Normal(where, pyro.param("log_sd", torch.full((3,), -1.5)).exp()).to_event(1))

    return CheckInputs(Pair(model, guide, (x,)))


def line(learning_rate):
    """A regression whose fit has had too small steps, or enough."""

    def model(features, y):
        beta = pyro.sample("beta", dist.Normal(torch.zeros(3), 3.0).to_event(1))
        with pyro.plate("data", 100):
            pyro.sample("y", dist.Normal(features @ beta, 1.0), obs=y)

    features = torch.randn(100, 3)
    y = features @ torch.tensor([3.0, -3.0, 3.0]) + torch.randn(100)
    options = {"seed": SEED, "steps": 2000, "optimiser": "adam", "compile": "graph", "progress": False}
    return fitted(pplgen.fit(model, (features, y), learning_rate=learning_rate, **options))


def tails(heavy):
    """Rows with heavy tails under a normal likelihood, or under Student's."""
    x = dist.StudentT(3.0).sample((300,))

    def model(x):
        mu, sigma = pyro.sample("mu", dist.Normal(0.0, 5.0)), pyro.sample("sigma", dist.HalfNormal(5.0))
        with pyro.plate("data", 300):
            pyro.sample("x", dist.StudentT(3.0, mu, sigma) if heavy else dist.Normal(mu, sigma), obs=x)

    def guide(x):
        scale = torch.ones(()) if heavy else x.std()
        pyro.sample("mu", dist.Normal(x.median() if heavy else x.mean(), scale * 300**-0.5))
        pyro.sample("sigma", dist.LogNormal(scale.log(), 600**-0.5))

    return CheckInputs(Pair(model, guide, (x,)))


def counts(overdispersed):
    """Overdispersed counts under a Poisson likelihood, or a negative binomial one, with exact posteriors."""
    x = dist.NegativeBinomial(3.0, probs=torch.tensor(0.5)).sample((200,))

    def model(x):
        if overdispersed:
            kind = dist.NegativeBinomial(3.0, probs=pyro.sample("p", dist.Beta(1.0, 1.0)))
        else:
            kind = dist.Poisson(pyro.sample("rate", dist.Gamma(1.0, 0.1)))
        with pyro.plate("data", 200):
            pyro.sample("x", kind, obs=x)

    def guide(x):
        if overdispersed:
            pyro.sample("p", dist.Beta(1 + x.sum(), 1 + 3.0 * 200))
        else:
            pyro.sample("rate", dist.Gamma(1 + x.sum(), 0.1 + 200))

    return CheckInputs(Pair(model, guide, (x,)))


class Lines(latent_toys.EncodedRows):
    """Rows around a line, with the exact posterior of their codes or one that says nothing of them."""

    def __init__(self, num_features=3, num_latents=1, collapsed=False):
        super().__init__(num_features, num_latents, collapsed=collapsed)
        self.collapsed, self.w = collapsed, torch.tensor([1.0, -2.0, 0.5])
        self.nothing = torch.nn.Parameter(torch.zeros(()))

    def prior(self):
        return dist.Normal(torch.zeros(1), torch.ones(1)).to_event(1)

    def decode(self, z):
        return dist.Normal(z * self.w, 0.5).to_event(1)

    def encode(self, x):
        precision = 1 + self.w.square().sum() / 0.25
        mean = (x * self.w).sum(-1, keepdim=True) / 0.25 / precision
        return dist.Normal(0 * mean if self.collapsed else mean, precision**-0.5).to_event(1)


def lines(collapsed):
    story = Lines(collapsed=collapsed)
    return CheckInputs(Pair.of_story(story, story.simulate(100)))


def batches(size):
    """A plate that draws minibatches of 500 rows, and is told how many there are."""
    x = torch.randn(500)

    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        with pyro.plate("data", size, subsample_size=50) as rows:
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x[rows])

    def guide(x):
        pyro.sample("mu", dist.Normal(x.mean(), 500**-0.5))

    return CheckInputs(Pair(model, guide, (x,)))


def two_columns(bug):
    """Two means, of which a wrong index gives the first to both columns; the guide is exact either way."""
    x = torch.randn(60, 2) + torch.tensor([0.0, 3.0])

    def model(x):
        mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 5.0).to_event(1))
        with pyro.plate("data", 60):
            pyro.sample("x", dist.Normal(mu[[0, 0]] if bug else mu, 1.0).to_event(1), obs=x)

    def guide(x):
        seen = torch.stack([x.sum(), torch.zeros(())]) if bug else x.sum(0)
        precision = 0.04 + torch.tensor([120.0, 0.0] if bug else [60.0, 60.0])
        pyro.sample("mu", dist.Normal(seen / precision, precision**-0.5).to_event(1))

    return CheckInputs(Pair(model, guide, (x,)))


def season(amplitude):
    """A local level fitted to one, plus a wave of seven steps."""
    y = torch.randn(1, 100, 1).cumsum(1) + torch.randn(1, 100, 1)
    y = y + amplitude * torch.sin(2 * torch.pi * torch.arange(100) / 7)[:, None]
    return fitted(pplgen.fit(LinearGaussianSSM.local_level(), y, progress=False))


CASES = (
    Case("a guide too narrow by 40 %", importance_weights.khat, lambda: means(0.6), lambda: means(1.05)),
    Case("a guide too wide by a quarter", width.weighted_sds, lambda: means(1.25), lambda: means(1.05)),
    Case("a guide too narrow by a fifth", width.weighted_sds, lambda: means(0.8), lambda: means(1.05)),
    Case("one of twenty deviations too wide by half", width.weighted_sds, lambda: one_width(1.5), lambda: one_width(1)),
    Case("one too wide by a quarter", width.weighted_sds, lambda: one_width(1.25), lambda: one_width(1)),
    Case("one too narrow by a quarter", width.weighted_sds, lambda: one_width(0.75), lambda: one_width(1)),
    Case("one too narrow by 40 %", width.weighted_sds, lambda: one_width(0.6), lambda: one_width(1)),
    Case(
        "a mean-field guide on a correlated posterior",
        importance_weights.khat,
        lambda: correlated(True),
        lambda: correlated(False),
    ),
    Case("a missed mode", missed_modes.missed_modes, lambda: signs(True), lambda: signs(False)),
    Case(
        "a missed mode that no restart found",
        missed_modes.missed_modes,
        lambda: three_groups((-8.2, -7.8, 4.0)),
        lambda: three_groups((-8.0, 0.0, 8.0)),
    ),
    Case(
        "a guide that returns the prior",
        importance_weights.khat,
        lambda: means(count=20, prior=True),
        lambda: means(count=20),
    ),
    Case("an unconverged fit", optimisation.last_half, lambda: line(1e-3), lambda: line(0.02)),
    Case(
        "a normal likelihood for heavy tails",
        predictive.posterior_predictive,
        lambda: tails(False),
        lambda: tails(True),
    ),
    Case(
        "a Poisson likelihood for overdispersed counts",
        predictive.posterior_predictive,
        lambda: counts(False),
        lambda: counts(True),
    ),
    Case("a collapsed autoencoder", latents.active_units, lambda: lines(True), lambda: lines(False)),
    Case(
        "a season that a local level does not follow",
        series.one_step_residuals,
        lambda: season(3.0),
        lambda: season(0.0),
    ),
    Case("a minibatch plate of the wrong size", sanity.counted_rows, lambda: batches(100), lambda: batches(500)),
    Case(
        "a wrong index in a term of the likelihood",
        predictive.posterior_predictive,
        lambda: two_columns(True),
        lambda: two_columns(False),
    ),
)


def table() -> str:
    """Return what the checks say of every case as a Markdown table."""
    lines = ["| broken | check | broken | healthy |", "|---|---|---|---|"]
    for case in CASES:
        found = case.judged()
        said = [f"{each.value:.3g}, {each.verdict}" for each in found]
        lines.append(f"| {case.what} | {found[0].name} | {said[0]} | {said[1]} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
