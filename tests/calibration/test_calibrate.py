"""Simulation-based calibration: what passes, what fails, and what is refused."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib.figure import Figure
from pplgen.models import PPCA, VAE, GaussianMixture
from pyro.infer import config_enumerate
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

import pplgen
from pplgen.calibration.fixed_priors import fix_priors
from pplgen.calibration.result import Calibration
from pplgen.checks.registry import Verdict
from pplgen.errors import InputError

X = torch.randn(30, 2, generator=torch.Generator().manual_seed(1))
X[:, 1] = 0.95 * X[:, 0] + 0.3 * X[:, 1]
DATA = (X, torch.zeros(30))


def regression_of(noise):
    def model(x, y):
        beta = pyro.sample("beta", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ beta, noise), obs=y)

    return model


model, wider = regression_of(1.0), regression_of(2.0)


def prior(x, y):
    pyro.sample("beta", dist.Normal(torch.zeros(2), 1.0).to_event(1))


def quick(subject, data=None, guide=None, **options):
    return pplgen.calibrate(
        subject, data, guide, **{"num_datasets": 60, "steps": 600, "learning_rate": 0.1, "progress": False, **options}
    )


def verdicts(calibration):
    return dict(zip(calibration.quantities, (check.verdict for check in calibration.checks()), strict=True))


@pytest.fixture(scope="module")
def conjugate():
    return quick(model, DATA, AutoMultivariateNormal(model), num_datasets=100, steps=1500)


def test_conjugate_regression_with_its_own_posterior_passes(conjugate):
    assert conjugate.quantities == ("beta[0]", "beta[1]", "log_likelihood")
    assert conjugate.passed
    # what is ranked are the fits' posteriors, Normal((X'X + I)^-1 X'y, (X'X + I)^-1)
    expected = torch.linalg.inv(X.T @ X + torch.eye(2)).diagonal().sqrt()
    # a deviation of 199 draws has a relative standard error of .05, the mean over 100 fits .005; .05 is left to SVI
    np.testing.assert_allclose(conjugate.deviations[:, :2].mean(0), expected, rtol=0.05)
    # four standard errors of a share of 100
    for level, shares in conjugate.coverage.items():
        assert np.all(abs(shares - level) < 4 * (level * (1 - level) / 100) ** 0.5)
    assert abs(conjugate.z_scores[:, :2].std(0) - 1).max() < 4 * 200**-0.5
    # .8 of 1 and more of the variance 1 of the prior is gone
    contraction = 1 - expected.square().numpy()
    np.testing.assert_allclose(conjugate.contraction[:, :2].mean(0), contraction, atol=0.1)


def test_mean_field_on_correlated_features_fails():
    found = quick(model, DATA, AutoNormal(model))
    assert not found.passed
    failing = [check for check in found.checks() if check.verdict is Verdict.FAIL]
    assert any("too narrow" in check.remedy for check in failing)
    assert found.coverage.loc["beta[0]", 0.9] < 0.75


def ranked(ranks, num_unconverged):
    nothing = np.zeros((len(ranks), 1))
    return Calibration("toy", ("mu",), ranks[:, None], 99, nothing, nothing, nothing, 0, num_unconverged, "a path")


def test_fits_that_have_not_converged_need_more_steps_before_another_guide(capsys):
    at_both_ends = np.repeat([0, 1, 98, 99], 15)
    before, after = ranked(at_both_ends, 60), ranked(at_both_ends, 6)
    told = "in 60 of 60 fits the steps ran out before the ELBO stopped improving"
    assert before.checks()[0].remedy.startswith(f"use more steps first, as {told}; draws are too narrow")
    assert "AutoMultivariateNormal" not in before.checks()[0].remedy
    assert "steps" not in after.checks()[0].remedy
    assert "AutoMultivariateNormal" in after.checks()[0].remedy
    before.summary()
    assert told in " ".join(capsys.readouterr().out.split())


def test_ranks_of_no_plain_shape_say_what_to_do_next():
    """At three places each rank is as far from the middle, and as spread, as a uniform one."""
    off = round(100 * (1 / 8) ** 0.5)
    found = ranked(np.repeat([50 - off, 50, 50 + off], 20), 0).checks()[0]
    assert found.verdict is Verdict.FAIL
    assert "another seed and more data sets" in found.remedy


def test_a_guide_that_returns_the_prior_fails_on_the_log_likelihood_alone():
    found = quick(model, DATA, prior)
    assert verdicts(found) == {"beta[0]": "pass", "beta[1]": "pass", "log_likelihood": "fail"}
    assert found.path == "a guide without parameters"


def test_a_bug_in_the_likelihood_is_caught():
    found = quick(wider, DATA, AutoMultivariateNormal(wider), simulator=model)
    assert verdicts(found)["log_likelihood"] == "fail"


def test_the_same_seed_gives_the_same_ranks(conjugate):
    first, again = (quick(model, DATA, AutoMultivariateNormal(model), num_datasets=10, steps=100) for _ in range(2))
    np.testing.assert_array_equal(first.ranks, again.ranks)
    assert conjugate.ranks.min() >= 0
    assert conjugate.ranks.max() <= conjugate.num_draws


def test_table_picture_and_file(conjugate, tmp_path, capsys):
    conjugate.summary()
    printed = capsys.readouterr().out
    assert "log_likelihood"[:8] in printed
    assert "100 data sets, 199 draws each" in printed
    assert isinstance(conjugate.plot(), Figure)
    dataset = conjugate.to_dataset()
    dataset.to_netcdf(tmp_path / "ranks.nc", engine="h5netcdf")
    assert dict(dataset.sizes) == {"dataset": 100, "quantity": 3}


def test_mixture_with_matched_components_passes():
    story = GaussianMixture(2, 2, covariance="spherical")
    found = quick(story, num_rows=100, steps=600, learning_rate=0.05)
    assert {"weights[0]", "mu[0, x0]", "sigma[1]", "log_likelihood"} <= set(found.quantities)
    assert not any(name.startswith("relative") for name in found.quantities), "auxiliary sites are not ranked"
    assert found.passed


def test_components_of_a_bare_mixture_are_named_first():
    def mixture(y):
        mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 3.0).to_event(1))
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Categorical(torch.ones(2)))
            pyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)

    mixture = config_enumerate(mixture)
    with pytest.raises(InputError, match="'z' is enumerated and its values may be exchangeable"):
        quick(mixture, torch.zeros(20))
    with pytest.raises(InputError, match="no latent 'mu' with an axis 1"):
        quick(mixture, torch.zeros(20), exchangeable={"mu": 1})
    found = quick(mixture, torch.zeros(20), exchangeable={"mu": 0}, num_datasets=10, steps=100)
    assert found.quantities == ("mu[0]", "mu[1]", "log_likelihood")


def test_codes_of_a_trained_story_are_ranked_without_refitting(wine):
    fit = pplgen.fit(PPCA(13, 2), wine, steps=500, progress=False)
    found = pplgen.calibrate(fit, num_datasets=300)
    assert "log_likelihood" in found.quantities
    # the guide is the posterior itself
    assert found.passed
    with pytest.raises(InputError, match="leave out data, guide and simulator"):
        pplgen.calibrate(fit, wine)


def test_what_has_no_prior_is_refused():
    with pytest.raises(InputError, match="learnable parameters"):
        quick(VAE(4, 1), num_rows=20)
    with pytest.raises(InputError, match="expected one of the arguments as its value"):
        quick(lambda x: pyro.sample("y", dist.Normal(pyro.sample("a", dist.Normal(0.0, 1.0)), 1.0), obs=x + 1), X[0, 0])


def test_priors_that_are_left_to_the_data_are_fixed_first(faithful):
    story = fix_priors(GaussianMixture(2, 2), faithful)
    np.testing.assert_allclose(story.config["prior_mean"], faithful.values.mean(0), rtol=1e-6)
    assert fix_priors(GaussianMixture(2, 2)).config["prior_scale"] == [1.0, 1.0]
