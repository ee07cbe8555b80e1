"""Probabilistic PCA against its closed form."""

import numpy as np
import pytest
import torch
from pplgen.models import PPCA
from scipy.linalg import subspace_angles
from sklearn.decomposition import PCA

import pplgen
from pplgen.exact.ppca import ppca


@pytest.fixture(scope="module")
def fit(wine):
    return pplgen.fit(PPCA(13, 2), wine, compile="graph", progress=False)


def test_bound_is_the_maximum_of_the_likelihood(wine, fit):
    # the published maximum; what is left to gain at the plateau
    assert fit.elbo == pytest.approx(-2875.63626, abs=0.001)
    assert fit.elbo == pytest.approx(ppca(wine, 2)[1].item(), abs=0.001)
    assert fit.best.elbo_error < 1e-9


def test_loadings_span_the_principal_axes(wine, fit):
    W = fit.story.constants["W"]
    angles = subspace_angles(W.numpy(), PCA(2).fit(wine.numpy()).components_.T)
    # degrees; the bound's last thousandth of a nat allows for about so much
    assert np.rad2deg(angles.max()) < 0.1
    exact = ppca(wine, 2)[0]
    torch.testing.assert_close(W @ W.T, exact.W @ exact.W.T, atol=1e-3, rtol=0)
    torch.testing.assert_close(fit.story.constants["sigma"].square(), exact.psi, atol=1e-4, rtol=0)


def test_a_change_of_all_units_changes_nothing_else(wine, fit):
    again = pplgen.fit(PPCA(13, 2), 1000 * wine, compile="graph", progress=False)
    # a gradient norm of .001 over 40 parameters is worth 2e-5 nats at most; float32 sums near 3e3 round by 2e-4
    assert again.elbo + wine.numel() * np.log(1000) == pytest.approx(fit.elbo, abs=5e-4)
    # loadings are identified up to a rotation, along which rounding in float32 moves them
    own, other = (each.story.constants["W"] for each in (fit, again))
    torch.testing.assert_close(other @ other.mT, 1e6 * own @ own.mT, atol=100.0, rtol=1e-3)


def test_fitted_parameters_are_in_the_tree(fit):
    tree = fit.to_datatree(draws=2)
    assert tree["constant_data"]["W"].dims == ("feature", "latent")
    np.testing.assert_allclose(tree["constant_data"]["W"], fit.story.constants["W"], rtol=1e-5)
