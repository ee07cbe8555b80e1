"""The autoencoder against principal components."""

import math

import numpy as np
import pytest
import torch
from pplgen.models import Autoencoder
from scipy.linalg import subspace_angles
from sklearn.decomposition import PCA

import pplgen
from pplgen.errors import InputError


@pytest.fixture(scope="module")
def fit(wine):
    """Linear encoder and decoder, and squared error."""
    return pplgen.fit(Autoencoder(13, 2, hidden=()), wine, compile="graph", progress=False)


def codes_of(fit, x):
    with fit.pair.isolated(), torch.no_grad():
        return fit.story.encode(x).mean


def test_linear_decoder_spans_the_principal_axes(wine, fit):
    pca = PCA(2).fit(wine.numpy())
    angles = subspace_angles(fit.story.decoder.body[0].weight.detach().numpy(), pca.components_.T)
    # degrees; the bound's last thousandth of a nat allows for about so much
    assert np.rad2deg(angles.max()) < 0.1
    with fit.pair.isolated(), torch.no_grad():
        reconstructed = fit.story.decode(codes_of(fit, wine)).mean
    theirs = pca.inverse_transform(pca.transform(wine.numpy()))
    np.testing.assert_allclose(reconstructed, theirs, atol=0.01)


def test_bound_is_squared_error_without_a_penalty(wine, fit):
    """At the best deviation, the root of the mean squared error, which PCA's discarded eigenvalues give."""
    N, D = wine.shape
    error = torch.linalg.eigvalsh(wine.T @ wine / N)[:-2].sum().item() / D
    best = -0.5 * N * D * (math.log(2 * math.pi * error) + 1)
    assert fit.elbo == pytest.approx(best, abs=0.001)
    assert fit.log_likelihood(draws=2).sum().item() == pytest.approx(fit.elbo)


def test_prior_is_flat_and_follows_the_codes(wine, fit):
    z = codes_of(fit, wine)
    with fit.pair.isolated():
        prior = fit.story.prior()
        assert not prior.log_prob(100 * z).any()
        # maximum likelihood, as near as Adam comes
        torch.testing.assert_close(prior.mean, z.mean(0), atol=1e-3, rtol=0)
        torch.testing.assert_close(prior.covariance_matrix, z.T.cov(correction=0), atol=1e-3, rtol=0)
        z.requires_grad_()
        assert torch.autograd.grad(prior.log_prob(z).sum(), z, allow_unused=True)[0] is None


def test_samples_vary_as_reconstructions_and_noise_do(wine, fit):
    x = fit.sample(20_000)
    with fit.pair.isolated(), torch.no_grad():
        seen = fit.story.decode(codes_of(fit, wine))
    covariance = seen.mean.T.cov(correction=0) + torch.diag(seen.columns.variance[0])
    scale = covariance.diagonal().sqrt()
    # five standard errors of 20,000 draws, and five thousandths for a prior that is still on its way
    error = 5 * (scale[:, None] * scale) * math.sqrt(2 / 20_000) + 0.005
    assert ((x.T.cov() - covariance).abs() < error).all()


def test_codes_are_points_and_gaps_are_filled_with_reconstructions(wine, fit):
    latents = fit.latents(wine[:9])
    np.testing.assert_allclose(latents["z"], codes_of(fit, wine[:9]), rtol=1e-5)
    assert not latents["z_sd"].values.any()
    x = wine[:9].clone()
    x[:, 4] = math.nan
    drawn = fit.impute(x, draws=500)
    with fit.pair.isolated(), torch.no_grad():
        seen = fit.story.decode(codes_of(fit, x))
    mean, sigma = seen.mean[:, 4], seen.columns.stddev[:, 4]
    # four standard errors
    assert ((drawn[..., 4].mean(0) - mean).abs() < 4 * sigma / math.sqrt(500)).all()
    assert torch.equal(drawn[7, :, :4], x[:, :4])


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((40, 64), {"likelihood": "bernoulli", "network": "convolutional", "hidden": (8,)}),
        ((40, 6), {"likelihood": "categorical", "hidden": (8,)}),
        ((40, 64), {"likelihood": "categorical", "network": "convolutional", "hidden": (8,)}),
        ((40, 6), {"noise": "entry", "hidden": (8,), "activation": "tanh"}),
    ],
)
def test_other_networks_and_likelihoods_train_on_the_graph(shape, options):
    torch.manual_seed(0)
    x = torch.rand(shape).round()
    x[3, 2] = math.nan
    story = Autoencoder(shape[1], 3, **options)
    fit = pplgen.fit(story, x, steps=200, compile="graph", progress=False)
    assert fit.path == "the traced graph"
    assert fit.best.history[-1] > fit.best.history[0]
    assert fit.log_likelihood(x, draws=2).isfinite().all()
    assert fit.sample(3).shape == (3, shape[1])


def test_a_picture_of_categories_is_read_as_a_picture_of_each():
    story = Autoencoder(16, 2, likelihood="categorical", num_values=3, network="convolutional")
    x = torch.arange(32).reshape(2, 16).remainder(3).float()
    shown = []
    story.encoder.body.convolutions[0].register_forward_pre_hook(lambda _, inputs: shown.append(inputs[0]))
    story.encode(x)
    assert torch.equal(shown[0], torch.nn.functional.one_hot(x.long(), 3).mT.reshape(2, 3, 4, 4).float())


def test_refuses_what_the_likelihood_cannot_see():
    with pytest.raises(InputError, match=r"row 2, column 2: 1\.5 is not a pixel value"):
        Autoencoder(2, 1, likelihood="bernoulli").check_data(torch.tensor([[0.0, 1.0], [0.5, 1.5]]))


@pytest.mark.parametrize("hidden", [None, 8, "8"])
def test_refuses_widths_that_are_no_sequence(hidden):
    with pytest.raises(InputError, match="widths of the hidden layers"):
        Autoencoder(2, 1, hidden=hidden)


def test_refuses_rows_of_which_nothing_is_seen():
    x = torch.randn(9, 3)
    x[2] = x[5] = math.nan
    with pytest.raises(InputError, match=r"row 3 has no observed value \(2 such rows in all\)"):
        pplgen.fit(Autoencoder(3, 1), x, steps=2, progress=False)
