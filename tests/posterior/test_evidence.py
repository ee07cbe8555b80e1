"""Log evidences against conjugate closed forms and sums over every assignment of rows to components."""

import itertools
import math
import sys

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pplgen.models import PPCA, GaussianMixture
from scipy import stats
from scipy.special import betaln

import pplgen
from pplgen.cli.main import main
from pplgen.errors import InputError
from pplgen.exact.conjugate import dirichlet_evidence, wishart_evidence
from pplgen.posterior.bridge_sampling import bridge_sampling

FEATURES = torch.randn(30, 2, generator=torch.Generator().manual_seed(0)) @ torch.tensor([[1.0, 0.9], [0.0, 0.5]])
RESPONSES = FEATURES @ torch.tensor([1.0, -1.0]) + torch.randn(30, generator=torch.Generator().manual_seed(1))
WINS = torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0])
COUNTS = torch.tensor([0, 0, 1, 1, 1, 2, 0, 1])
SCHOOLS = torch.tensor([0.3, -0.5, 1.2, 2.0, 0.8])
PARTS = torch.tensor([[-2.1], [-1.7], [-2.6], [3.0], [3.4], [2.5], [2.9]], dtype=torch.float64)


def regression(x, y):
    beta = pyro.sample("beta", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(x @ beta, 1.0), obs=y)


def coin(y):
    p = pyro.sample("p", dist.Beta(2.0, 3.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Bernoulli(p), obs=y)


def categories(y):
    p = pyro.sample("p", dist.Dirichlet(torch.tensor([1.0, 1.0, 1.0])))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Categorical(p), obs=y)


def schools(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, 1.5))
        pyro.sample("y", dist.Normal(theta, 1.0), obs=y)


def separate(y):
    with pyro.plate("data", len(y)):
        theta = pyro.sample("theta", dist.Normal(0.0, 2.0))
        pyro.sample("y", dist.Normal(theta, 1.0), obs=y)


def learned(y):
    scale = pyro.param("scale", torch.ones(()))
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1 + scale**2), obs=y)


def improper(y):
    mu = pyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def gaussian(y, covariance):
    return stats.multivariate_normal(np.zeros(len(y)), covariance).logpdf(y)


SHARED = 4.0 * np.ones((5, 5)) + 3.25 * np.eye(5)
MODELS = {
    "regression": (
        regression,
        (FEATURES, RESPONSES),
        gaussian(RESPONSES.numpy(), np.eye(30) + 9 * FEATURES.double().numpy() @ FEATURES.double().numpy().T),
    ),
    "beta-binomial": (coin, (WINS,), betaln(9, 6) - betaln(2, 3)),
    "Dirichlet-multinomial": (categories, (COUNTS,), float(dirichlet_evidence(torch.tensor([3.0, 4.0, 1.0]).double()))),
    "latents of rows": (schools, (SCHOOLS,), gaussian(SCHOOLS.numpy(), SHARED)),
}


@pytest.fixture(scope="module", params=MODELS)
def conjugate(request):
    model, data, exact = MODELS[request.param]
    # mean-field weights of the regression have a heavy tail, of which no error is known
    guide = None if model is schools else "full-rank"
    return pplgen.fit(model, data, guide, progress=False), exact


@pytest.mark.parametrize("method", ["importance", "annealed"])
def test_conjugate_evidences(conjugate, method):
    fit, exact = conjugate
    found = fit.log_evidence(method)
    # four standard errors, and the rounding of densities in float32
    assert abs(found.value - exact) < 4 * found.standard_error + 1e-4
    assert found.standard_error < 0.15
    if method == "annealed":
        assert found.reliable, found


@pytest.mark.parametrize("name", ["regression", "latents of rows"])
def test_a_bridge_between_chains_and_a_normal_distribution(name):
    model, data, exact = MODELS[name]
    chains = pplgen.fit(model, data, method="nuts", steps=150, warm_up=100, restarts=2, progress=False)
    found = chains.log_evidence()
    assert found.method == "bridge"
    # the posterior is normal, as is the proposal: errors are those of its moments, from 150 draws
    assert found.standard_error < 0.1
    assert abs(found.value - exact) < 4 * found.standard_error + 1e-4
    annealed = chains.log_evidence("annealed")
    assert abs(annealed.value - exact) < 4 * annealed.standard_error + 1e-4
    with pytest.raises(InputError, match="draws of a sampler have no guide density; expected method='bridge'"):
        chains.log_evidence("importance")


def test_a_fit_is_sampled_for_its_bridge():
    model, data, exact = MODELS["beta-binomial"]
    found = pplgen.fit(model, data, progress=False).log_evidence("bridge", draws=400)
    assert abs(found.value - exact) < 4 * found.standard_error + 1e-4
    assert found.num_draws == 200
    assert math.isnan(found.pareto_k)


def test_the_bridge_and_its_error():
    """p = 3 Normal(.5, .8^2) and q standard normal: log 3, and errors that are the spread of replicates."""
    generator, found = torch.Generator().manual_seed(0), []
    for _ in range(200):
        first = 0.5 + 0.8 * torch.randn(400, generator=generator, dtype=torch.float64)
        second = torch.randn(400, generator=generator, dtype=torch.float64)
        ratios = [math.log(3) - math.log(0.8) - ((u - 0.5) / 0.8) ** 2 / 2 + u**2 / 2 for u in (first, second)]
        found.append(bridge_sampling(*ratios, num_chains=4))
    values, errors = np.array(found).T
    assert abs(values.mean() - math.log(3)) < 4 * values.std() / math.sqrt(200)
    # the standard deviation of 200 replicates has a relative error of 1 / sqrt(400), .05
    assert errors.mean() == pytest.approx(values.std(), rel=0.2)


def enumerated(x, K, m, s):
    """Sum the evidence of the rows of each component over every assignment of rows, in nats."""
    terms = []
    for assignment in itertools.product(range(K), repeat=len(x)):
        z = torch.tensor(assignment)
        term = dirichlet_evidence(torch.bincount(z, minlength=K).double())
        for k in set(assignment):
            term = term + wishart_evidence(x[z == k], m=m, kappa=0.01, nu=3, Psi=torch.diag((s / K) ** 2))
        terms.append(term)
    return float(torch.stack(terms).logsumexp(0))


@pytest.fixture(scope="module")
def mixture():
    return pplgen.fit(GaussianMixture(2, 1), PARTS, progress=False)


def test_a_mixture_is_integrated_over_all_orders_of_its_components(mixture, capsys):
    m, s = (mixture.story.constants[name] for name in ("prior_mean", "prior_scale"))
    exact = enumerated(PARTS, 2, m, s)
    found = mixture.log_evidence("annealed")
    # four standard errors; without the two orders the estimate would be log 2 below
    assert found.standard_error < 0.15
    assert abs(found.value - exact) < 4 * found.standard_error
    # the guide is near the posterior of two groups far apart; densities are rounded in sums of float64
    weighted = mixture.log_evidence("importance")
    assert abs(weighted.value - exact) < 4 * weighted.standard_error + 1e-3
    assert weighted.reliable
    note = "prior_mean and prior_scale of the prior were taken from the data, on which this"
    assert f"{note} evidence depends" in str(found)
    assert str(found).startswith(f"log evidence {found.value:.2f} +- {found.standard_error:.2g} nats, by annealed")
    mixture.summary()
    assert f"{note} ELBO depends" in " ".join(capsys.readouterr().out.split())


def test_a_guide_that_misses_most_of_the_posterior_is_unreliable():
    """Nine rows of which one component may have all, .6 of the mass: a guide of two full ones does not cover it."""
    x = torch.tensor([1.5, -0.3, -2.2, 0.6, 4.9, 4.6, 6.4, 6.8, 5.3], dtype=torch.float64)[:, None]
    fit = pplgen.fit(GaussianMixture(2, 1), x, progress=False)
    exact = enumerated(x, 2, *(fit.story.constants[name] for name in ("prior_mean", "prior_scale")))
    weighted = fit.log_evidence("importance")
    assert weighted.value < exact - 0.5
    assert not weighted.reliable
    assert "unreliable: Pareto k above 0.70" in str(weighted)
    annealed = fit.log_evidence("annealed")
    assert abs(annealed.value - exact) < 4 * annealed.standard_error


def test_given_priors_need_no_note():
    fit = pplgen.fit(GaussianMixture(1, 1, prior_mean=0.0, prior_scale=1.0), PARTS, progress=False)
    found = fit.log_evidence()
    assert found.note == ""
    exact = float(
        wishart_evidence(PARTS, m=torch.zeros(1).double(), kappa=0.01, nu=3, Psi=torch.eye(1, dtype=torch.float64))
    )
    assert abs(found.value - exact) < 4 * found.standard_error + 1e-6
    assert found.reliable
    assert "unreliable" not in str(found)


def test_latents_of_rows_under_a_joint_guide():
    model, data, exact = MODELS["latents of rows"]
    found = pplgen.fit(model, data, "full-rank", progress=False).log_evidence()
    assert abs(found.value - exact) < 4 * found.standard_error + 1e-4
    assert found.standard_error < 0.01  # the posterior is normal, as is the guide


def test_on_the_command_line(mixture, tmp_path, monkeypatch, capsys):
    mixture.save(tmp_path / "run")
    np.save(tmp_path / "parts.npy", PARTS.numpy())
    arguments = ["pplgen", "evidence", str(tmp_path / "run"), str(tmp_path / "parts.npy"), "--seed", "3"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert capsys.readouterr().out.strip() == str(mixture.log_evidence(seed=3))


def test_rows_that_share_no_latent():
    fit = pplgen.fit(separate, (SCHOOLS,), progress=False)
    found = fit.log_evidence(draws=2000)
    exact = gaussian(SCHOOLS.numpy(), 5 * np.eye(5))
    assert abs(found.value - exact) < 4 * found.standard_error + 1e-4
    assert found.standard_error < 0.02


def test_what_has_no_evidence():
    ppca = pplgen.fit(PPCA(2, 1), FEATURES, progress=False)
    with pytest.raises(InputError, match="is a point estimate, over which the evidence does not integrate"):
        ppca.log_evidence()
    with pytest.raises(InputError, match="'scale' is a point estimate"):
        pplgen.fit(learned, (SCHOOLS,), steps=20, progress=False).log_evidence()
    with pytest.raises(InputError, match="the prior of 'mu' is improper"):
        pplgen.fit(improper, (SCHOOLS,), progress=False).log_evidence()
    weighted = pplgen.fit(regression, (FEATURES, RESPONSES), weights=torch.ones(30), steps=20, progress=False)
    with pytest.raises(InputError, match="weighted rows, which have no evidence"):
        weighted.log_evidence()
    with pytest.raises(InputError, match="method='chib': expected one of auto, importance, bridge, annealed"):
        weighted.log_evidence("chib")
    few = pplgen.fit(schools, (SCHOOLS,), method="nuts", steps=10, warm_up=10, restarts=1, progress=False)
    with pytest.raises(InputError, match="5 draws are too few for the covariance of 6 latents; expected at least 18"):
        few.log_evidence()
