"""Residuals against covariates, groups and the order of rows, and rows that occur twice."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pplgen.checks.check import Verdict
from pplgen.checks.inputs import CheckInputs
from pplgen.checks.repeated_rows import repeated_rows
from pplgen.checks.residuals import residuals_against_covariates, residuals_in_order
from pplgen.checks.sanity import latent_scales
from pplgen.story.isolation import seeded
from pplgen.story.pair import Pair


def judge(check, pair, rows=None):
    with seeded(0), pair.isolated(), torch.no_grad():
        return check(CheckInputs(pair, rows))


def mean_only(covariate, y):
    """A pair that is given a covariate and does not use it, with its exact posterior."""

    def model(covariate, y):
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    def guide(covariate, y):
        precision = 0.04 + len(y)
        pyro.sample("mu", dist.Normal(y.sum() / precision, precision**-0.5))

    return Pair(model, guide, (covariate, y))


def test_the_covariate_that_matters_is_named():
    torch.manual_seed(0)
    x = torch.randn(150, 3)
    noise = torch.randn(150)
    assert judge(residuals_against_covariates, mean_only(x, noise)).verdict is Verdict.PASS
    found = judge(residuals_against_covariates, mean_only(x, noise + 0.7 * x[:, 1]))
    assert found.verdict is Verdict.FAIL
    assert found.remedy.startswith("y: the mean residual depends on argument 1, column 2")


def test_groups_are_compared_as_groups():
    """Groups 0, 1, 2 with means that are no trend: a rank correlation sees nothing, Kruskal and Wallis's test does."""
    torch.manual_seed(0)
    group = torch.arange(150) % 3
    noise = torch.randn(150)
    assert judge(residuals_against_covariates, mean_only(group, noise)).verdict is Verdict.PASS
    found = judge(residuals_against_covariates, mean_only(group, noise + torch.tensor([0.0, 1.2, 0.0])[group]))
    assert found.verdict is Verdict.FAIL
    assert "argument 1" in found.remedy


def test_order_fails_a_conditional_model_warns_an_exchangeable_one_and_is_no_news_of_sorted_rows():
    torch.manual_seed(0)
    x, noise = torch.randn(150), torch.randn(150)
    waves = noise + torch.sin(torch.arange(150) / 3)
    assert judge(residuals_in_order, mean_only(x, noise)).verdict is Verdict.PASS
    assert judge(residuals_in_order, mean_only(x, waves)).verdict is Verdict.FAIL
    assert judge(residuals_in_order, mean_only(waves, waves)).verdict is Verdict.WARN
    found = judge(residuals_in_order, mean_only(x, waves.sort().values))
    assert (found.verdict, found.remedy) == (Verdict.NOT_APPLICABLE, "the rows are sorted by their values")


def test_rows_that_were_rounded_or_are_few_kinds_are_not_repeated():
    torch.manual_seed(0)
    x, y = torch.randn(200), torch.randn(200)
    for place in (1, 0):  # to one digit, and to integers
        rounded = judge(repeated_rows, mean_only(x.round(decimals=place), y.round(decimals=place)))
        assert rounded.verdict is Verdict.PASS
    assert judge(repeated_rows, mean_only(x, y)).value == 0
    heap = judge(repeated_rows, mean_only(torch.zeros(200), y.where(y > 0, 0.0)))
    assert (heap.value, heap.verdict) == (1, Verdict.PASS)
    twice = judge(repeated_rows, mean_only(torch.cat([x, x]), torch.cat([y, y])))
    assert (twice.value, twice.verdict) == (200, Verdict.FAIL)


def test_training_rows_among_new_ones_are_counted():
    torch.manual_seed(0)
    x, y = torch.randn(200), torch.randn(200)
    pair = mean_only(x[:150], y[:150])
    assert judge(repeated_rows, pair, (x[150:], y[150:])).value == 0
    found = judge(repeated_rows, pair, (x[140:], y[140:]))
    assert (found.value, found.verdict) == (10, Verdict.FAIL)
    assert "10 of these rows are also training rows" in found.remedy


@pytest.mark.parametrize(("scale", "mask", "value"), [(1.0, True, 1.0), (0.1, True, 0.1), (1.0, False, 0.0)])
def test_scales_of_latents_are_seen(scale, mask, value):
    def model(y):
        with pyro.poutine.scale(scale=scale), pyro.poutine.mask(mask=mask):
            mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    def guide(y):
        pyro.sample("mu", dist.Normal(0.0, 1.0))

    found = judge(latent_scales, Pair(model, guide, (torch.randn(10),)))
    assert found.value == pytest.approx(value)
    assert found.verdict is (Verdict.PASS if value == 1 else Verdict.FAIL)


def test_latents_of_minibatches_are_scaled_like_their_rows():
    """Forty of four hundred rows, each with a latent that counts ten times."""

    def model(y):
        with pyro.plate("data", 400, subsample_size=40) as rows:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y[rows])

    def guide(y):
        with pyro.plate("data", 400, subsample_size=40):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    found = judge(latent_scales, Pair(model, guide, (torch.randn(400),)))
    assert (found.value, found.verdict) == (1.0, Verdict.PASS)
