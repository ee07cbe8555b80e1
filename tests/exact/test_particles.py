"""The particle filter against enumeration and a published marginal, within its own standard error."""

import math

import pytest
import torch

from pplgen.errors import InputError
from pplgen.exact.enumeration import enumerate_regimes
from pplgen.exact.kalman import kalman_filter
from pplgen.exact.particles import rao_blackwellised_filter
from pplgen.exact.switching import per_regime
from pplgen.story.dynamics import LinearGaussian


def test_agrees_with_enumeration(switching_model):
    y, parameters = switching_model
    exact, _ = enumerate_regimes(y, parameters)
    found = rao_blackwellised_filter(y, parameters, num_particles=100, num_runs=50)
    assert 0 < found.standard_error < 0.02
    assert abs(found.estimate - exact) < 4 * found.standard_error


def test_growth_rates(growth):
    y, parameters = growth
    found = rao_blackwellised_filter(y, parameters, num_particles=500, num_runs=20)
    # the reference is itself a particle filter's, with a standard error of .005
    assert abs(found.estimate + 209.141) < 4 * math.hypot(found.standard_error, 0.005)
    assert found.standard_error < 0.01


def test_exact_where_regimes_are_alike(switching_model):
    """Regimes that differ in nothing leave nothing to sample."""
    y, parameters = switching_model
    _, _, m0, S0, *rest = per_regime(y, parameters)
    plain = LinearGaussian(m0, S0, *(part[0] for part in rest))
    alike = parameters._replace(**dict(zip("AbQCdR", (part[0] for part in rest), strict=True)))
    found = rao_blackwellised_filter(y, alike, num_particles=3, num_runs=2)
    torch.testing.assert_close(found.estimate, kalman_filter(y, plain).log_likelihood, rtol=0, atol=1e-10)


def test_the_seed_decides(switching_model):
    y, parameters = switching_model
    first, again, other = (
        rao_blackwellised_filter(y, parameters, num_particles=5, seed=seed).runs for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.usefixtures("shapes_unchecked")
def test_misfits_are_said(switching_model):
    y, parameters = switching_model
    with pytest.raises(InputError, match=r"y has shape \(1, 6, 2\); expected one series"):
        rao_blackwellised_filter(y[None], parameters)
    with pytest.raises(InputError, match="10 particles in 1 runs; expected at least 1 in at least 2"):
        rao_blackwellised_filter(y, parameters, num_particles=10, num_runs=1)
