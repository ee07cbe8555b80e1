"""A user's own pair against published reference draws: posteriordb's low_dim_gauss_mix with its exact priors."""

import json
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch
from arviz_stats.base import array_stats
from pyro.infer.autoguide import AutoMultivariateNormal
from pyro.infer.autoguide.initialization import init_to_value

import pplgen
from pplgen.verification.known_hierarchies import KNOWN

DATA = Path(__file__).parents[3] / "shared" / "data" / "posteriordb" / "low_dim_gauss_mix.json"
pytestmark = pytest.mark.skipif(not DATA.exists(), reason=f"{DATA} is not there")


# two equal modes are a hundred standard deviations apart; the reference is at that with mu in order
known = KNOWN["low-dim-gauss-mix"]
model = known.model


@pytest.fixture(scope="module")
def y():
    return torch.tensor(json.loads(DATA.read_text())["y"])


def test_a_full_guide_reproduces_the_reference(y):
    start = init_to_value(values={"mu": torch.tensor([-1.0, 1.0])})
    guide = AutoMultivariateNormal(pyro.poutine.block(model, hide=["z"]), init_loc_fn=start, init_scale=0.05)
    # a small rate lessens the noise in which the optimiser ends: .15 deviations are asked of it
    fit = pplgen.fit(model, y, guide, learning_rate=0.003, progress=False)
    tree = fit.to_datatree(draws=10_000, groups=["posterior", "sample_stats"])
    for name, (means, deviations) in known.moments(y).items():
        draws = tree["posterior"][name].values.reshape(10_000, -1)
        assert (np.abs(draws.mean(0) - means.numpy()) < 0.15 * deviations.numpy()).all(), name
        np.testing.assert_allclose(draws.std(0), deviations, rtol=0.1, err_msg=name)
    ratios = (tree["sample_stats"]["lp"] - tree["sample_stats"]["log_q"]).values.ravel()
    _, k = array_stats.psislw(-(ratios - ratios.max()))  # arviz_stats takes minus the log ratio
    assert k < 0.7  # Vehtari et al. (2024)


def test_without_a_guide_it_runs(y):
    fit = pplgen.fit(model, y, progress=False)
    mean = fit.to_datatree(draws=500, groups=["posterior"])["posterior"]["mu"].mean(("chain", "draw")).values
    np.testing.assert_allclose(np.sort(mean), known.moments(y)["mu"][0], atol=0.05)  # a standard deviation or less
