"""What stories of linear codes share: the posterior of codes and all that follows from it, with missing entries too."""

import math

import pytest
import torch
from pplgen.models import PPCA, VAE, FactorAnalysis
from pyro.infer import Trace_ELBO

import pplgen
from pplgen.exact.ppca import FactorParameters, em_factor_analysis, factor_posterior
from pplgen.story.isolation import seeded

STORIES = [PPCA, FactorAnalysis]


@pytest.fixture(scope="module")
def gaps(wine):
    """Wines of which some measurements are missing, of one all but the first."""
    x = wine[:, 4:12].clone()
    x[::3, 0] = x[::2, 3:5] = x[-2, 1:] = math.nan
    return x


@pytest.fixture(scope="module", params=STORIES)
def fit(request, gaps):
    return pplgen.fit(request.param(8, 2), gaps, compile="graph", progress=False)


def exact_of(story):
    W, mu, sigma = story.constants.values()
    return FactorParameters(W, mu, sigma.square())


@pytest.mark.parametrize("kind", STORIES)
def test_guide_is_the_posterior(kind, gaps):
    """At parameters that fit nothing, with and without gaps; a row of which nothing is seen has the prior."""
    torch.manual_seed(0)
    for x in (gaps.nan_to_num(2.0), torch.cat([gaps, torch.full_like(gaps[:1], math.nan)])):
        story = kind(8, 2).double()
        story.observe_missing(x)
        story.initialise(x)
        q, exact = story.encode(x), factor_posterior(x, exact_of(story))
        torch.testing.assert_close(q.mean.detach(), exact.latents)
        torch.testing.assert_close(q.covariance_matrix.detach(), exact.latent_covariance)
    torch.testing.assert_close(exact.latent_covariance[-1], torch.eye(2, dtype=x.dtype))


@pytest.mark.parametrize("kind", STORIES)
def test_bound_is_the_log_likelihood_whatever_is_drawn(kind, gaps):
    """So is its gradient the log-likelihood's, here by autograd through dense normals."""
    story = kind(8, 2).double()
    story.observe_missing(gaps)
    story.initialise(gaps)
    exact = factor_posterior(gaps, exact_of(story)).log_likelihoods.sum().item()
    for seed in range(3):
        with seeded(seed):
            assert -Trace_ELBO().loss(story.model, story.guide, gaps) == pytest.approx(exact)
            story.zero_grad()
            Trace_ELBO().differentiable_loss(story.model, story.guide, gaps).backward()
    W, mu, sigma = (value.requires_grad_() for value in story.constants.values())
    Sigma = W @ W.T + torch.diag(sigma.square())
    total = 0
    for row in gaps:
        o = (~row.isnan()).nonzero().squeeze(1)
        total = total + torch.distributions.MultivariateNormal(mu[o], Sigma[o][:, o]).log_prob(row[o])
    by_W, by_mu, by_sigma = torch.autograd.grad(-total, (W, mu, sigma))
    # parameters are on the columns' scale, deviations logarithmic
    torch.testing.assert_close(story.loadings.grad, by_W * story.seen.s[:, None])
    torch.testing.assert_close(story.offset.grad, by_mu * story.seen.s)
    shares = (by_sigma * sigma).detach()
    torch.testing.assert_close(story.seen.log_sigma.grad, shares.sum()[None] if kind is PPCA else shares)


def test_fits_what_was_seen(fit, gaps):
    best = em_factor_analysis(gaps, 2, shared_noise=isinstance(fit.story, PPCA), tolerance=1e-8)
    # what is left to gain, at the plateau and in EM's last steps
    assert fit.elbo == pytest.approx(best.log_likelihoods[-1].item(), abs=0.02)


def test_log_likelihood_is_exact_for_new_rows(fit, gaps):
    rows = torch.cat([gaps[:5].nan_to_num(1.0), gaps[-5:]])
    found = fit.log_likelihood(rows, draws=2)
    torch.testing.assert_close(
        found.as_subclass(torch.Tensor), factor_posterior(rows, exact_of(fit.story)).log_likelihoods
    )
    assert found.standard_error.max() < 1e-9


def test_latents_are_the_posterior_of_codes(fit, gaps):
    found, exact = fit.latents(gaps, draws=2000), factor_posterior(gaps, exact_of(fit.story))
    deviation = exact.latent_covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    # five standard errors of a mean of 2000 draws, for 356 of them
    assert ((torch.from_numpy(found["z"].values) - exact.latents).abs() < 5 * deviation / math.sqrt(2000)).all()


def test_impute_draws_from_the_conditional(fit, gaps):
    rows, exact = gaps[-6:], factor_posterior(gaps[-6:], exact_of(fit.story))
    drawn = fit.impute(rows, draws=2000)
    missing = rows.isnan()
    assert torch.equal(drawn[:, ~missing], rows[~missing].expand(2000, -1))
    for i, row in enumerate(missing):
        if not row.any():
            continue
        x, covariance = drawn[:, i, row], exact.row_covariance[i][row][:, row]
        # five standard errors of means and of products of 2000 normal draws
        scale = covariance.diagonal().sqrt()
        assert ((x.mean(0) - exact.rows[i, row]).abs() < 5 * scale / math.sqrt(2000)).all()
        error = 5 * (scale[:, None] * scale) * math.sqrt(2 / 2000)
        assert ((x.T.cov() - covariance).abs() < error).all()


def test_samples_have_the_fitted_covariance(fit):
    W, mu, psi = exact_of(fit.story)
    covariance = W @ W.T + torch.diag(psi)
    x, scale = fit.sample(20_000), covariance.diagonal().sqrt()
    # five standard errors of 20,000 draws
    assert ((x.mean(0) - mu).abs() < 5 * scale / math.sqrt(20_000)).all()
    assert ((x.T.cov() - covariance).abs() < 5 * (scale[:, None] * scale) * math.sqrt(2 / 20_000)).all()


def test_linear_vae_reaches_the_same_maximum(wine):
    """Codes with independent posteriors are enough: some rotation of them is."""
    story = VAE(13, 2, hidden=(), likelihood="normal", noise="shared")
    fit = pplgen.fit(story, wine, compile="graph", progress=False)
    # nats for 178 rows: four Monte Carlo errors, and what noisy gradients leave, .01 a row where .1 is asked for
    assert fit.elbo < -2875.63626 + 4 * fit.best.elbo_error
    assert fit.elbo > -2875.63626 - 4 * fit.best.elbo_error - 1.78
