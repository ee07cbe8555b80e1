"""Many draws at once are draws one by one."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pplgen.compiler import vectorisation as mapped
from pplgen.compiler.vectorisation import map_draws
from pplgen.posterior.draws import draw_posterior, draw_shared, row_densities
from pplgen.story.isolation import seeded
from pplgen.story.pair import Pair


def mixture(x):
    """Two components, their index summed out."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.tensor([2.0, 3.0])))
    with pyro.plate("components", 2):
        mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
        sigma = pyro.sample("sigma", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(mu[z], sigma[z]), obs=x)


@pytest.fixture
def mapping(monkeypatch):
    """Say whether draws were mapped, and let tests forbid it."""
    kept, done = mapped._vmapped, []

    def watched(*arguments):
        result = kept(*arguments)
        done.append(True)
        return result

    monkeypatch.setattr(mapped, "_vmapped", watched)
    return done


def test_densities_at_given_draws_are_the_same_mapped_and_one_by_one(mapping):
    x = torch.tensor([-1.0, 0.3, 2.0, 2.5])
    pair = Pair(mixture, None, (x,))
    with pair.isolated():
        draws = draw_shared(pair, 200)
        together = row_densities(pair, draws, 200, (x,))
        assert len(mapping) == 2
        few = {name: value[:10] for name, value in draws.items()}
        alone = row_densities(pair, few, 10, (x,))
    assert len(mapping) == 2
    torch.testing.assert_close(together.log_likelihood[:10], alone.log_likelihood)
    torch.testing.assert_close(together.probabilities["z"][:10], alone.probabilities["z"])
    # closed form of the first draw
    w, mu, sigma = (draws[name][0] for name in ("weights", "mu", "sigma"))
    joint = w.log() + torch.distributions.Normal(mu, sigma).log_prob(x[:, None])
    torch.testing.assert_close(together.log_likelihood[0], joint.logsumexp(-1))


def test_every_draw_has_random_numbers_of_its_own_and_the_seed_decides():
    pair = Pair(mixture, None, (torch.tensor([-1.0, 0.3, 2.0]),))
    with pair.isolated():
        with seeded(3):
            first = draw_posterior(pair, 200)
        with seeded(3):
            second = draw_posterior(pair, 200)
    assert len(first.lp.unique()) == 200
    torch.testing.assert_close(first.lp, second.lp, rtol=0, atol=0)


def test_mapped_draws_have_the_distribution_of_single_ones(mapping):
    """Gamma draws of shape 2: mean 2, variance 2, fourth central moment 24; four standard errors of 4,000."""
    values = map_draws(lambda _: {"g": dist.Gamma(2.0, 1.0).sample()}, 4000)["g"]
    assert mapping
    assert abs(values.mean().item() - 2) < 4 * (2 / 4000) ** 0.5
    assert abs(values.var().item() - 2) < 4 * ((24 - 2**2) / 4000) ** 0.5


def test_what_branches_on_values_is_evaluated_one_by_one(mapping):
    def branching(given):
        return given["a"] * (2 if given["a"] > 0 else -1)

    a = torch.linspace(-1, 1, 160)
    torch.testing.assert_close(map_draws(branching, 160, {"a": a}), torch.where(a > 0, 2 * a, -a))
    assert not mapping


def test_an_error_of_the_function_is_its_own():
    def failing(_):
        raise ValueError("of its own")

    with pytest.raises(ValueError, match="of its own"):
        map_draws(failing, 200)


def test_intermediate_results_stay_small(monkeypatch):
    """Whatever the size of a batch, the result is that of all draws."""
    monkeypatch.setattr(mapped, "MAX_ENTRIES", 7)
    a = torch.randn(160, 3)
    torch.testing.assert_close(map_draws(lambda given: given["a"] ** 2, 160, {"a": a}), a**2)


DRAWN = {
    "Normal": dist.Normal(1.0, 2.0),
    "StudentT": dist.StudentT(5.0),
    "Laplace": dist.Laplace(0.0, 1.0),
    "Gumbel": dist.Gumbel(0.0, 1.0),
    "Exponential": dist.Exponential(0.7),
    "Weibull": dist.Weibull(1.0, 2.0),
    "Cauchy": dist.Cauchy(0.0, 1.0),
    "HalfCauchy": dist.HalfCauchy(1.0),
    "Gamma": dist.Gamma(2.0, 1.0),
    "Beta": dist.Beta(2.0, 2.0),
    "Poisson": dist.Poisson(30.0),
    "NegativeBinomial": dist.NegativeBinomial(20.0, 0.5),
    "Geometric": dist.Geometric(0.02),
    "Binomial": dist.Binomial(100, 0.5),
}


@pytest.mark.parametrize("name", DRAWN)
def test_each_draw_of_each_distribution_is_another(name, mapping):
    draws = map_draws(lambda _: pyro.sample("x", DRAWN[name].expand([4]).to_event(1)), 400)
    alike = (draws[1:] == draws[:-1]).double().mean()
    # a geometric count of mean 49 equals another with probability .01, the largest of these: 1,596 pairs, sd .003
    assert alike < 0.1
    ranks = DRAWN[name].cdf(draws) if name in ("Normal", "Exponential", "Cauchy", "HalfCauchy", "Weibull") else None
    if ranks is not None:  # the mean of 1,600 uniform numbers has an error of .0072
        assert ranks.mean() == pytest.approx(0.5, abs=4 * 0.0072)
