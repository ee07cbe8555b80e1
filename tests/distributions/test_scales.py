"""Priors of standard deviations and covariances against torch's Gamma and Wishart distributions."""

import math

import pytest
import torch
from pyro.distributions import Gamma
from torch.distributions import Wishart, biject_to

from pplgen.distributions import (
    BartlettCholesky,
    InverseRootGamma,
    InverseWishart,
    InverseWishartCholesky,
    fraley_raftery,
    inverse_chi,
)
from pplgen.errors import InputError

D = 3
SCALE = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)


def lower_entries(matrix):
    i, j = torch.tril_indices(D, D)
    return matrix[..., i, j]


def family(batch=(), seed=0):
    generator = torch.Generator().manual_seed(seed)
    sizes = (D, D, D * (D - 1) // 2, D * (D - 1) // 2)
    values = [torch.rand(*batch, size, generator=generator).double() + 0.5 for size in sizes]
    return BartlettCholesky(SCALE, *values)


@pytest.mark.parametrize("seed", range(3))
def test_cholesky_factors_have_the_inverse_wishart_density(seed):
    """Times the Jacobian from the factor to the precision it is torch's Wishart density of the precision."""
    torch.manual_seed(seed)
    prior = InverseWishartCholesky(D + 2, SCALE)
    L = prior.sample()

    def precision(entries):
        factor = torch.zeros(D, D, dtype=torch.float64)
        factor[tuple(torch.tril_indices(D, D))] = entries
        return lower_entries(torch.cholesky_inverse(factor))

    jacobian = torch.autograd.functional.jacobian(precision, lower_entries(L))
    degrees = torch.tensor(float(D + 2), dtype=torch.float64)
    theirs = Wishart(degrees, torch.diag(SCALE**-2)).log_prob(torch.cholesky_inverse(L))
    assert prior.log_prob(L).item() == pytest.approx((theirs + jacobian.slogdet().logabsdet).item(), abs=1e-9)
    # from the factor to the covariance: 2^D prod_i L_ii^(D - i + 1)
    volume = D * math.log(2) + (torch.arange(D, 0, -1) * L.diagonal().log()).sum()
    assert InverseWishart(D + 2, SCALE).log_prob(L @ L.mT).item() == pytest.approx(
        (prior.log_prob(L) - volume).item(), abs=1e-9
    )


def test_the_family_holds_the_prior():
    prior = InverseWishartCholesky(D + 2, SCALE)
    half, zero = torch.full((D,), 0.5, dtype=torch.float64), torch.zeros(D, dtype=torch.float64)
    same = BartlettCholesky(SCALE, prior.degrees / 2, half, zero, zero + 1)
    L = family().sample()
    torch.testing.assert_close(same.log_prob(L), prior.log_prob(L))


@pytest.mark.parametrize("batch", [(), (4,)])
def test_draws_remember_their_coordinates(batch):
    """The density of a draw is that of its value."""
    q = family(batch)
    L = q.rsample()
    assert L.shape == (*batch, D, D)
    assert q.log_prob(L).shape == batch
    torch.testing.assert_close(q.log_prob(L), q.log_prob(L.clone()))
    gradients = [torch.autograd.grad(q.log_prob(v).sum(), v)[0] for v in [L.clone().requires_grad_()]]
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_moments_of_covariances():
    """The mean of an inverse Wishart distribution is its scale matrix over ``df - D - 1``."""
    torch.manual_seed(0)
    L = InverseWishartCholesky(D + 8, SCALE).expand([40_000]).sample()
    Sigma = L @ L.mT
    error = Sigma.std(0) / 200
    assert ((Sigma.mean(0) - torch.diag(SCALE**2) / 7).abs() < 4.5 * error).all()  # six entries, 4.5 standard errors


def test_factors_have_unconstrained_vectors():
    transform, L = biject_to(BartlettCholesky.support), family((2,)).sample()
    vector = transform.inv(L)
    assert vector.shape == (2, D * (D + 1) // 2)
    torch.testing.assert_close(transform(vector), L)
    jacobian = torch.autograd.functional.jacobian(lambda v: lower_entries(transform(v)), vector[0])
    torch.testing.assert_close(transform.log_abs_det_jacobian(vector, L)[0], jacobian.slogdet().logabsdet)


def test_standard_deviations_are_inverse_roots_of_gamma_variables():
    concentration, rate, scale = torch.tensor([1.5, 4.0]), torch.tensor([0.5, 2.0]), torch.tensor([1e-3, 7.0])
    sigma = scale * torch.tensor([0.7, 1.9])
    ours = InverseRootGamma(concentration, rate, scale).log_prob(sigma)
    precision = (scale / sigma).square()
    theirs = Gamma(concentration, rate).log_prob(precision) + (2 * precision / sigma).log()
    torch.testing.assert_close(ours, theirs)
    torch.manual_seed(0)
    draws = inverse_chi(scale, 9.0).expand([40_000, 2]).sample()
    # E[sigma^2] = scale^2 / (df - 2), four standard errors
    error = draws.square().std(0) / 200
    assert ((draws.square().mean(0) - scale.square() / 7).abs() < 4 * error).all()


def test_scales_of_any_size_are_finite_in_single_precision():
    scale = torch.tensor([1e-18, 1.0, 1e18])
    prior = inverse_chi(scale, 3.0)
    sigma = prior.sample().requires_grad_()
    density = prior.log_prob(sigma)
    density.sum().backward()
    assert density.isfinite().all()
    assert (sigma.grad * scale).isfinite().all()


@pytest.mark.parametrize(
    ("covariance", "shape"), [("full", (5, D, D)), ("tied", (D, D)), ("diag", (5, D)), ("spherical", (5,))]
)
def test_priors_of_the_kinds_of_covariances(covariance, shape):
    """With one column all kinds are the same prior of the variance, up to the number of components."""
    prior = fraley_raftery(covariance, SCALE, 5)
    assert prior.batch_shape == ()
    assert prior.sample().shape == prior.event_shape == shape
    one = fraley_raftery(covariance, SCALE[:1], 1)
    sigma = torch.tensor(0.8, dtype=torch.float64)
    expected = inverse_chi(SCALE[0], 3.0).log_prob(sigma)
    torch.testing.assert_close(one.log_prob(sigma.reshape(one.event_shape)), expected)


def test_an_unknown_kind_of_covariances_is_refused():
    with pytest.raises(InputError, match=r"covariance='sphere': expected one of full, tied, diag, spherical"):
        fraley_raftery("sphere", SCALE, 5)
