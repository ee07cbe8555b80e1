"""Conjugate evidences against quadrature over their parameters, and against one another."""

import math

import pytest
import torch
from scipy import stats
from torch.distributions import Beta, Gamma, Normal, Poisson

from pplgen.exact.conjugate import (
    dirichlet_evidence,
    gamma_poisson_evidence,
    shared_variance_evidence,
    wishart_evidence,
)

X = torch.tensor([[0.3, -1.0], [1.2, 0.5], [-0.4, 2.0], [0.1, 0.2]]).double()
M = torch.tensor([0.5, -0.2]).double()
CLOSE = {"rtol": 0, "atol": 1e-6}  # smooth integrands on fine grids


def integral(log_density, *axes):
    """Logarithm of an integral by the trapezoidal rule, over an axis per parameter."""
    volume = sum(math.log(axis[1] - axis[0]) for axis in axes)
    return log_density.flatten().logsumexp(0) + volume


def test_a_shared_variance_by_quadrature():
    x, m = X[:, :1], M[:1]
    found = shared_variance_evidence(x, m=m, kappa=0.5, nu=3, psi=torch.tensor(2.0).double())
    # the location in its own prior deviations, which are as wide as the variance has them
    u, log_precision = torch.linspace(-9, 9, 721, dtype=torch.float64), torch.linspace(-14, 6, 801, dtype=torch.float64)
    precision = log_precision.exp()
    mu = m + u[:, None] * (0.5 * precision) ** -0.5
    prior = Gamma(1.5, torch.tensor(1.0).double()).log_prob(precision) + log_precision
    located = Normal(0.0, 1.0).log_prob(u)[:, None]
    rows = sum(Normal(mu, precision**-0.5).log_prob(each) for each in x)
    torch.testing.assert_close(found, integral(prior + located + rows, u, log_precision), **CLOSE)


def test_a_full_covariance_by_one_row_after_the_other():
    """Of one row it is the prior predictive, Student's density; the rest is the evidence under that row's posterior."""
    Psi = torch.tensor([[1.0, 0.3], [0.3, 2.0]]).double()
    prior = {"m": M, "kappa": 0.5, "nu": 5, "Psi": Psi}
    student = stats.multivariate_t(M.numpy(), (1.5 / 0.5 / 4 * Psi).numpy(), df=4)
    assert wishart_evidence(X[:1], **prior).item() == pytest.approx(student.logpdf(X[0].numpy()), abs=1e-9)
    after = {
        "m": (0.5 * M + X[0]) / 1.5,
        "kappa": 1.5,
        "nu": 6,
        "Psi": Psi + 0.5 / 1.5 * torch.outer(X[0] - M, X[0] - M),
    }
    apart = wishart_evidence(X[:1], **prior) + wishart_evidence(X[1:], **after)
    torch.testing.assert_close(wishart_evidence(X, **prior), apart)


def test_in_one_dimension_they_agree():
    psi = torch.tensor(2.0).double()
    full = wishart_evidence(X[:, :1], m=M[:1], kappa=0.5, nu=3, Psi=psi.reshape(1, 1))
    torch.testing.assert_close(full, shared_variance_evidence(X[:, :1], m=M[:1], kappa=0.5, nu=3, psi=psi))


def test_counts_by_quadrature():
    x, rate = torch.tensor([2.0, 0.0, 5.0]).double(), torch.tensor(0.5).double()
    grid = torch.linspace(1e-9, 40, 40_001, dtype=torch.float64)
    log_density = Gamma(torch.tensor(1.5).double(), rate).log_prob(grid) + Poisson(grid[:, None]).log_prob(x).sum(1)
    # the root at zero is what the rule is worst at
    found = gamma_poisson_evidence(x, shape=1.5, rate=rate)
    torch.testing.assert_close(found, integral(log_density, grid), rtol=0, atol=1e-4)


@pytest.mark.parametrize("concentration", [1.0, 2.0])
def test_categories_by_quadrature(concentration):
    hits, p = torch.tensor([3.0, 2.0]).double(), torch.linspace(0, 1, 20_001, dtype=torch.float64)[1:-1]
    prior = Beta(*(torch.tensor(concentration).double(),) * 2).log_prob(p)
    log_density = prior + 3 * p.log() + 2 * (1 - p).log()
    torch.testing.assert_close(dirichlet_evidence(hits, concentration=concentration), integral(log_density, p), **CLOSE)
