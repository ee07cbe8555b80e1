"""Likelihoods given a decoder's outputs, and priors of latent variables, against scipy and sums written out."""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from scipy.special import expit, log_softmax

from pplgen.distributions import (
    CategoricalValues,
    FlatPrior,
    NormalMixture,
    decoder_likelihood,
    standard_prior,
    stick_breaking,
    vamp_prior,
)
from pplgen.distributions.decoder_likelihoods import LIKELIHOODS
from pplgen.errors import InputError

N, D, C = 6, 3, 4
LOC, SCALE, SIGMA = torch.tensor([[1.0, -2.0, 30.0], [0.5, 2.0, 10.0], [0.3, 1.0, 7.0]], dtype=torch.float64)


def outputs(per_feature=1):
    return torch.randn(N, per_feature * D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def rows(kind):
    generator = torch.Generator().manual_seed(1)
    uniform = torch.rand(N, D, generator=generator, dtype=torch.float64)
    return {"bernoulli": uniform.round(), "continuous-bernoulli": uniform, "categorical": (C * uniform).floor()}.get(
        kind, LOC + SCALE * uniform
    )


def log_densities(kind, a, x):
    """Log density of each entry, by scipy."""
    a, x = a.numpy(), x.numpy()
    if kind == "bernoulli":
        return stats.bernoulli.logpmf(x, expit(a))
    if kind == "continuous-bernoulli":
        p = expit(a)
        return x * np.log(p) + (1 - x) * np.log1p(-p) + np.log(2 * np.arctanh(1 - 2 * p) / (1 - 2 * p))
    if kind == "categorical":
        logits = log_softmax(a.reshape(N, C, D), axis=1)  # grouped by value
        return np.take_along_axis(logits, x.astype(int)[:, None], axis=1)[:, 0]
    return stats.norm.logpdf(x, LOC.numpy() + SCALE.numpy() * a, SIGMA.numpy())


@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_log_density_is_the_sum_over_observed_entries(kind):
    a, x = outputs(C if kind == "categorical" else 1), rows(kind)
    expected = log_densities(kind, a, x)
    likelihood = decoder_likelihood(kind, a, D, LOC, SCALE, SIGMA)
    assert (likelihood.batch_shape, likelihood.event_shape) == ((N,), (D,))
    # float64, but for the continuous Bernoulli, whose constant torch approximates near p = 1/2
    rtol = 1e-5 if kind == "continuous-bernoulli" else 1e-9
    np.testing.assert_allclose(likelihood.log_prob(x), expected.sum(-1), rtol=rtol)
    x[0, 1] = x[2] = math.nan
    expected[0, 1] = expected[2] = 0.0
    np.testing.assert_allclose(likelihood.log_prob(x), expected.sum(-1), rtol=rtol)
    assert likelihood.sample().shape == (N, D)
    assert likelihood.sample().is_floating_point()


def test_without_sigma_the_decoder_outputs_it():
    a, x = outputs(2), rows("normal")
    spread = SCALE.numpy() * (np.logaddexp(0, a[:, D:].numpy()) + 1e-3)
    expected = stats.norm.logpdf(x, LOC + SCALE * a[:, :D], spread).sum(-1)
    np.testing.assert_allclose(decoder_likelihood("normal", a, D, LOC, SCALE).log_prob(x), expected, rtol=1e-9)


def test_an_unknown_likelihood_is_refused():
    with pytest.raises(InputError, match=r"likelihood='poisson': expected one of bernoulli, continuous-bernoulli, nor"):
        decoder_likelihood("poisson", outputs(), D)


def test_values_of_categories_are_real_and_their_mean_is_the_mode():
    values = CategoricalValues(probs=torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1]]))
    assert values.mean.tolist() == [1.0, 0.0]
    torch.manual_seed(0)
    draws = values.sample((20_000,))
    assert draws.dtype == torch.float32
    # five standard errors of a frequency of 20,000 draws are at most .018
    torch.testing.assert_close((draws == 1.0).float().mean(0), torch.tensor([0.5, 0.3]), atol=0.018, rtol=0)


@pytest.mark.parametrize(
    ("family", "point", "expected"),
    [
        ("student-t", [0.3, -2.0], stats.norm.logpdf([0.3, -2.0]).sum()),
        ("gamma", [0.3, 2.0], stats.gamma.logpdf([0.3, 2.0], 2, scale=0.5).sum()),
        ("lognormal", [0.3, 2.0], stats.lognorm.logpdf([0.3, 2.0], 1).sum()),
        ("kumaraswamy", [0.3, 0.9], 0.0),
        ("dirichlet", [0.3, 0.7], stats.dirichlet.logpdf([0.3, 0.7], [1, 1])),
    ],
)
def test_standard_priors(family, point, expected):
    prior = standard_prior(family, torch.zeros(2, dtype=torch.float64))
    assert (prior.batch_shape, prior.event_shape) == ((), (2,))
    value = prior.log_prob(torch.tensor(point, dtype=torch.float64))
    assert value.item() == pytest.approx(expected, abs=1e-9)


def test_an_unknown_family_is_refused():
    with pytest.raises(InputError, match=r"family='cauchy': expected one of normal, laplace"):
        standard_prior("cauchy", torch.zeros(2))


@pytest.mark.parametrize(("family", "kind"), [(dist.Normal, NormalMixture), (dist.Laplace, dist.MixtureSameFamily)])
def test_the_vamp_prior_is_the_weighted_sum_of_the_guide_at_pseudo_inputs(family, kind):
    logits = torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64)
    loc, scale = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    prior = vamp_prior(logits, family(loc, scale.exp()).to_event(1))
    assert type(prior) is kind
    z = torch.tensor([0.4, -1.0], dtype=torch.float64)
    theirs = {dist.Normal: stats.norm, dist.Laplace: stats.laplace}[family]
    densities = theirs.pdf(z, loc, scale.exp()).prod(-1)
    weights = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum()
    assert prior.log_prob(z).item() == pytest.approx(math.log((weights * densities).sum()), abs=1e-9)


def test_the_flat_prior_is_fitted_to_values_and_does_not_move_them():
    z = torch.randn(500, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 + 1
    z.requires_grad_()
    mean, covariance = z.detach().mean(0).requires_grad_(), torch.cov(z.detach().T, correction=0).requires_grad_()
    density = FlatPrior(mean, covariance_matrix=covariance).log_prob(z)
    assert density.detach().abs().max() == 0
    density.sum().backward()
    assert z.grad is None
    # mean and covariance of the values maximise the normal's likelihood; float64 sums of 500 terms
    assert mean.grad.abs().max() < 1e-9
    assert covariance.grad.abs().max() < 1e-9
    off = (mean.detach() + 1).requires_grad_()
    FlatPrior(off, covariance_matrix=covariance.detach()).log_prob(z).sum().backward()
    assert off.grad.abs().max() > 1


def test_broken_sticks_are_weights():
    v = torch.rand(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights, rest = [], torch.ones(5, dtype=torch.float64)
    for k in range(3):
        weights.append(rest * v[:, k])
        rest = rest * (1 - v[:, k])
    torch.testing.assert_close(stick_breaking(v), torch.stack([*weights, rest], -1))
