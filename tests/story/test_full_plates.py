"""Plates that subsample their rows in training hold all of them in trees, checks and log densities."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import nn

import pplgen

Y = torch.randn(200, generator=torch.Generator().manual_seed(0)) + 3


def model(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(y), subsample_size=50) as rows:
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y[rows])


class Module(nn.Module):
    def forward(self, y):
        model(y)


@pytest.mark.parametrize("subsampling", [model, Module()], ids=["function", "module"])
def test_what_is_told_of_a_fit_is_of_all_rows(subsampling, tmp_path):
    fit = pplgen.fit(subsampling, Y, steps=1500, compile="graph", progress=False)
    tree = fit.to_datatree(200)
    np.testing.assert_array_equal(tree["observed_data"]["y"], Y.numpy())
    assert tree["posterior_predictive"]["y"].sizes == {"chain": 1, "draw": 200, "row": 200}
    mu = tree["posterior"]["mu"].values[0][:, None]
    expected = -0.5 * (Y.numpy() - mu) ** 2 - 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(tree["log_likelihood"]["y"].values[0], expected, rtol=1e-4)
    assert fit.log_likelihood(draws=50).shape == (200,)
    checks = fit.diagnose()
    assert checks["k-hat of all latents"].value < 1  # it was infinite
    fit.save(tmp_path / "run")
    again = pplgen.load(tmp_path / "run", Y, model=subsampling)
    np.testing.assert_array_equal(again.to_datatree(200)["log_likelihood"]["y"], tree["log_likelihood"]["y"])


def test_latents_of_rows_come_with_all_rows():
    """Latents in the plate, with a guide that subsamples with the model."""

    def plates(y):
        return pyro.plate("data", len(y), subsample_size=50, dim=-1)

    def local(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with plates(y) as rows:
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            pyro.sample("y", dist.Normal(z, 0.5), obs=y[rows])

    fit = pplgen.fit(local, Y, AutoNormal(local, create_plates=plates), steps=200, progress=False)
    tree = fit.to_datatree(20)
    assert tree["posterior"]["z"].shape == (1, 20, 200)
    np.testing.assert_array_equal(tree["observed_data"]["y"], Y.numpy())
