"""Modes that no restart found, and modes that a symmetry exchanges."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pplgen.models import GaussianMixture
from pyro.infer.autoguide import AutoNormal

import pplgen
from pplgen.checks.check import Verdict
from pplgen.checks.inputs import CheckInputs
from pplgen.checks.missed_modes import missed_modes
from pplgen.errors import InputError
from pplgen.inference.training_result import StopReason, Training
from pplgen.posterior.mirror_modes import are_mirrored
from pplgen.posterior.mode_search import search_modes
from pplgen.story.isolation import seeded
from pplgen.story.pair import Pair

NOISE = dist.Normal(0.0, 1.0).icdf((torch.arange(20) + 0.5) / 20)
THREE = torch.cat([NOISE - 8, NOISE, NOISE + 8])


def judged(pair, runs=()):
    with seeded(0), pair.isolated(), torch.no_grad():
        return missed_modes(CheckInputs(pair, runs=runs))


def three(y):
    mu = pyro.sample("mu", dist.Normal(torch.zeros(3), 10.0).to_event(1))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Categorical(torch.ones(3)), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)


def placed(*places):
    """A guide of the locations at given places, with the posterior's standard deviations."""

    def guide(y):
        where = pyro.param("where", torch.tensor(places))
        pyro.sample("mu", dist.Normal(where, pyro.param("sd", torch.full((3,), 20**-0.5)).exp() * 0.16).to_event(1))

    return Pair(three, guide, (THREE,))


def test_two_components_on_one_group_and_one_on_two():
    """No restart has the three groups apart, which has all of the mass: a bare pair with a guide of its own."""
    missed = judged(placed(-8.2, -7.8, 4.0))
    assert missed.verdict is Verdict.FAIL
    assert missed.value > 0.99
    assert "a mode that no restart found has 1.00 of the posterior mass" in missed.remedy
    assert "merged" in missed.remedy
    healthy = judged(placed(-8.0, 0.0, 8.0))
    assert healthy.verdict is Verdict.PASS, healthy
    assert healthy.value < 1e-6


def overlapping():
    generator = np.random.Generator(np.random.PCG64(1))  # the same rows whatever the tests' seeds
    return np.r_[generator.normal(0, 1, (30, 1)), generator.normal(3, 1, (30, 1))]


@pytest.fixture(scope="module")
def overlapping_fit():
    return pplgen.fit(GaussianMixture(2, 1), overlapping(), progress=False)


def test_a_nearly_empty_component_is_found(overlapping_fit):
    """.64 of the posterior have a component of few rows: two full ones, which a guide may be at, are the rest."""
    pair = overlapping_fit.pair
    assert judged(pair, overlapping_fit.runs).verdict is Verdict.PASS
    story = pair.story
    with seeded(0):
        full = Pair.of_story(story, pair.data[0], torch.arange(60) // 30)
    started = Pair(full.story.model, full.story.guide, pair.data, copied=True)
    started.story = full.story
    missed = judged(started)
    assert missed.verdict is Verdict.FAIL
    assert "components 0 and 1 merged" in missed.remedy
    # the mass of the fit with one nearly empty component; the guide of two full ones covers its neighbourhood
    assert 0.4 < missed.value < 1
    # the parameters are those before the search
    again = judged(started)
    assert again.value == missed.value


def test_one_column_is_searched_too(overlapping_fit):
    with overlapping_fit.pair.isolated(), torch.no_grad():
        modes = search_modes(overlapping_fit.pair)
    assert modes
    assert modes[0].elbo == max(mode.elbo for mode in modes)
    assert modes[0].elbo == pytest.approx(overlapping_fit.elbo, abs=1.0)


def two_weights(y):
    """Two scalars whose order nothing tells."""
    a, b = (pyro.sample(name, dist.Normal(0.0, 3.0)) for name in ("a", "b"))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(torch.stack([a + b, a * b]), 0.3).to_event(1), obs=y)


def shares(y, alike=True):
    """A mixture of two with a scalar weight."""
    pi = pyro.sample("pi", dist.Beta(2.0, 2.0) if alike else dist.Beta(2.0, 3.0))
    mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 5.0).to_event(1))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Bernoulli(pi), infer={"enumerate": "parallel"}).long()
        pyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)


def unequal_shares(y):
    shares(y, alike=False)


def loadings(y):
    """A factor of each row and its loadings, whose signs nothing tells."""
    w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z[:, None] * w, 0.3).to_event(1), obs=y)


PAIRS = torch.tensor([[3.0, 2.0], [3.1, 1.9], [2.9, 2.1]] * 5)
GROUPS = torch.cat([NOISE[:10] - 4, NOISE + 4])
FACTOR = NOISE[:, None] * torch.tensor([2.0, -1.0, 1.5])


def at(pair, values):
    """Return draws near values of latents, and of rows' latents at those given."""
    generator = torch.Generator().manual_seed(0)
    return {n: v + 0.05 * torch.randn(200, *v.shape, generator=generator) for n, v in values.items()}


CASES = {
    "scalars that swap": (
        two_weights,
        PAIRS,
        {"a": torch.tensor(1.0), "b": torch.tensor(2.0)},
        {"a": torch.tensor(2.0), "b": torch.tensor(1.0)},
        True,
    ),
    "a weight and its complement": (
        shares,
        GROUPS,
        {"pi": torch.tensor(0.3), "mu": torch.tensor([4.0, -4.0])},
        {"pi": torch.tensor(0.7), "mu": torch.tensor([-4.0, 4.0])},
        True,
    ),
    "a weight whose prior differs from that of its complement": (
        unequal_shares,
        GROUPS,
        {"pi": torch.tensor(0.3), "mu": torch.tensor([4.0, -4.0])},
        {"pi": torch.tensor(0.7), "mu": torch.tensor([-4.0, 4.0])},
        False,
    ),
    "signs of loadings and factors": (
        loadings,
        FACTOR,
        {"w": torch.tensor([2.0, -1.0, 1.5]), "z": NOISE},
        {"w": torch.tensor([-2.0, 1.0, -1.5]), "z": -NOISE},
        True,
    ),
    "signs of one of three loadings": (
        loadings,
        FACTOR,
        {"w": torch.tensor([2.0, -1.0, 1.5]), "z": NOISE},
        {"w": torch.tensor([2.0, 1.0, 1.5]), "z": NOISE},
        False,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_mirror_images(case):
    model, data, first, second, expected = CASES[case]
    pair = Pair(model, None, (data,))
    with pair.isolated(), torch.no_grad():
        assert are_mirrored(pair, at(pair, first), at(pair, second)) == expected


def test_modes_that_mirror_each_other_are_not_missed():
    """Restarts at either order of a mixture with a scalar weight; then with a prior that tells the orders apart."""
    found = {}
    for model in (shares, unequal_shares):

        def guide(y):
            where = pyro.param("where", torch.tensor([0.85, 4.0, -4.0]))
            pyro.sample("pi", dist.Beta(20 * (1 - where[0].sigmoid()), 20 * where[0].sigmoid()))
            pyro.sample("mu", dist.Normal(where[1:], torch.tensor([0.22, 0.31])).to_event(1))

        runs = tuple(
            Training(0, np.empty(0), 0.0, 0.1, StopReason.CONVERGED, final=np.array(final))
            for final in ([0.85, 4.0, -4.9], [-0.85, -4.9, 4.0])
        )
        found[model] = judged(Pair(model, guide, (GROUPS,)), runs)
    assert found[shares].verdict is Verdict.PASS
    assert "1 modes are mirror images" in found[shares].remedy
    assert found[unequal_shares].verdict is Verdict.FAIL


def test_what_is_not_searched():
    def normal(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    pair = Pair(normal, AutoNormal(normal), (THREE,))
    with pair.isolated(), torch.no_grad(), pytest.raises(InputError, match="where each row has one component"):
        search_modes(pair)
    check = judged(pair)
    assert check.verdict is Verdict.NOT_APPLICABLE
    assert "it needs restarts whose final parameters were stored" in check.remedy
