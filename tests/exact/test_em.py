"""EM for Gaussian mixtures against reference maxima and scikit-learn."""

import numpy as np
import pytest
import torch

from pplgen.errors import InputError
from pplgen.exact.em import GaussianMixtureParameters, e_step, em, m_step


@pytest.mark.parametrize(
    ("num_components", "maximum"),
    [(1, -1289.79675), (2, -1130.26396)],  # reference maxima, five decimals
)
def test_reaches_the_maximum_on_old_faithful_and_never_decreases(faithful, num_components, maximum):
    result = em(faithful.values, num_components)
    assert result.converged
    assert result.log_likelihoods[-1].item() == pytest.approx(maximum, abs=1e-3)
    # rounding of a sum of 272 terms near 1e3 in float64
    assert (result.log_likelihoods.diff() >= -1e-9).all()


def test_e_step_equals_scikit_learn(faithful):
    mixture = pytest.importorskip("sklearn.mixture")
    theirs = mixture.GaussianMixture(2, random_state=0).fit(faithful.values.numpy())
    parameters = GaussianMixtureParameters(*map(torch.tensor, (theirs.weights_, theirs.means_, theirs.covariances_)))
    responsibilities, log_likelihood = e_step(faithful.values, parameters)
    np.testing.assert_allclose(responsibilities, theirs.predict_proba(faithful.values.numpy()), atol=1e-10)
    assert log_likelihood.item() == pytest.approx(theirs.score_samples(faithful.values.numpy()).sum(), rel=1e-12)


def test_m_step_maximises_the_expected_log_likelihood(faithful):
    """The gradient of the expected complete-data log-likelihood vanishes at the M-step's answer."""
    x = faithful.values
    torch.manual_seed(0)
    responsibilities = torch.rand(len(x), 3, dtype=x.dtype).softmax(dim=1)
    weights, mu, Sigma = m_step(x, responsibilities)
    mu, Sigma = mu.requires_grad_(), Sigma.requires_grad_()
    density = torch.distributions.MultivariateNormal(mu, Sigma).log_prob(x[:, None, :])
    gradients = torch.autograd.grad((responsibilities * density).sum(), (mu, Sigma))
    for gradient in gradients:  # sums of 272 terms of size up to 1e3, in float64
        assert gradient.abs().max() < 1e-8
    torch.testing.assert_close(weights, responsibilities.mean(dim=0))


def test_collapse_is_said():
    x = torch.zeros(10, 2, dtype=torch.float64)
    with pytest.raises(InputError, match="all 10 starts collapsed"):
        em(x, 2)
    with pytest.raises(InputError, match="11 components for 10 rows"):
        em(x, 11)
