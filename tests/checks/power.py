"""Deliberately broken fits, each beside its healthy twin: what the checks are worth.

Most are made of the pairs and operators of ``benchmarks/mutants``. ``python tests/checks/power.py`` prints the table of
the documentation.
"""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pplgen.models import FactorAnalysis, LinearGaussianSSM

import pplgen
from pplgen.checks import (
    importance_weights,
    latents,
    missed_modes,
    optimisation,
    predictive,
    repeated_rows,
    residuals,
    sanity,
    series,
    width,
)
from pplgen.checks.check import Check, Verdict
from pplgen.checks.inputs import CheckInputs
from pplgen.errors import DataWarning
from pplgen.inference.training_result import best_first
from pplgen.story.isolation import seeded
from pplgen.story.pair import Pair
from pplgen.timeseries.one_step import one_step_pit

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from mutants import healthy_pairs as pairs
from mutants.data_operators import DATA_OPERATORS
from mutants.fit_operators import FIT_OPERATORS, STORY_OPERATORS
from mutants.guide_operators import GUIDE_OPERATORS, moved_guide
from mutants.healthy_stories import mixed_mixture
from mutants.model_operators import MODEL_OPERATORS

_SPEC = importlib.util.spec_from_file_location("latent_toys", Path(__file__).parents[1] / "latent_toys.py")
latent_toys = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(latent_toys)

SEEDS = (0, 1, 2)
OPERATORS = GUIDE_OPERATORS | MODEL_OPERATORS | DATA_OPERATORS | FIT_OPERATORS | STORY_OPERATORS


@dataclass(frozen=True)
class Case:
    """A check, and what makes inputs that it should fail on, and inputs that it should pass."""

    what: str
    check: Callable[[CheckInputs], Check]
    broken: Callable[[], CheckInputs]
    healthy: Callable[[], CheckInputs]

    def judged(self, seed):
        """Run the check on both, with a separate data set for each seed."""
        found = []
        for make in (self.broken, self.healthy):
            with seeded(seed):
                inputs = make()
            with seeded(seed), inputs.pair.isolated(), torch.no_grad():
                found.append(self.check(inputs))
        return found


def mutant(what, check, make, operator, posterior_known=False):
    """A case of a healthy pair and an operator, or one of its wrong models; ``posterior_known`` keeps the guide."""

    def broken():
        subject = make()
        if operator in subject.variants:
            return subject.with_model(subject.variants[operator]).trained(0)
        changed = (OPERATORS[operator] if isinstance(operator, str) else operator)(subject)
        return (replace(changed, guide=subject.guide, closed=True) if posterior_known else changed).trained(0)

    return Case(what, check, broken, lambda: make().trained(0))


def fitted(fit):
    return CheckInputs(fit.pair, runs=tuple(best_first(fit.runs)), one_step_pit=one_step_pit)


def signs(both):
    """A mean that is seen with its sign, or without, which leaves two modes that the prior tells apart."""

    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.3, 3.0))
        with pyro.plate("data", 20):
            pyro.sample("x", dist.Normal(mu.abs() if both else mu, 1.0), obs=x)

    x = torch.randn(20) + 1.5
    return fitted(pplgen.fit(model, x, restarts=6, steps=400, compile="graph", progress=False))


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


def line(**options):
    """A regression fitted by Adam."""

    def model(features, y):
        beta = pyro.sample("beta", dist.Normal(torch.zeros(3), 3.0).to_event(1))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(features @ beta, 1.0), obs=y)

    features = torch.randn(100, 3)
    y = features @ torch.tensor([3.0, -3.0, 3.0]) + torch.randn(100)
    options = {"optimiser": "adam", "compile": "graph", "progress": False} | options
    return fitted(pplgen.fit(model, (features, y), **options))


def exponential(sd):
    """A mean on the logarithmic scale, and a guide of fixed width: exp(2 mu) under one of sd 6 has no moments that any
    number of draws finds."""

    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 50.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu.exp(), 1.0), obs=y)

    def guide(y):
        pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.0)), sd))

    y = 1.0 + torch.randn(10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        options = {"optimiser": "adam", "learning_rate": 1e-3 if sd < 1 else 1e-9}
        return fitted(pplgen.fit(model, y, guide, compile="graph", progress=False, **options))


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


def new_rows(leaked):
    """Twenty new rows of a regression, or ten of them from its training rows."""
    subject = pairs.line()
    inputs = subject.trained(0)
    x, y = torch.randn(20, 4), torch.randn(20)
    if leaked:
        x, y = torch.cat([subject.data[0][:10], x[:10]]), torch.cat([subject.data[1][:10], y[:10]])
    return CheckInputs(inputs.pair, (x, y))


def factors(number):
    """Eight columns of noise and as many factors as given; a fit with six factors."""
    x = torch.randn(60, 8) + (torch.randn(60, number) @ (2 * torch.randn(number, 8)) if number else 0)
    return fitted(pplgen.fit(FactorAnalysis(8, 6), x, progress=False, compile="graph"))


def overfitted(inputs):
    """Whether ``compare`` prefers six factors to one: differences of log predictive densities in standard errors."""
    candidates = {"six": FactorAnalysis(8, 6), "one": FactorAnalysis(8, 1)}
    table = pplgen.compare(candidates, inputs.pair.data[0], progress=False, compile="graph")
    gain = float(table.loc["six", "elpd"] - table.loc["one", "elpd"])
    verdict = Verdict.PASS if gain > 0 else Verdict.FAIL
    remedy = "" if gain > 0 else "six factors predict new rows worse than one"
    return Check("k-fold elpd of six factors minus that of one (nats)", gain, 0.0, "compare", verdict, remedy)


KHAT, WIDTH, SHIFT = importance_weights.khat, width.weighted_sds, importance_weights.resampled_means
PREDICTIVE, PIT = predictive.posterior_predictive, predictive.loo_pit
COVARIATES, ORDER = residuals.residuals_against_covariates, residuals.residuals_in_order
CASES = (
    mutant("a guide too narrow by half", KHAT, pairs.normal_means, "guide narrowed to .5"),
    mutant("too narrow by a quarter", WIDTH, pairs.correlated_means, moved_guide(0.75)),
    mutant("too wide by a quarter", WIDTH, pairs.correlated_means, moved_guide(1.25)),
    mutant("one of ten sds too narrow by a quarter", WIDTH, pairs.normal_means, moved_guide(0.75, one=True)),
    mutant("one of ten too wide by a quarter", WIDTH, pairs.normal_means, moved_guide(1.25, one=True)),
    mutant("one of ten too narrow by 40 %", WIDTH, pairs.normal_means, moved_guide(0.6, one=True)),
    mutant("one of ten too wide by 60 %", WIDTH, pairs.normal_means, moved_guide(1.6, one=True)),
    mutant("a mean one sd off", SHIFT, pairs.counts, "guide shifted by 1 sd"),
    mutant("one of ten means 1.5 sd off", SHIFT, pairs.normal_means, "guide shifted by 1.5 sd in one entry"),
    mutant("the wrong sign of a coefficient", KHAT, pairs.line, "guide with the wrong sign"),
    mutant("two coefficients swapped", KHAT, pairs.line, "guide with two entries swapped"),
    mutant("a mean-field guide on a correlated posterior", KHAT, pairs.correlated_means, "guide without correlations"),
    mutant("a coefficient frozen at its start", KHAT, pairs.line, "one entry frozen at its start"),
    mutant("a guide that returns the prior", KHAT, pairs.normal_means, "guide = prior"),
    Case("a missed mode", missed_modes.missed_modes, lambda: signs(True), lambda: signs(False)),
    Case(
        "a missed mode that no restart found",
        missed_modes.missed_modes,
        lambda: three_groups((-8.2, -7.8, 4.0)),
        lambda: three_groups((-8.0, 0.0, 8.0)),
    ),
    Case(
        "an unconverged fit",
        optimisation.last_half,
        lambda: line(learning_rate=1e-3, steps=1000),
        lambda: line(steps=1000),
    ),
    Case(
        "an unconverged minibatch fit",
        optimisation.last_half,
        lambda: line(learning_rate=1e-3, steps=1000, batch_size=20),
        lambda: line(batch_size=20, steps=1500),
    ),
    Case("a diverged fit", optimisation.elbo_change, lambda: exponential(6.0), lambda: exponential(0.1)),
    mutant("a likelihood counted twice", sanity.counted_rows, pairs.line, "likelihood counted twice", True),
    Case("a minibatch plate of the wrong size", sanity.counted_rows, lambda: batches(100), lambda: batches(500)),
    mutant("a frozen KL weight", sanity.latent_scales, pairs.line, "KL weight frozen at .1"),
    mutant("a prior that is dropped", sanity.latent_scales, pairs.counts, "prior dropped", True),
    mutant("rows that are counted twice", repeated_rows.repeated_rows, pairs.line, "rows counted twice"),
    Case(
        "training rows in a test set",
        repeated_rows.repeated_rows,
        lambda: new_rows(True),
        lambda: new_rows(False),
    ),
    mutant("noise half as wide as it is", PREDICTIVE, pairs.normal_means, "noise half as wide"),
    mutant("noise twice as wide as it is", PIT, pairs.normal_means, "noise twice as wide"),
    Case("a normal likelihood for heavy tails", PREDICTIVE, lambda: tails(False), lambda: tails(True)),
    mutant("overdispersed counts", PREDICTIVE, pairs.counts, "overdispersed counts"),
    mutant("underdispersed counts", PREDICTIVE, pairs.counts, "underdispersed counts"),
    mutant("zeros in excess", PREDICTIVE, pairs.counts, "zeros in excess"),
    mutant("outliers", PREDICTIVE, pairs.normal_gamma, "outliers"),
    mutant("skewed rows", PREDICTIVE, pairs.normal_gamma, "skewness"),
    mutant("dependent columns, one component", PREDICTIVE, mixed_mixture, "one component"),
    Case(
        "a wrong index in a term of the likelihood",
        PREDICTIVE,
        lambda: two_columns(True),
        lambda: two_columns(False),
    ),
    mutant("a wrong link", COVARIATES, pairs.poisson_regression, "wrong link"),
    mutant("a covariate that is dropped", COVARIATES, pairs.line_and_noise, "a covariate dropped"),
    mutant("a quadratic term ignored", COVARIATES, pairs.line_and_noise, "a quadratic term ignored"),
    mutant("errors that grow with a covariate", COVARIATES, pairs.line_and_noise, "errors grow with a covariate"),
    mutant("groups ignored", COVARIATES, pairs.groups, "groups ignored"),
    mutant("an autocorrelated residual", ORDER, pairs.line_and_noise, "autocorrelated rows"),
    mutant("a season of the rows", ORDER, pairs.line_and_noise, "season"),
    Case(
        "a season that a local level does not follow",
        series.one_step_residuals,
        lambda: season(3.0),
        lambda: season(0.0),
    ),
    Case("a collapsed autoencoder", latents.active_units, lambda: lines(True), lambda: lines(False)),
    Case("an overfitting factor model in `compare`", overfitted, lambda: factors(0), lambda: factors(5)),
)


def table() -> str:
    """Return what the checks say of every case as a Markdown table, of the first data set."""
    lines = ["| broken | check | broken | healthy |", "|---|---|---|---|"]
    for case in CASES:
        found = case.judged(SEEDS[0])
        said = [f"{each.value:.3g}, {each.verdict}" for each in found]
        lines.append(f"| {case.what} | {found[0].name} | {said[0]} | {said[1]} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
