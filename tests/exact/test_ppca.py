"""Probabilistic PCA and factor analysis against scikit-learn, dense normals, each other and published values."""

import math

import pytest
import torch
from sklearn import decomposition
from torch.distributions import MultivariateNormal

from pplgen.errors import InputError
from pplgen.exact.ppca import FactorParameters, em_factor_analysis, factor_posterior, ppca

PPCA_WINE, FACTORS_WINE = -2875.63626, -2747.19105
"""Maxima for the standardised wine data with two codes, in nats for all 178 rows."""


@pytest.fixture
def some():
    """Parameters for five features and two codes, and rows with gaps: none, one, four, all."""
    generator = torch.Generator().manual_seed(0)
    W, mu, psi = (torch.randn(*shape, generator=generator).double() for shape in ((5, 2), (5,), (5,)))
    x = torch.randn(4, 5, generator=generator).double()
    x[1, 2] = x[2, 1:] = x[3] = math.nan
    return FactorParameters(W, mu, psi.exp()), x


def covariance_of(parameters):
    return parameters.W @ parameters.W.T + torch.diag(parameters.psi)


def test_closed_form_is_the_maximum(wine):
    parameters, log_likelihood = ppca(wine, 2)
    # published with five decimals
    assert log_likelihood.item() == pytest.approx(PPCA_WINE, abs=1e-5)
    dense = MultivariateNormal(parameters.mu, covariance_of(parameters)).log_prob(wine)
    torch.testing.assert_close(dense.sum(), log_likelihood)
    torch.testing.assert_close(factor_posterior(wine, parameters).log_likelihoods, dense)


def test_closed_form_is_scikit_learns(wine):
    """It divides by N - 1, which makes its covariance larger by N / (N - 1); its directions are the same."""
    theirs = decomposition.PCA(2).fit(wine.numpy())
    N = len(wine)
    W, mu, psi = ppca(wine, 2)[0]
    torch.testing.assert_close(
        covariance_of(FactorParameters(W, mu, psi)) * N / (N - 1), torch.from_numpy(theirs.get_covariance())
    )
    scaled = FactorParameters(W * math.sqrt(N / (N - 1)), mu, psi * N / (N - 1))
    assert factor_posterior(wine, scaled).log_likelihoods.mean().item() == pytest.approx(theirs.score(wine.numpy()))


def test_factor_analysis_is_scikit_learns(wine):
    theirs = decomposition.FactorAnalysis(2, tol=1e-8, max_iter=10_000).fit(wine.numpy())
    ours = em_factor_analysis(wine, 2)
    assert ours.converged
    # the maximum is published with five decimals; steps of 1e-9 nats a row are left, a hundred of them
    assert ours.log_likelihoods[-1].item() == pytest.approx(FACTORS_WINE, abs=2e-5)
    assert ours.log_likelihoods[-1].item() == pytest.approx(len(wine) * theirs.score(wine.numpy()), abs=1e-4)
    # flat to second order around the maximum: differences are the root of what is left to gain
    torch.testing.assert_close(ours.parameters.psi, torch.from_numpy(theirs.noise_variance_), atol=1e-3, rtol=0)
    assert (ours.log_likelihoods.diff() > -1e-9).all()


def test_em_with_shared_noise_finds_the_closed_form(wine):
    found = em_factor_analysis(wine, 2, shared_noise=True)
    parameters, log_likelihood = ppca(wine, 2)
    torch.testing.assert_close(found.log_likelihoods[-1], log_likelihood, atol=1e-5, rtol=0)
    torch.testing.assert_close(covariance_of(found.parameters), covariance_of(parameters), atol=1e-3, rtol=0)


def test_filled_in_is_the_dense_conditional(some):
    """Given what was seen, by the joint covariance of row and code; code and row are also those of Bayes' rule."""
    parameters, x = some
    W, mu, psi = parameters
    filled = factor_posterior(x, parameters)
    for i, row in enumerate(x):
        o, m = (~row.isnan()).nonzero().squeeze(1), row.isnan().nonzero().squeeze(1)
        A = W[o]
        precision = torch.eye(2, dtype=x.dtype) + A.T @ (A / psi[o, None])
        code = torch.linalg.solve(precision, A.T @ ((row[o] - mu[o]) / psi[o]))
        torch.testing.assert_close(filled.latents[i], code)
        torch.testing.assert_close(filled.latent_covariance[i], torch.linalg.inv(precision))
        torch.testing.assert_close(filled.rows[i, m], mu[m] + W[m] @ code)
        block = W[m] @ torch.linalg.inv(precision) @ W[m].T + torch.diag(psi[m])
        torch.testing.assert_close(filled.row_covariance[i][m][:, m], block)
        if len(o):
            seen = MultivariateNormal(mu[o], covariance_of(parameters)[o][:, o])
            torch.testing.assert_close(filled.log_likelihoods[i], seen.log_prob(row[o]))
    torch.testing.assert_close(filled.log_likelihoods[3], torch.zeros((), dtype=x.dtype))


def test_em_with_gaps_ends_where_the_likelihood_is_flat(wine):
    """The gradient at the end, by autograd through dense normals of the seen entries."""
    x = wine.clone()
    x[::3, 0] = x[::2, 4:6] = math.nan
    found = em_factor_analysis(x, 2, tolerance=1e-12)
    assert (found.log_likelihoods.diff() > -1e-9).all()
    free = FactorParameters(*(value.clone().requires_grad_() for value in found.parameters))
    Sigma = covariance_of(free)
    total = x.new_zeros(())
    for row in x:
        o = (~row.isnan()).nonzero().squeeze(1)
        total = total + MultivariateNormal(free.mu[o], Sigma[o][:, o]).log_prob(row[o])
    torch.testing.assert_close(total.detach(), found.log_likelihoods[-1])
    for gradient in torch.autograd.grad(total, list(free)):
        # nats for a unit of a parameter, where the curvature is tens and the last step was 1e-10 nats
        assert gradient.abs().max() < 0.01


def test_refuses_codes_that_leave_no_noise(wine):
    with pytest.raises(InputError, match="num_latents=13 with 13 features: expected between 0 and 12"):
        ppca(wine, 13)
    with pytest.raises(InputError, match="num_latents=0 with 13 features: expected between 1 and 12"):
        em_factor_analysis(wine, 0)
    with pytest.raises(InputError, match="the rows span only 2 dimensions"):
        ppca(wine[:, :2] @ torch.ones(2, 4, dtype=wine.dtype).cumsum(1), 2)
