"""The Gaussian mixture against closed forms, EM and published maxima."""

import math

import numpy as np
import pytest
import torch
from pplgen.models import GaussianMixture
from scipy.optimize import linear_sum_assignment

import pplgen
from pplgen.errors import InputError
from pplgen.exact.conjugate import wishart_evidence
from pplgen.exact.em import GaussianMixtureParameters, e_step, em
from pplgen.story.isolation import seeded
from pplgen.story.pair import Pair

FAITHFUL_MAXIMUM = -1130.26396  # K = 2, full covariance


@pytest.fixture(scope="module")
def ten_seeds():
    """Ten restarts at different seeds and the default optimiser, as one program."""
    return pplgen.fit(GaussianMixture(2, 2), "faithful", restarts=10, compile="graph", progress=False)


def posterior_mean(tree, name):
    return torch.tensor(tree["posterior"][name].mean(("chain", "draw")).values, dtype=torch.float64)


@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_given_priors_hold_before_any_data(covariance):
    """Data sets from a prior in other units are those of the unit prior, moved and stretched."""
    m, s = torch.tensor([3.5, 70.0]), torch.tensor([0.4, 6.0])
    story = GaussianMixture(2, 2, covariance=covariance, prior_mean=m.tolist(), prior_scale=s.tolist())
    standard = GaussianMixture(2, 2, covariance=covariance)
    with seeded(1):
        ours = story.simulate(50)
    with seeded(1):
        theirs = standard.simulate(50)
    # single precision: a handful of roundings of numbers up to a few hundred
    torch.testing.assert_close(ours, m + s * theirs, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("columns", [[0], [0, 1]])
def test_one_component_is_conjugate_and_the_guide_starts_exact(faithful, columns):
    """With K = 1 every draw of log p - log q is the evidence of the normal-inverse-Wishart model, in closed form."""
    x = faithful.values[:, columns]
    D = x.shape[1]
    story = GaussianMixture(1, D, mean_precision=0.01).double()
    story.initialise(x)
    pair = Pair(story.model, story.guide, (x,))
    with pair.isolated():
        ratios = [-pair.elbo().loss(pair.model, pair.guide, x) for _ in range(5)]
    Psi = torch.diag(0.15**2 * x.var(dim=0, correction=0))
    evidence = wishart_evidence(x, m=x.mean(0), kappa=0.01, nu=D + 2, Psi=Psi).item()
    np.testing.assert_allclose(ratios, evidence, rtol=1e-9)


def test_initialise_takes_unset_priors_from_the_columns(faithful):
    x = faithful.values.float()
    story = GaussianMixture(3, 2, prior_mean=[1.0, 2.0])
    story.initialise(x)
    assert story.components.m.tolist() == [1.0, 2.0]
    torch.testing.assert_close(story.components.s, 0.15 * x.std(dim=0, correction=0))


def test_log_likelihood_at_the_posterior_mean_is_near_the_maximum(faithful, faithful_tree):
    parameters = GaussianMixtureParameters(*(posterior_mean(faithful_tree, n) for n in ("weights", "mu", "Sigma")))
    _, log_likelihood = e_step(faithful.values, parameters)
    # 1,000 draws move it by less than .05
    assert FAITHFUL_MAXIMUM - 1.0 < log_likelihood.item() <= FAITHFUL_MAXIMUM


def test_posterior_means_agree_with_em(faithful, faithful_tree):
    weights, mu, _ = em(faithful.values, 2).parameters
    order = mu[:, 0].argsort()
    torch.testing.assert_close(posterior_mean(faithful_tree, "weights"), weights[order], atol=0.03, rtol=0)
    difference = (posterior_mean(faithful_tree, "mu") - mu[order]).abs()
    assert (difference[:, 0] < 0.1).all()  # minutes of eruption
    assert (difference[:, 1] < 1.0).all()  # minutes of waiting


def test_ten_seeds_agree(ten_seeds):
    elbos = np.array([run.elbo for run in ten_seeds.runs])
    assert len(elbos) == 10
    assert (elbos > elbos.max() - 2.0).sum() >= 9
    assert max(run.elbo_error for run in ten_seeds.runs) < 0.2, "the ELBOs are known well enough to say so"


def test_components_keep_their_labels_across_draws(ten_seeds, faithful_fit, faithful_tree):
    """Matching each draw's components to the posterior mean is the identity, and fits agree on the order."""
    mu = faithful_tree["posterior"]["mu"].values[0]
    mean, scale = mu.mean(axis=0), mu.std(axis=(0, 1))
    for draw in mu:
        cost = (((draw[:, None] - mean) / scale) ** 2).sum(axis=-1)
        assert linear_sum_assignment(cost)[1].tolist() == [0, 1]
    for fit in (ten_seeds, faithful_fit):
        location = fit.story.components.q_location.value
        assert location[0, 0] < location[1, 0]


def test_more_components_than_the_data_hold_stay_finite(faithful, monkeypatch):
    """Ties in the data let maximum likelihood collapse; the prior must not."""
    monkeypatch.setattr("pplgen.inference.quasi_newton.TARGET_ERROR", 0.1)  # fewer draws; precision is not tested here
    fit = pplgen.fit(GaussianMixture(6, 2), "faithful", steps=500, compile="graph", progress=False)
    tree = fit.to_datatree(draws=200)
    for group in ("posterior", "sample_stats", "log_likelihood"):
        for name, values in tree[group].data_vars.items():
            assert np.isfinite(values.values).all(), (group, name)
    smallest = np.linalg.eigvalsh(tree["posterior"]["Sigma"].values[0])[..., 0].mean(axis=0)
    occupied = tree["posterior"]["weights"].values[0].mean(axis=0) > 0.03
    # a component of n exact ties would have a variance of .005 / (4 + n), the prior's scale over the degrees of freedom
    assert (smallest[occupied] > 1e-3).all()


def test_one_feature_and_a_rescaled_column(faithful):
    x = faithful.values.float()
    one = pplgen.fit(GaussianMixture(2, 1), x[:, :1], steps=30, progress=False)
    assert math.isfinite(one.elbo)
    scaled = pplgen.fit(GaussianMixture(2, 2), x * torch.tensor([1.0, 1e6]), steps=300, progress=False)
    plain = pplgen.fit(GaussianMixture(2, 2), x, steps=300, progress=False)
    # the priors follow the scale of the data, so only the volume changes; the ELBOs' own errors are about .1
    assert scaled.elbo + len(x) * math.log(1e6) == pytest.approx(plain.elbo, abs=1.0)


def test_duplicate_rows_and_a_constant_column_stay_finite():
    x = torch.tensor([[1.0, 2.0]] * 20 + [[3.0, 2.0]] * 20)
    with pytest.warns(pplgen.errors.DataWarning, match="column 'x1' is constant"):
        fit = pplgen.fit(GaussianMixture(3, 2), x, steps=300, progress=False)
    assert math.isfinite(fit.elbo)


def test_bad_data():
    story = GaussianMixture(5, 2)
    with pytest.raises(InputError, match="4 rows are too few for 5 components; give at least 5"):
        pplgen.fit(story, torch.randn(4, 2), progress=False)
    with pytest.raises(InputError, match=r"data of shape \(10, 3\).*expects \(num_rows, 2\)"):
        pplgen.fit(story, torch.randn(10, 3), progress=False)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_components": 0}, "num_components=0: expected a whole number of at least 1"),
        ({"num_features": 2.5}, "num_features=2.5: expected a whole number"),
        ({"concentration": -1.0}, "concentration=-1.0: expected a positive, finite number"),
        ({"prior_scale": [1.0, 0.0]}, "prior_scale.*positive, finite number"),
        ({"covariance": "round"}, "covariance='round': expected one of full, tied, diag, spherical"),
        ({"prior_mean": [1.0]}, "prior_mean.*one for each of 2 features"),
    ],
)
def test_bad_options(options, sentence):
    with pytest.raises(InputError, match=sentence):
        GaussianMixture(**options)
