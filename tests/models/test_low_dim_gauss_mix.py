"""A user's own pair against published reference draws: posteriordb's low_dim_gauss_mix with its exact priors."""

import json
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from arviz_stats.base import array_stats
from pyro.infer.autoguide import AutoMultivariateNormal
from pyro.infer.autoguide.initialization import init_to_value

import pplgen

DATA = Path(__file__).parents[3] / "shared" / "data" / "posteriordb" / "low_dim_gauss_mix.json"
REFERENCE = {  # posterior mean and standard deviation of posteriordb's reference draws
    "mu": ([-2.73351, 2.86983], [0.0420, 0.0546]),
    "sigma": ([1.02807, 1.02382], [0.0314, 0.0405]),
    "theta": ([0.62155], [0.0155]),
}

pytestmark = pytest.mark.skipif(not DATA.exists(), reason=f"{DATA} is not there")


def model(y):
    """Two normal components: mu ~ N(0, 2), sigma ~ half-N(0, 2), theta ~ Beta(5, 5).

    The reference's order mu_1 < mu_2 picks one of two equal modes, a hundred deviations apart: the guide starts there.
    """
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfNormal(2.0).expand([2]).to_event(1))
    theta = pyro.sample("theta", dist.Beta(5.0, 5.0))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Bernoulli(1 - theta), infer={"enumerate": "parallel"}).long()
        pyro.sample("y", dist.Normal(mu[z], sigma[z]), obs=y)


@pytest.fixture(scope="module")
def y():
    return torch.tensor(json.loads(DATA.read_text())["y"])


def test_a_full_guide_reproduces_the_reference(y):
    start = init_to_value(values={"mu": torch.tensor([-1.0, 1.0])})
    guide = AutoMultivariateNormal(pyro.poutine.block(model, hide=["z"]), init_loc_fn=start, init_scale=0.05)
    # a small rate lessens the noise in which the optimiser ends: .15 deviations are asked of it
    fit = pplgen.fit(model, y, guide, learning_rate=0.003, progress=False)
    tree = fit.to_datatree(draws=10_000, groups=["posterior", "sample_stats"])
    for name, (means, deviations) in REFERENCE.items():
        draws = tree["posterior"][name].values.reshape(10_000, -1)
        assert (np.abs(draws.mean(0) - means) < 0.15 * np.array(deviations)).all(), name
        np.testing.assert_allclose(draws.std(0), deviations, rtol=0.1, err_msg=name)
    ratios = (tree["sample_stats"]["lp"] - tree["sample_stats"]["log_q"]).values.ravel()
    _, k = array_stats.psislw(-(ratios - ratios.max()))  # arviz_stats takes minus the log ratio
    assert k < 0.7  # Vehtari et al. (2024)


def test_without_a_guide_it_runs(y):
    fit = pplgen.fit(model, y, progress=False)
    mean = fit.to_datatree(draws=500, groups=["posterior"])["posterior"]["mu"].mean(("chain", "draw")).values
    np.testing.assert_allclose(np.sort(mean), REFERENCE["mu"][0], atol=0.05)  # a standard deviation or less
