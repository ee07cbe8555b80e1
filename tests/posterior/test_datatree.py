"""The tree that ArviZ reads, and the table."""

import warnings

import arviz_stats
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from pplgen.models import VAE

import pplgen
from pplgen.errors import DataWarning, InputError
from pplgen.posterior import datatree
from pplgen.posterior.datatree import GROUPS, summarise


def test_groups_dimensions_and_labels(faithful_tree):
    assert set(faithful_tree.children) == set(GROUPS)
    posterior = faithful_tree["posterior"]
    assert posterior["mu"].dims == ("chain", "draw", "component", "feature")
    assert posterior["Sigma"].dims == ("chain", "draw", "component", "feature", "other_feature")
    assert posterior["feature"].values.tolist() == ["eruptions", "waiting"]
    assert dict(posterior.sizes) | {"chain": 1, "draw": 1000, "component": 2} == dict(posterior.sizes)
    assert faithful_tree["log_likelihood"]["x"].dims == ("chain", "draw", "row")
    assert faithful_tree["posterior_predictive"]["x"].dims == ("chain", "draw", "row", "feature")
    assert faithful_tree["observed_data"]["x"].dims == ("row", "feature")
    assert set(faithful_tree["sample_stats"].data_vars) == {"lp", "log_q"}
    assert set(faithful_tree["prior"].data_vars) == set(posterior.data_vars)


def test_observed_and_constant_data(faithful_tree, faithful):
    observed = faithful_tree["observed_data"]["x"].values
    np.testing.assert_allclose(observed, faithful.values.numpy(), rtol=1e-6)
    np.testing.assert_allclose(faithful_tree["constant_data"]["prior_mean"], observed.mean(axis=0), rtol=1e-5)


def test_arviz_of_both_generations_reads_it(faithful_tree):
    loo = arviz_stats.loo(faithful_tree)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # ArviZ 0.23 announces 1.0 when it is imported
        az = pytest.importorskip("arviz")
    assert np.isfinite(loo.elpd)
    # eleven parameters are effectively free; LOO's own estimate of that lies within a few
    assert 6 < loo.p < 16
    if hasattr(az, "from_datatree"):
        older = az.loo(az.from_datatree(faithful_tree))
        assert older.elpd_loo == pytest.approx(loo.elpd, abs=1e-2)  # they smooth the tails a little differently


def test_netcdf_round_trip(faithful_tree, tmp_path):
    faithful_tree.to_netcdf(tmp_path / "posterior.nc", engine="h5netcdf")
    with xr.open_datatree(tmp_path / "posterior.nc", engine="h5netcdf") as again:
        for group in GROUPS:
            xr.testing.assert_equal(again[group].to_dataset(), faithful_tree[group].to_dataset())
        assert again.attrs["story"] == "GaussianMixture"


def test_summary_table(faithful_tree):
    table = summarise(faithful_tree, ["mu"])
    draws = faithful_tree["posterior"]["mu"].values[0, :, 1, 1]
    row = table.loc["mu[1, waiting]"]
    assert row.iloc[0] == pytest.approx(draws.mean(), rel=1e-5)
    assert row.iloc[1] == pytest.approx(draws.std(ddof=0), rel=1e-2)
    np.testing.assert_allclose(row.iloc[2:], np.quantile(draws, [0.05, 0.95]), atol=0.05)


def test_same_draws_from_the_same_seed(faithful_fit):
    trees = [faithful_fit.to_datatree(3, groups=["posterior"], seed=seed) for seed in (None, None, 1)]
    first, again, other = (tree["posterior"].to_dataset() for tree in trees)
    xr.testing.assert_equal(first, again)
    assert not first.equals(other)
    assert set(trees[0].children) == {"posterior"}


def test_unknown_group(faithful_fit):
    with pytest.raises(InputError, match=r"group 'posteriour'.*did you mean 'posterior'"):
        faithful_fit.to_datatree(2, groups=["posteriour"])


def test_groups_that_do_not_apply_are_left_out():
    def switch(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        s = pyro.sample("s", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu + s, 1.0), obs=y)

    fit = pplgen.fit(switch, torch.zeros(3), steps=3, progress=False)
    with pytest.warns(DataWarning, match="log_likelihood of 'y' is left out"):
        tree = fit.to_datatree(2)
    assert set(tree.children) == set(GROUPS) - {"log_likelihood", "constant_data"}
    with pytest.raises(InputError, match="the enumerated site 's' is shared by all rows"):
        fit.log_likelihood()


def test_bare_pair_with_covariates():
    def regression(x, y):
        beta = pyro.sample("beta", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
        with pyro.plate("data", len(y)):
            mean = pyro.deterministic("mean", x @ beta)
            pyro.sample("y", dist.Normal(mean, sigma), obs=y)

    x = torch.randn(30, 2)
    y = x @ torch.tensor([1.0, -1.0]) + 0.1 * torch.randn(30)
    fit = pplgen.fit(regression, (x, y), steps=50, progress=False)
    tree = fit.to_datatree(5)
    assert set(tree.children) == set(GROUPS)
    assert set(tree["posterior"].data_vars) == {"beta", "sigma", "mean"}
    assert set(tree["constant_data"].data_vars) == {"x"}
    assert tree["log_likelihood"]["y"].sizes == {"chain": 1, "draw": 5, "row": 30}
    np.testing.assert_allclose(tree["observed_data"]["y"], y)
    assert fit.readable_sites(tree) == ["beta", "sigma"]
    exact = torch.distributions.Normal(
        torch.tensor(tree["posterior"]["mean"].values[0]), torch.tensor(tree["posterior"]["sigma"].values[0])[:, None]
    ).log_prob(y)
    np.testing.assert_allclose(tree["log_likelihood"]["y"].values[0], exact, rtol=1e-4, atol=1e-4)


@pytest.fixture
def coded_fit():
    """A story whose latents are all those of single rows."""
    return pplgen.fit(VAE(8, 2, hidden=(4,)), torch.rand(40, 8), steps=3, progress=False)


@pytest.mark.parametrize(
    ("largest", "left_out", "groups"),
    [
        # 20 draws of 320 pixels
        (20 * 320 - 1, ["posterior_predictive", "prior_predictive"], {"posterior", "log_likelihood", "observed_data"}),
        # and of 80 numbers in codes
        (20 * 80 - 1, ["z", "sample_stats", "log_likelihood"], {"observed_data"}),
        (319, ["z", "prior", "observed_data"], set()),
    ],
)
def test_draws_of_single_rows_are_left_out_where_they_are_many(coded_fit, monkeypatch, largest, left_out, groups):
    whole = coded_fit.to_datatree(20)
    assert set(whole.children) == set(GROUPS) - {"constant_data"}
    monkeypatch.setattr(datatree, "MAX_SITE_SIZE", largest)
    with pytest.warns(DataWarning, match="too large for 40 rows and 20 draws; left out of the tree") as warned:
        tree = coded_fit.to_datatree(20)
    assert set(left_out) <= set(str(warned[0].message).partition(":")[0].split(", "))
    assert groups <= set(tree.children)
    assert not set(left_out) & set(tree.children)
    assert ("z" in tree["posterior"].data_vars) == ("z" not in left_out)
    named = coded_fit.to_datatree(20, groups=GROUPS)
    xr.testing.assert_equal(named["posterior"].to_dataset(), whole["posterior"].to_dataset())


def test_a_summary_without_shared_parameters(coded_fit, capsys):
    coded_fit.summary()
    printed = capsys.readouterr().out
    assert printed.startswith("VAE on array, 40 rows\nELBO ")
    assert f", {coded_fit.elbo / 40:.2f} a row" in printed


def test_a_printed_table_shows_a_symmetric_matrix_once(faithful_tree):
    sites = ["mu", "Sigma"]
    whole, (table, said) = summarise(faithful_tree, sites), datatree.printed_table(faithful_tree, sites)
    assert {*whole.index} - {*table.index} == {f"Sigma[{k}, eruptions, waiting]" for k in (0, 1)}
    np.testing.assert_array_equal(table["mean"], whole.loc[table.index, "mean"])
    assert said == ["Sigma: symmetric matrix; entries above the diagonal are not shown"]
    lopsided = faithful_tree.copy()
    values = lopsided["posterior"]["Sigma"].copy()
    values[0, 5, 0, 0, 1] *= 2  # in one draw alone
    lopsided["posterior"] = lopsided["posterior"].to_dataset().assign(Sigma=values)
    table, said = datatree.printed_table(lopsided, sites)
    assert (len(table), said) == (len(whole), [])


def test_a_deterministic_site_in_a_plate_keeps_its_shape_in_predictive_draws():
    """Non-centred schools: with effects drawn anew as an observed site they would have one axis more."""
    y, sd = torch.linspace(-2, 2, 6), torch.ones(6)

    def model(y, sd):
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        with pyro.plate("schools", 6):
            offset = pyro.sample("offset", dist.Normal(0.0, 1.0))
            theta = pyro.deterministic("theta", mu + 2.0 * offset)
            pyro.sample("y", dist.Normal(theta, sd), obs=y)

    fit = pplgen.fit(model, (y, sd), steps=200, progress=False)
    tree = fit.to_datatree(400, groups=["posterior", "posterior_predictive", "prior", "prior_predictive"])
    for group in ("posterior_predictive", "prior_predictive"):
        assert tree[group]["y"].shape == (1, 400, 6)
    prior = tree["prior"]
    torch.testing.assert_close(
        torch.as_tensor(prior["theta"].values),
        torch.as_tensor(prior["mu"].values[..., None] + 2.0 * prior["offset"].values),
    )
    # Var[y] = 25 + 4 + 1, of 400 draws: a standard deviation is off by its 1 / sqrt(800), four of these
    np.testing.assert_allclose(tree["prior_predictive"]["y"].values.std((0, 1)), 30**0.5, rtol=4 / 800**0.5)
    assert not [check.name for check in fit.diagnose() if "raised" in check.remedy]
