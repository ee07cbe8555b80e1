"""Enumeration of regimes against a published marginal and against dense Gaussians over every path."""

import itertools

import pytest
import torch
from torch.distributions import MultivariateNormal

from pplgen.errors import InputError
from pplgen.exact.enumeration import enumerate_regimes
from pplgen.exact.switching import per_regime


def moments(path, parameters):
    """Mean and covariance of states and observations along one path, from the definition, step by step."""
    _, _, m0, S0, A, b, Q, C, d, R = parameters
    T, D = len(path), len(m0)
    maps, means = [], []  # x_t as a linear map of independent noise, and its mean
    for t, s in enumerate(path):
        new = torch.zeros(D, T * D, dtype=m0.dtype)
        new[:, t * D : (t + 1) * D] = torch.linalg.cholesky(Q[s] if t else S0)
        maps.append(A[s] @ maps[-1] + new if t else new)
        means.append(A[s] @ means[-1] + b[s] if t else m0)
    states, x_mean = torch.cat(maps), torch.cat(means)
    seen = torch.block_diag(*C[path])
    y_mean = seen @ x_mean + d[path].flatten()
    across = states @ states.T @ seen.T
    return x_mean, y_mean, across, seen @ across + torch.block_diag(*R[path])


def test_equals_dense_gaussians_over_every_path(switching_model):
    y, parameters = switching_model
    full = per_regime(y, parameters)
    seen = torch.nonzero(~y.flatten().isnan()).squeeze(1)
    paths = torch.tensor(list(itertools.product(range(3), repeat=len(y))))
    log_joints, means = [], []
    for path in paths:
        x_mean, y_mean, across, y_covariance = moments(path, full)
        block = y_covariance[seen][:, seen]
        residual = y.flatten()[seen] - y_mean[seen]
        log_prior = full.pi.log()[path[0]] + full.P.log()[path[:-1], path[1:]].sum()
        log_joints.append(log_prior + MultivariateNormal(y_mean[seen], block).log_prob(y.flatten()[seen]))
        means.append(x_mean + across[:, seen] @ torch.linalg.solve(block, residual))
    log_joint = torch.stack(log_joints)
    weights = log_joint.softmax(0)
    log_likelihood, smoothed = enumerate_regimes(y, parameters)
    close = {"rtol": 0, "atol": 1e-9}  # float64 solves of at most 12 well-conditioned equations
    torch.testing.assert_close(log_likelihood, log_joint.logsumexp(0), **close)
    states = torch.nn.functional.one_hot(paths, 3).to(y.dtype)
    torch.testing.assert_close(smoothed.probabilities, torch.einsum("p,ptk->tk", weights, states), **close)
    torch.testing.assert_close(smoothed.mean, (weights @ torch.stack(means)).reshape(len(y), 2), **close)


def test_smoothed_start_by_fisher_s_identity(switching_model):
    """The slope of the log marginal in ``m0`` is ``S0^-1 (E[x_1 | y] - m0)``."""
    y, parameters = switching_model
    m0 = parameters.m0.clone().requires_grad_()
    log_likelihood, smoothed = enumerate_regimes(y, parameters._replace(m0=m0))
    (slope,) = torch.autograd.grad(log_likelihood, m0)
    torch.testing.assert_close(parameters.m0 + parameters.S0 @ slope, smoothed.mean[0].detach(), rtol=0, atol=1e-10)


def test_growth_rates(growth):
    y, parameters = growth
    log_likelihood, smoothed = enumerate_regimes(y[:12], parameters)
    assert log_likelihood.item() == pytest.approx(-19.794290757, abs=1e-7)  # published with nine decimals
    torch.testing.assert_close(smoothed.probabilities.sum(-1), torch.ones(12, dtype=y.dtype))


def test_batches_are_series_side_by_side(switching_model):
    y, parameters = switching_model
    both = torch.stack([y, y.flip(0)])
    log_likelihood, smoothed = enumerate_regimes(both, parameters)
    for series, own in enumerate(both):
        expected_log_likelihood, expected = enumerate_regimes(own, parameters)
        torch.testing.assert_close(log_likelihood[series], expected_log_likelihood)
        for ours, theirs in zip(smoothed, expected, strict=True):
            torch.testing.assert_close(ours[series], theirs)


def test_too_many_paths_are_refused(switching_model):
    y, parameters = switching_model
    with pytest.raises(InputError, match=r"3 regimes over 60 steps have 3\^60 paths; expected at most 65536"):
        enumerate_regimes(y.repeat(10, 1), parameters)
