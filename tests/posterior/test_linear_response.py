"""Linear-response covariances."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import pplgen
from pplgen.errors import InputError

X = torch.randn(40, 2, generator=torch.Generator().manual_seed(0)) @ torch.tensor([[1.0, 0.9], [0.0, 0.5]])


def regression(x, y):
    beta = pyro.sample("beta", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(x @ beta, 1.0), obs=y)


@pytest.fixture(scope="module")
def fit():
    return pplgen.fit(regression, (X, X @ torch.tensor([1.0, -1.0])), progress=False)


def test_it_is_exact_for_a_normal_posterior(fit):
    exact = torch.linalg.inv(X.double().T @ X.double() + torch.eye(2) / 9)
    found = fit.covariance()
    assert list(found.index) == list(found.columns) == ["beta[0]", "beta[1]"]
    # parameters in float32
    np.testing.assert_allclose(found, exact, rtol=1e-4)
    # mean-field: the inverse of the precision's diagonal (Turner and Sahani 2011); Monte Carlo error .01 sd
    narrow = 1 / (X.double().square().sum(0) + 1 / 9)
    np.testing.assert_allclose(np.diag(fit.covariance("guide")), narrow, rtol=0.04)


def test_the_summary_shows_it_where_the_guide_is_wrong(fit, capsys):
    fit.summary()
    printed = capsys.readouterr().out
    assert "response sd" in printed
    assert f"{np.sqrt(fit.covariance().iloc[0, 0]):.4g}" in printed

    def one(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    pplgen.fit(one, X[:, 0], progress=False).summary()
    assert "response sd" not in capsys.readouterr().out


def test_an_unknown_method_is_refused(fit):
    with pytest.raises(InputError, match="method='exact': expected one of linear-response, guide"):
        fit.covariance("exact")
