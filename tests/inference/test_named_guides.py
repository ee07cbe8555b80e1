"""Guides by name: the posterior that they find, of a story and of a bare model, and what is refused."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pplgen.models import (
    PPCA,
    VAE,
    DirichletProcessMixture,
    GaussianHMM,
    GaussianMixture,
    LinearGaussianSSM,
    MarkovSwitchingAR,
    MixedMixture,
    SwitchingLDS,
)
from pyro import poutine

import pplgen
from pplgen.cli.main import main
from pplgen.errors import InputError
from pplgen.report.reproduction import python_lines
from pplgen.story.pair import Pair

X = torch.randn(40, 2, generator=torch.Generator().manual_seed(0)) @ torch.tensor([[1.0, 0.9], [0.0, 0.5]])
Y = X @ torch.tensor([1.0, -1.0])
EXACT = torch.linalg.inv(X.double().T @ X.double() + torch.eye(2) / 9)
ROWS = torch.randn(40, 2, generator=torch.Generator().manual_seed(1)) + 8.0 * (torch.arange(40) % 2)[:, None]
SERIES = torch.randn(2, 30, 1, generator=torch.Generator().manual_seed(2)).cumsum(1) / 3
QUICK = {"steps": 3, "compile": "off", "progress": False}


def regression(x, y):
    beta = pyro.sample("beta", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(x @ beta, 1.0), obs=y)


def correlation(covariance):
    return covariance[0, 1] / math.sqrt(covariance[0, 0] * covariance[1, 1])


@pytest.mark.parametrize("name", ["full-rank", "low-rank"])
def test_a_normal_guide_with_correlations_is_the_posterior_of_a_linear_regression(name):
    fit = pplgen.fit(regression, (X, Y), name, progress=False)
    found = fit.covariance("guide").to_numpy()
    # the ELBO's optimum is exact whatever the draws; found to a gradient norm of .001 sd, and moments over 4,096 draws
    # of a quasi-random sequence
    np.testing.assert_allclose(np.sqrt(np.diag(found)), EXACT.diagonal().sqrt(), rtol=0.02)
    assert correlation(found) == pytest.approx(float(correlation(EXACT)), abs=0.02)
    assert abs(correlation(found)) > 0.8


def test_a_mean_field_guide_is_not():
    fit = pplgen.fit(regression, (X, Y), "mean-field", progress=False)
    found = fit.covariance("guide").to_numpy()
    assert np.sqrt(found[0, 0]) < 0.7 * math.sqrt(EXACT[0, 0])
    assert abs(correlation(found)) < 0.05  # zero, over 4,096 draws
    default = pplgen.fit(regression, (X, Y), progress=False)
    assert default.elbo == fit.elbo


def test_a_flow_bends_where_a_normal_guide_cannot():
    def banana(y):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("b", dist.Normal(a.square(), 0.3))
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    y, evidence = torch.tensor(0.0), -0.5 * math.log(2 * math.pi)  # the latents do not depend on y
    options = {"steps": 300, "learning_rate": 0.05, "num_particles": 32, "compile": "graph", "progress": False}
    flow = pplgen.fit(banana, y, "flow", **options)
    # of normal guides the best has independent a ~ Normal(0, s) and b ~ Normal(s^2, .3), with s^2 + 4 s^4 / .09 = 1
    variance = (math.sqrt(1 + 16 / 0.09) - 1) / (8 / 0.09)
    normal = evidence + 0.5 - variance / 2 - variance**2 / 0.09 + 0.5 * math.log(variance)
    error = 4 * flow.best.elbo_error  # Monte Carlo error of the bound
    assert normal + error < flow.elbo < evidence + error


def test_a_story_s_full_rank_guide_is_as_good_as_its_own():
    """Two groups of 20 rows 8 sd apart: the own guide's conjugate factors are the posterior up to the memberships."""
    options = {"compile": "graph", "progress": False}
    own, full = (pplgen.fit(GaussianMixture(2, 1), ROWS[:, :1], guide, **options) for guide in (None, "full-rank"))
    error = math.hypot(own.best.elbo_error, full.best.elbo_error)
    # the posterior given memberships is no normal distribution, by some hundredths of a nat for each of 5 scalars
    assert full.elbo == pytest.approx(own.elbo, abs=0.2 + 4 * error)
    assert full.elbo != own.elbo
    assert full.best.optimum is not None


def test_correlated_parameters_are_not_worse():
    series = torch.randn(1, 20, 1, generator=torch.Generator().manual_seed(3)).cumsum(1)
    story = LinearGaussianSSM.local_level(known={"m0": 0.0, "s0": 1.0})  # q and r are correlated
    own, full = (pplgen.fit(story, series, guide, progress=False) for guide in (None, "full-rank"))
    # the same family: each optimum has a Monte Carlo error, and the bounds are averages over draws
    error = math.hypot(own.best.elbo_error, full.best.elbo_error)
    assert full.elbo > own.elbo - 4 * error - 0.02
    forecast = full.forecast(horizon=3, draws=20)
    assert np.isfinite(forecast["y_mean"]).all()
    assert full.smooth(draws=20)["state_mean"].shape == (1, 20, 1)


STORIES = {
    "dirichlet-process": (DirichletProcessMixture(num_features=2), ROWS),
    "gaussian-mixture": (GaussianMixture(2, 2), ROWS),
    "one-component": (GaussianMixture(1, 2, covariance="spherical"), ROWS),
    "gaussian-hmm": (GaussianHMM(num_features=1), SERIES),
    "linear-gaussian": (LinearGaussianSSM(num_features=1), SERIES),
    "switching-autoregression": (MarkovSwitchingAR(), SERIES),
    "mixed-mixture": (MixedMixture(num_features=2), ROWS),
    "switching-lds": (SwitchingLDS(num_features=1, num_states=1), SERIES),
}


@pytest.mark.parametrize("name", STORIES)
def test_every_story_with_shared_latents_takes_a_named_guide(name):
    story, rows = STORIES[name]
    fit = pplgen.fit(story, rows, "full-rank", **QUICK)
    assert math.isfinite(fit.elbo)
    own = Pair.of_story(story, rows, initialise=False)
    assert set(fit.pair.structure.latent) == set(own.structure.latent)
    with own.isolated(), torch.no_grad():
        sites = poutine.trace(own.model).get_trace(*own.data).nodes
    tree = fit.to_datatree(2, groups=["posterior"])["posterior"]
    for latent in own.structure.latent:
        assert tree[latent].shape == (1, 2, *sites[latent]["value"].shape)
        assert np.isfinite(tree[latent]).all()
    # parameters of the guide that is replaced are not trained
    with fit.pair.isolated():
        names = list(fit.pair.snapshot())
    assert not any(each.startswith(("theta.", "q_", "components.q_")) for each in names)


@pytest.mark.parametrize("guide", ["full-rank", "flow"])
def test_a_saved_fit_of_a_story_is_loaded(tmp_path, guide):
    fit = pplgen.fit(GaussianMixture(2, 2), ROWS, guide, restarts=2, **QUICK)
    fit.save(tmp_path / "run")
    again = pplgen.load(tmp_path / "run", ROWS)
    assert again.facts["guide"] == fit.facts["guide"] == guide
    for one, other in zip(fit._tensors.values(), again._tensors.values(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    trees = [each.to_datatree(5) for each in (fit, again)]
    np.testing.assert_array_equal(*(tree["posterior"]["mu"] for tree in trees))


@pytest.mark.parametrize("guide", ["mean-field", "low-rank"])
def test_a_saved_fit_of_a_bare_model_is_loaded_without_its_guide(tmp_path, guide):
    fit = pplgen.fit(regression, (X, Y), guide, **QUICK)
    fit.save(tmp_path / "run")
    again = pplgen.load(tmp_path / "run", (X, Y), model=regression)
    trees = [each.to_datatree(5)["posterior"] for each in (fit, again)]
    np.testing.assert_array_equal(*(tree["beta"] for tree in trees))


def test_the_command_line_takes_a_name(tmp_path, monkeypatch, capsys):
    np.save(tmp_path / "rows.npy", ROWS.numpy())
    command = ["pplgen", "fit", "gaussian-mixture", str(tmp_path / "rows.npy"), "--guide", "low-rank", "--steps", "3"]
    monkeypatch.setattr("sys.argv", [*command, "--compile", "off", "--draws", "5", "--out", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0, capsys.readouterr().err
    fit = pplgen.load(tmp_path / "run")
    assert fit.facts["guide"] == "low-rank"
    assert "--guide low-rank" in fit.facts["command"]


def test_the_code_that_reproduces_it_names_it():
    story = pplgen.fit(GaussianMixture(2, 2), ROWS, "full-rank", **QUICK)
    assert "pplgen.fit(story, x, 'full-rank', seed=0" in python_lines(story, story.facts)
    bare = pplgen.fit(regression, (X, Y), "full-rank", **QUICK)
    assert "pplgen.fit(model, data, 'full-rank', seed=0" in python_lines(bare, bare.facts)


def test_what_has_no_named_guide_is_refused():
    choices = "expected one of mean-field, low-rank, full-rank, flow"
    with pytest.raises(InputError, match=f"guide='diagonal': {choices}"):
        pplgen.fit(regression, (X, Y), "diagonal", **QUICK)
    with pytest.raises(InputError, match=f"guide='diagonal': {choices}"):
        pplgen.fit(GaussianMixture(2, 2), ROWS, "diagonal", **QUICK)
    for story in (VAE(2, 1, hidden=(4,)), PPCA(2, 1)):
        with pytest.raises(InputError, match=f"latents that all rows share.*{type(story).__name__} has none"):
            pplgen.fit(story, ROWS.sigmoid(), "full-rank", **QUICK)
    with pytest.raises(InputError, match="a guide by name: not supported by method='nuts'"):
        pplgen.fit(regression, (X, Y), "full-rank", method="nuts", progress=False)
    with pytest.raises(InputError, match="expected at least two scalar latents"):
        pplgen.fit(lambda y: pyro.sample("m", dist.Normal(y, 1.0)), torch.zeros(()), "flow", **QUICK)

    def schools(y):
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(pyro.sample("m", dist.Normal(0.0, 1.0)), 1.0), obs=y)

    with pytest.raises(InputError, match="weights: guide='full-rank' draws 'm' of all rows jointly"):
        pplgen.fit(schools, Y, "full-rank", weights=torch.ones(len(Y)), **QUICK)
