"""Checks of a guide's standard deviations, against widths that are known."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import pplgen
from pplgen.checks.check import Verdict
from pplgen.checks.inputs import CheckInputs
from pplgen.checks.width import linear_response_sds, weighted_sds
from pplgen.story.isolation import seeded
from pplgen.story.pair import Pair


def judge(check, pair, runs=()):
    with seeded(0), pair.isolated(), torch.no_grad():
        return check(CheckInputs(pair, runs=tuple(runs)))


def posterior(width):
    """Twenty means and their exact posterior, but for the standard deviation of one."""
    x = torch.randn(2, 20, generator=torch.Generator().manual_seed(0)) + 2

    def model(x):
        mu = pyro.sample("mu", dist.Normal(torch.zeros(20), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0).to_event(1), obs=x)

    def guide(x):
        sd = torch.full((20,), 3**-0.5)
        sd[7] *= width
        pyro.sample("mu", dist.Normal(x.sum(0) / 3, sd).to_event(1))

    return Pair(model, guide, (x,))


@pytest.mark.parametrize("width", [0.6, 0.75, 1.15, 1.5])
def test_a_guide_of_the_wrong_width_is_seen_in_one_of_many_parameters(width):
    """Twenty means, one of whose deviations is wrong; k-hat passes all of these but .6 in most seeds."""
    found = judge(weighted_sds, posterior(width))
    # of 40,000 draws with weights that have a variance for widths above .71; its error is part of the check's threshold
    assert found.value == pytest.approx(max(width, 1 / width), rel=0.1 if width > 0.7 else 0.25)
    assert found.verdict is (Verdict.WARN if width == 1.15 else Verdict.FAIL)
    ratio, direction = (found.value, "narrow") if width < 1 else (1 / found.value, "wide")
    said = f"mu[7]: the importance-weighted sd is {ratio:.2f} times the guide's, which is too {direction}"
    assert found.remedy.startswith(said)


def test_the_right_width_passes():
    assert judge(weighted_sds, posterior(1.0)).verdict is Verdict.PASS


def test_a_mean_field_guide_is_narrower_by_what_its_correlations_explain():
    """Two coefficients of correlated covariates: the factors have the conditional deviations."""
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(200, 1, generator=generator, dtype=torch.float64)
    X = 0.8**0.5 * shared + 0.2**0.5 * torch.randn(200, 2, generator=generator, dtype=torch.float64)
    y = X.sum(1) + torch.randn(200, generator=generator, dtype=torch.float64)

    def model(X, y):
        beta = pyro.sample("beta", dist.Normal(X.new_zeros(2), 10.0).to_event(1))
        with pyro.plate("data", len(X)):
            pyro.sample("y", dist.Normal(X @ beta, 1.0), obs=y)

    precision = X.mT @ X + 0.01 * torch.eye(2)
    expected = float((precision.inverse().diagonal() * precision.diagonal()).sqrt().max())
    fit = pplgen.fit(model, (X, y), progress=False)
    found = judge(linear_response_sds, fit.pair, fit.runs)
    assert found.verdict is Verdict.WARN
    assert found.value == pytest.approx(expected, rel=0.05)  # moments of 4,096 draws: .011 each
    assert "fit.covariance()" in found.remedy
    full = pplgen.fit(model, (X, y), "full-rank", progress=False)
    assert judge(linear_response_sds, full.pair, full.runs).verdict is Verdict.PASS
    assert judge(weighted_sds, full.pair, full.runs).verdict is Verdict.PASS
