"""EM with missing entries against EM without, against direct marginals, and against its own monotony."""

import pytest
import torch

from pplgen.errors import InputError
from pplgen.exact.em import GaussianMixtureParameters, e_step, em, m_step
from pplgen.exact.em_missing import e_step_missing, em_missing, m_step_missing

PARAMETERS = GaussianMixtureParameters(
    torch.tensor([0.3, 0.7], dtype=torch.float64),
    torch.tensor([[0.0, 1.0, -1.0], [2.0, 0.0, 1.0]], dtype=torch.float64),
    torch.tensor(
        [[[1.0, 0.5, 0.2], [0.5, 2.0, 0.0], [0.2, 0.0, 0.5]], [[1.5, -0.3, 0.4], [-0.3, 1.0, 0.1], [0.4, 0.1, 0.8]]],
        dtype=torch.float64,
    ),
)


def test_without_gaps_it_is_em(faithful):
    x = faithful.values
    start = GaussianMixtureParameters(
        PARAMETERS.weights,
        torch.tensor([[2.0, 55.0], [4.0, 80.0]], dtype=x.dtype),
        torch.diag(torch.tensor([0.1, 30.0], dtype=x.dtype)).expand(2, 2, 2),
    )
    expected = e_step_missing(x, start)
    responsibilities, log_likelihood = e_step(x, start)
    torch.testing.assert_close(expected.responsibilities, responsibilities)
    torch.testing.assert_close(expected.log_likelihoods.sum(), log_likelihood)
    for ours, theirs in zip(m_step_missing(expected), m_step(x, responsibilities), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert em_missing(x, 2).log_likelihoods[-1].item() == pytest.approx(em(x, 2).log_likelihoods[-1].item(), abs=1e-3)


def test_a_row_is_its_seen_block():
    x = torch.tensor([[0.5, torch.nan, 0.3], [torch.nan] * 3, [1.0, 2.0, 0.0]], dtype=torch.float64)
    expected = e_step_missing(x, PARAMETERS)
    o, m = [0, 2], 1
    for k in range(2):
        mu, Sigma = PARAMETERS.mu[k], PARAMETERS.Sigma[k]
        slope = Sigma[m, o] @ torch.linalg.inv(Sigma[o][:, o])
        torch.testing.assert_close(expected.completed[0, k, m], mu[m] + slope @ (x[0, o] - mu[o]))
        torch.testing.assert_close(expected.uncertainty[0, k, m, m], Sigma[m, m] - slope @ Sigma[o, m])
        assert expected.uncertainty[0, k].count_nonzero() == 1
        torch.testing.assert_close(expected.completed[1, k], mu)
        torch.testing.assert_close(expected.uncertainty[1, k], Sigma)
    blocks = torch.distributions.MultivariateNormal(PARAMETERS.mu[:, o], PARAMETERS.Sigma[:, o][:, :, o])
    density = (PARAMETERS.weights.log() + blocks.log_prob(x[0, o])).logsumexp(0)
    torch.testing.assert_close(expected.log_likelihoods[:2], torch.stack([density, torch.zeros_like(density)]))
    torch.testing.assert_close(expected.responsibilities[1], PARAMETERS.weights)


def test_the_likelihood_never_falls(faithful):
    x = faithful.values.clone()
    x[torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < 0.3] = torch.nan
    history = em_missing(x, 2, num_starts=3).log_likelihoods
    assert (history.diff() >= -1e-9).all()


def test_bad_sizes():
    with pytest.raises(InputError, match="3 components for 2 rows"):
        em_missing(torch.zeros(2, 2), 3)
    with pytest.raises(InputError, match="all 10 starts collapsed"):
        em_missing(torch.zeros(10, 2, dtype=torch.float64), 2)
