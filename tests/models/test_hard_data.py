"""Data that make mixtures fail: each gives a finite fit."""

import numpy as np
import pytest
import torch
from pplgen.models import GaussianMixture

import pplgen

GENERATOR = torch.Generator().manual_seed(0)


def overlapping():
    """Two equal components a quarter of a deviation apart."""
    z = torch.arange(200) % 2
    return torch.randn(200, 2, generator=GENERATOR) + 0.25 * z[:, None], 2


def far_too_many():
    """Four components for twenty rows of one."""
    return torch.randn(20, 2, generator=GENERATOR), 4


def duplicated():
    """Ten rows, twenty times each."""
    return torch.randn(10, 2, generator=GENERATOR).repeat(20, 1), 4


@pytest.mark.parametrize("case", [overlapping, far_too_many, duplicated], ids=lambda case: case.__name__)
def test_the_fit_is_finite_and_says_how_it_ended(case, monkeypatch):
    monkeypatch.setattr("pplgen.inference.quasi_newton.TARGET_ERROR", 0.1)  # fewer draws; precision is not tested here
    x, num_components = case()
    fit = pplgen.fit(GaussianMixture(num_components, 2), x, steps=200, compile="graph", progress=False)
    assert np.isfinite(fit.elbo)
    assert fit.stop.name in ("CONVERGED", "STEPS")
    tree = fit.to_datatree(draws=50)
    for group in ("posterior", "sample_stats", "log_likelihood"):
        for name, values in tree[group].data_vars.items():
            assert np.isfinite(values.values).all(), name
    assert np.linalg.eigvalsh(tree["posterior"]["Sigma"].values).min() > 0


def test_scaling_a_column_shifts_the_elbo_by_the_jacobian():
    """The priors follow the columns: the same data in other units give the same fit, N log(scale) nats lower."""
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(1))
    x[::2] += 5.0
    scale = torch.tensor([1.0, 1e6])
    plain, scaled = (
        pplgen.fit(GaussianMixture(2, 2), values, seed=3, compile="graph", progress=False).elbo
        for values in (x, x * scale)
    )
    # the same local optimum; Monte Carlo errors of both ELBOs are below .1
    assert plain - scaled == pytest.approx(200 * np.log(1e6), abs=1.0)
