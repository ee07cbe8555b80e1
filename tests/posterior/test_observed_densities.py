"""Log densities of observed sites in the tree: several sites, nested and crossed plates, enumerated latents."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import pplgen

X = torch.randn(8, 5, generator=torch.Generator().manual_seed(0)) + torch.arange(8.0)[:, None]
A, B = X[:, 0], X[0]


def log_normal(x, mean):
    return -0.5 * (x - mean) ** 2 - 0.5 * np.log(2 * np.pi)


def tree_of(model, data, **options):
    fit = pplgen.fit(model, data, progress=False, **options)
    return fit, fit.to_datatree(20)


def test_two_sites_in_different_plates_have_a_variable_each():
    def model(a, b):
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        with pyro.plate("data", 8):
            pyro.sample("a", dist.Normal(mu, 1.0), obs=a)
        with pyro.plate("others", 5):
            pyro.sample("b", dist.Normal(mu, 1.0), obs=b)

    _, tree = tree_of(model, (A, B))
    group, mu = tree["log_likelihood"], tree["posterior"]["mu"].values[0][:, None]
    assert group["a"].dims == ("chain", "draw", "row")
    assert group["b"].dims == ("chain", "draw", "others")
    np.testing.assert_allclose(group["a"].values[0], log_normal(A.numpy(), mu), rtol=1e-4)
    np.testing.assert_allclose(group["b"].values[0], log_normal(B.numpy(), mu), rtol=1e-4)


@pytest.mark.parametrize("crossed", [False, True])
def test_nested_and_crossed_plates_are_named(crossed, tmp_path):
    def nested(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        with pyro.plate("groups", 8, dim=-2):
            level = pyro.sample("level", dist.Normal(mu, 2.0))
            with pyro.plate("visits", 5, dim=-1):
                pyro.sample("x", dist.Normal(level, 1.0), obs=x)

    def both(x):
        people, items = pyro.plate("groups", 8, dim=-2), pyro.plate("visits", 5, dim=-1)
        with people:
            level = pyro.sample("level", dist.Normal(3.0, 2.0))
        with items:
            offset = pyro.sample("offset", dist.Normal(0.0, 1.0))
        with people, items:
            pyro.sample("x", dist.Normal(level + offset, 1.0), obs=x)

    fit, tree = tree_of(both if crossed else nested, X)
    density, posterior = tree["log_likelihood"]["x"], tree["posterior"]
    # the plate of the data's length is that of rows
    assert density.dims == ("chain", "draw", "row", "visits")
    mean = posterior["level"].values[0].reshape(20, 8, 1)
    if crossed:
        mean = mean + posterior["offset"].values[0].reshape(20, 1, 5)
    np.testing.assert_allclose(density.values[0], log_normal(X.numpy(), mean), rtol=1e-4)
    assert fit.report(tmp_path, tree=tree).exists()


@pytest.mark.parametrize("inner", [False, True], ids=["of the group", "of the entry"])
def test_discrete_latents_are_summed_out_of_each_entry_or_group(inner):
    def model(x):
        mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 5.0).to_event(1))
        with pyro.plate("groups", 8, dim=-2):
            if not inner:
                z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])), infer={"enumerate": "parallel"})
            with pyro.plate("visits", 5, dim=-1):
                if inner:
                    z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])), infer={"enumerate": "parallel"})
                pyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)

    _, tree = tree_of(model, X)
    density, mu = tree["log_likelihood"]["x"], tree["posterior"]["mu"].values[0]
    each = log_normal(X.numpy(), mu[:, :, None, None])  # draws, values, groups, visits
    weights = np.log([0.3, 0.7])[None, :, None]
    expected = np.logaddexp.reduce(weights[..., None] + each if inner else weights + each.sum(-1), axis=1)
    assert density.dims == ("chain", "draw", "row", "visits")[: 4 if inner else 3]
    np.testing.assert_allclose(density.values[0], expected, rtol=1e-4)


def test_a_slash_in_a_name_is_a_dot_in_trees_and_tables(tmp_path, capsys):
    def model(a):
        mu = pyro.sample("level/mu", dist.Normal(0.0, 5.0))
        with pyro.plate("data", 8):
            pyro.sample("level/a", dist.Normal(mu, 1.0), obs=a)

    fit, tree = tree_of(model, A)
    assert list(tree["posterior"].data_vars) == ["level.mu"]
    assert tree["log_likelihood"]["level.a"].dims == ("chain", "draw", "row")
    fit.summary()
    assert "level.mu" in capsys.readouterr().out
    assert list(fit.covariance().columns) == ["level.mu"]
    assert fit.report(tmp_path, tree=tree).exists()


def test_sites_with_the_names_of_dimensions_keep_their_draws():
    def model(a):
        mu = pyro.sample("draw", dist.Normal(0.0, 5.0)) + pyro.sample("row", dist.Normal(0.0, 5.0))
        with pyro.plate("data", 8):
            pyro.sample("chain", dist.Normal(mu, 1.0), obs=a)

    _, tree = tree_of(model, A)
    assert list(tree["posterior"].data_vars) == ["draw_", "row_"]
    assert tree["log_likelihood"]["chain_"].dims == ("chain", "draw", "row")


def test_many_sites_are_scored_in_one_evaluation_of_a_draw():
    calls = []

    def model(y):
        calls.append(1)
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        for t in range(40):
            pyro.sample(f"y_{t}", dist.Normal(mu, 1.0), obs=y[t % 8])

    fit = pplgen.fit(model, A, steps=3, progress=False)
    calls.clear()
    tree = fit.to_datatree(2, groups=["log_likelihood"])
    assert len(tree["log_likelihood"].data_vars) == 40
    assert len(calls) < 40
