"""Log densities of draws and rows against closed forms and the exact E-step."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from pplgen.errors import InputError
from pplgen.exact.em import GaussianMixtureParameters, e_step
from pplgen.posterior.draws import draw_posterior, draw_predictive, draw_prior, draw_shared, row_densities
from pplgen.story.pair import Pair

PRIOR, NOISE = 1.5, 0.7


def factor_model(y):
    """Rows with a continuous latent each: y_i | mu ~ Normal(mu, PRIOR^2 + NOISE^2) once it is integrated out."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(mu, PRIOR))
        pyro.sample("y", dist.Normal(z, NOISE), obs=y)


def factor_guide(y):
    """The exact posterior of each row's latent given mu, and any guide for mu."""
    mu = pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.2)), 0.3))
    precision = PRIOR**-2 + NOISE**-2
    with pyro.plate("data", len(y)):
        pyro.sample("z", dist.Normal((mu / PRIOR**2 + y / NOISE**2) / precision, precision**-0.5))


def test_mixture_rows_equal_the_exact_e_step(faithful_fit, faithful):
    pair = faithful_fit.pair
    x = faithful.values.float()
    with pair.isolated():
        draws = draw_shared(pair, 3)
        scores = row_densities(pair, draws, 3, (x,))
        for index in range(3):
            latent = {name: value[index] for name, value in draws.items()}
            L = latent["scale_tril"]
            exact = GaussianMixtureParameters(latent["weights"].double(), latent["mu"].double(), (L @ L.mT).double())
            responsibilities, log_likelihood = e_step(faithful.values, exact)
            # float32 against float64: relative 1e-5 of terms up to 20 nats
            torch.testing.assert_close(scores.probabilities["z"][index].double(), responsibilities, atol=1e-4, rtol=0)
            assert scores.log_likelihood[index].double().sum().item() == pytest.approx(log_likelihood.item(), rel=1e-5)


@pytest.mark.parametrize("num_rows", [1, 2])
def test_few_rows_and_one_component_keep_their_axes(num_rows):
    from pplgen.models import GaussianMixture

    story = GaussianMixture(1, 1)
    x = torch.randn(num_rows, 1)
    pair = Pair(story.model, story.guide, (torch.randn(5, 1),))
    with pair.isolated():
        scores = row_densities(pair, draw_shared(pair, 1), 1, (x,))
    assert scores.log_likelihood.shape == (1, num_rows)
    assert scores.probabilities["z"].shape == (1, num_rows, 1)
    torch.testing.assert_close(scores.probabilities["z"], torch.ones(1, num_rows, 1))


def test_joint_density_sums_discrete_latents_out(faithful_fit, faithful_tree):
    """lp is the rows' densities plus the prior's; the tree holds both, the prior comes from torch."""
    posterior = {n: torch.tensor(v.values[0]) for n, v in faithful_tree["posterior"].data_vars.items()}
    story = faithful_fit.story
    L, components = posterior["scale_tril"], story.components
    Sigma, degrees = L @ L.mT, torch.tensor(4.0)
    # the density of L is that of the precision times the Jacobians to the covariance, |Sigma|^-3, and to the factor
    volume = 2 * math.log(2) + (torch.tensor([2.0, 1.0]) * L.diagonal(dim1=-2, dim2=-1).log()).sum(-1)
    wishart = torch.distributions.Wishart(degrees, torch.diag(components.unit**-2).detach(), validate_args=False)
    prior = (
        torch.distributions.Dirichlet(torch.ones(2)).log_prob(posterior["weights"])
        + (wishart.log_prob(torch.linalg.inv(Sigma)) - 3 * Sigma.logdet() + volume).sum(-1)
        + torch.distributions.MultivariateNormal(components.m, scale_tril=L * 10).log_prob(posterior["mu"]).sum(-1)
    )
    rows = torch.tensor(faithful_tree["log_likelihood"]["x"].values[0]).sum(-1)
    lp = torch.tensor(faithful_tree["sample_stats"]["lp"].values[0])
    torch.testing.assert_close(lp, rows + prior.detach(), atol=2e-2, rtol=0)  # float32 sums near 1e3


def test_row_latents_are_integrated_out_by_importance_sampling():
    """With the exact conditional guide the weights are constant, so one draw gives the marginal exactly."""
    y = torch.linspace(-2.0, 3.0, 7)
    new = torch.tensor([0.0, 4.0, -1.0])
    pair = Pair(factor_model, factor_guide, (y,))
    with pair.isolated():
        shared = draw_shared(pair, 1)
        assert set(shared) == {"mu"}
        scores = row_densities(pair, shared, 1, (new,))
    exact = torch.distributions.Normal(shared["mu"][:, None], math.hypot(PRIOR, NOISE)).log_prob(new)
    torch.testing.assert_close(scores.log_likelihood, exact)
    assert scores.drawn["z"].shape == (1, 3)


def test_the_scale_of_a_pair_does_not_enter_the_density_of_a_row():
    y = torch.linspace(-2.0, 3.0, 7)
    model, guide = (pyro.poutine.scale(part, scale=5.0) for part in (factor_model, factor_guide))
    pair = Pair(model, guide, (y,))
    with pair.isolated():
        shared = draw_shared(pair, 1)
        scores = row_densities(pair, shared, 1, (y,))
    exact = torch.distributions.Normal(shared["mu"][:, None], math.hypot(PRIOR, NOISE)).log_prob(y)
    torch.testing.assert_close(scores.log_likelihood, exact)


def test_training_rows_are_conditional_on_their_drawn_latents():
    y = torch.linspace(-2.0, 3.0, 7)
    pair = Pair(factor_model, factor_guide, (y,))
    with pair.isolated():
        draws = draw_posterior(pair, 1)
        latent = draws.named(pair.structure.latent)
        scores = row_densities(pair, latent, 1, (y,))
    torch.testing.assert_close(scores.log_likelihood, torch.distributions.Normal(latent["z"], NOISE).log_prob(y))


def test_masked_rows_score_nothing_and_scaled_ones_score_once():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)), pyro.poutine.scale(scale=5.0), pyro.poutine.mask(mask=y < 1.0):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    y = torch.tensor([0.0, 0.5, 2.0])
    pair = Pair(model, None, (y,))
    with pair.isolated():
        latent = draw_shared(pair, 1)
        scores = row_densities(pair, latent, 1, (y,)).log_likelihood
    exact = torch.distributions.Normal(latent["mu"][:, None], 1.0).log_prob(y)
    torch.testing.assert_close(scores, torch.where(y < 1.0, exact, 0.0))


def test_prior_and_predictive_draws_have_the_models_moments():
    y = torch.full((4,), 3.0)
    pair = Pair(factor_model, factor_guide, (y,))
    with pair.isolated():
        _, observed = draw_prior(pair, 2000)
        draws = draw_posterior(pair, 2000)
        replicated = draw_predictive(pair, draws)
    assert observed["y"].shape == replicated["y"].shape == (2000, 4)
    # prior predictive: Normal(0, 1 + PRIOR^2 + NOISE^2); four standard errors of a mean of 2,000 (rows correlated)
    sd = math.sqrt(1 + PRIOR**2 + NOISE**2)
    assert abs(observed["y"].mean().item()) < 4 * sd / math.sqrt(2000)
    assert observed["y"].std().item() == pytest.approx(sd, rel=0.1)
    # replicated at each draw: centred on the drawn latent, with the noise's deviation
    residual = replicated["y"] - draws.sites["z"]
    assert abs(residual.mean().item()) < 4 * NOISE / math.sqrt(8000)
    assert residual.std().item() == pytest.approx(NOISE, rel=4 / math.sqrt(16000))


def test_what_has_no_rows_says_so():
    def no_plate(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu, 1.0).expand([len(y)]).to_event(1), obs=y)

    def shared_switch(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        s = pyro.sample("s", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu + s, 1.0), obs=y)

    y = torch.zeros(3)
    for model, sentence in ((no_plate, "all rows in a plate"), (shared_switch, "the enumerated site 's' is shared")):
        pair = Pair(model, None, (y,))
        with pair.isolated(), pytest.raises(InputError, match=sentence):
            row_densities(pair, draw_shared(pair, 1), 1, (y,))


def test_a_guide_with_parameters_per_row_cannot_describe_new_rows():
    automatic = Pair(factor_model, None, (torch.arange(5.0),))
    amortised = Pair(factor_model, factor_guide, (torch.arange(5.0),))
    with amortised.isolated():
        amortised.check_amortised()
    with (
        automatic.isolated(),
        pytest.raises(InputError, match="draws 'z' from separate parameters for each"),
    ):
        automatic.check_amortised()


def test_log_q_is_the_guides_density():
    pair = Pair(factor_model, factor_guide, (torch.zeros(2),))
    with pair.isolated():
        draws = draw_posterior(pair, 5)
    mu, z = draws.sites["mu"], draws.sites["z"]
    precision = PRIOR**-2 + NOISE**-2
    normal = torch.distributions.Normal
    row = normal((mu / PRIOR**2 / precision)[:, None], precision**-0.5).log_prob(z).sum(-1)
    torch.testing.assert_close(draws.log_q, normal(0.2, 0.3).log_prob(mu) + row)
    np.testing.assert_array_equal(draws.lp.shape, (5,))
