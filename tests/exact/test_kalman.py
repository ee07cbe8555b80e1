"""Kalman filters and smoothers, step by step and in parallel, against the dense joint Gaussian of states and series."""

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal

from pplgen.errors import InputError
from pplgen.exact.kalman import kalman_filter, rts_smoother
from pplgen.exact.kalman_scan import kalman_filter_scan, rts_smoother_scan
from pplgen.story.dynamics import LinearGaussian

ALGORITHMS = pytest.mark.parametrize(
    ("filter_series", "smooth"),
    [(kalman_filter, rts_smoother), (kalman_filter_scan, rts_smoother_scan)],
    ids=["loop", "scan"],
)
CLOSE = {"rtol": 0, "atol": 1e-8}  # a solve of 35 float64 equations of size 10, condition near 1e4


def joint(y, parameters):
    """Mean and covariance of one series' states and observations together: a linear map of independent noise."""
    m0, S0, A, b, Q, C, d, R = parameters
    T, D = len(y), len(m0)
    step = torch.eye(T * D, dtype=y.dtype)
    for t in range(1, T):
        step[t * D : (t + 1) * D, (t - 1) * D : t * D] = -A[t]
    reach = torch.linalg.inv(step)
    x_mean = reach @ torch.cat([m0, b[1:].flatten()])
    x_covariance = reach @ torch.block_diag(S0, *Q[1:]) @ reach.T
    seen = torch.cat([torch.eye(T * D, dtype=y.dtype), torch.block_diag(*C)])
    noise = torch.block_diag(torch.zeros(T * D, T * D, dtype=y.dtype), *R)
    mean = seen @ x_mean + torch.cat([torch.zeros(T * D, dtype=y.dtype), d.flatten()])
    return mean, seen @ x_covariance @ seen.T + noise


def by_series(y, parameters):
    """Each series with its own parameters, a time axis on all."""
    B, T, _ = y.shape
    m0, S0, A, b, Q, C, d, R = parameters
    matrices = (part.expand(B, T, *part.shape[-2:]) for part in (A, Q, C, R))
    vectors = (part.expand(B, T, part.shape[-1]) for part in (b, d))
    (A, Q, C, R), (b, d) = matrices, vectors
    everything = LinearGaussian(m0.expand(B, -1), S0.expand(B, -1, -1), A, b, Q, C, d, R)
    return [(y[i], LinearGaussian(*(part[i] for part in everything))) for i in range(B)]


def condition(mean, covariance, y, num_states, num_steps):
    """Moments of all states given the first steps, and the log density of those steps."""
    values = y.clone()
    values[num_steps:] = torch.nan
    seen = torch.nonzero(~values.flatten().isnan()).squeeze(1) + num_states
    if not len(seen):
        return mean[:num_states], covariance[:num_states, :num_states], torch.zeros((), dtype=y.dtype)
    values = values.flatten()[seen - num_states]
    gain = torch.linalg.solve(covariance[seen][:, seen], covariance[seen, :num_states]).T
    return (
        mean[:num_states] + gain @ (values - mean[seen]),
        covariance[:num_states, :num_states] - gain @ covariance[seen, :num_states],
        MultivariateNormal(mean[seen], covariance[seen][:, seen]).log_prob(values),
    )


@ALGORITHMS
def test_equals_the_dense_joint(varying_model, filter_series, smooth):
    """Gaps, parameters that vary in time, and batch axes at once."""
    y, parameters = varying_model
    filtered = filter_series(y, parameters)
    smoothed = smooth(filtered, parameters)
    T, D = filtered.mean.shape[-2:]
    for series, (own_y, own) in enumerate(by_series(y, parameters)):
        dense = joint(own_y, own)
        previous = 0.0
        for t in range(T):
            here = slice(t * D, (t + 1) * D)
            mean, covariance, _ = condition(*dense, own_y, T * D, t)
            torch.testing.assert_close(filtered.predicted_mean[series, t], mean[here], **CLOSE)
            torch.testing.assert_close(filtered.predicted_covariance[series, t], covariance[here, here], **CLOSE)
            mean, covariance, log_density = condition(*dense, own_y, T * D, t + 1)
            torch.testing.assert_close(filtered.mean[series, t], mean[here], **CLOSE)
            torch.testing.assert_close(filtered.covariance[series, t], covariance[here, here], **CLOSE)
            torch.testing.assert_close(filtered.log_densities[series, t], log_density - previous, **CLOSE)
            previous = log_density
        torch.testing.assert_close(filtered.log_likelihood[series], previous, **CLOSE)
        torch.testing.assert_close(smoothed.mean[series], mean.reshape(T, D), **CLOSE)
        blocks = covariance.reshape(T, D, T, D).transpose(1, 2)
        steps = torch.arange(T)
        torch.testing.assert_close(smoothed.covariance[series], blocks[steps, steps], **CLOSE)
        torch.testing.assert_close(smoothed.cross_covariance[series], blocks[steps[1:], steps[:-1]], **CLOSE)


@ALGORITHMS
def test_one_step(constant_model, filter_series, smooth):
    y, parameters = constant_model
    filtered = filter_series(y[:1], parameters)
    smoothed = smooth(filtered, parameters)
    m0, S0, *_, C, d, R = parameters
    gain = S0 @ C.T @ torch.linalg.inv(C @ S0 @ C.T + R)
    torch.testing.assert_close(smoothed.mean[0], m0 + gain @ (y[0] - C @ m0 - d), **CLOSE)
    torch.testing.assert_close(smoothed.covariance[0], S0 - gain @ C @ S0, **CLOSE)
    log_density = MultivariateNormal(C @ m0 + d, C @ S0 @ C.T + R).log_prob(y[0])
    torch.testing.assert_close(filtered.log_likelihood, log_density, **CLOSE)
    assert smoothed.cross_covariance.shape == (0, 3, 3)


@ALGORITHMS
def test_equals_statsmodels(constant_model, filter_series, smooth):
    kalman_smoother = pytest.importorskip("statsmodels.tsa.statespace.kalman_smoother")
    y, parameters = constant_model
    y[3:5, 0] = y[10] = torch.nan
    m0, S0, A, b, Q, C, d, R = (part.numpy() for part in parameters)
    theirs = kalman_smoother.KalmanSmoother(
        2, 3, transition=A, state_cov=Q, selection=np.eye(3), state_intercept=b[:, None], design=C, obs_cov=R
    )
    theirs["obs_intercept"] = d[:, None]
    theirs.bind(y.numpy())
    theirs.initialize_known(m0, S0)
    expected = theirs.smooth()
    filtered = filter_series(y, parameters)
    smoothed = smooth(filtered, parameters)
    close = {"rtol": 0, "atol": 1e-8}  # 30 steps of well-conditioned float64
    np.testing.assert_allclose(filtered.log_densities, expected.llf_obs, **close)
    np.testing.assert_allclose(filtered.mean, expected.filtered_state.T, **close)
    np.testing.assert_allclose(filtered.covariance, expected.filtered_state_cov.transpose(2, 0, 1), **close)
    np.testing.assert_allclose(smoothed.mean, expected.smoothed_state.T, **close)
    np.testing.assert_allclose(smoothed.covariance, expected.smoothed_state_cov.transpose(2, 0, 1), **close)


@ALGORITHMS
def test_float32_stays_float32_and_positive(constant_model, filter_series, smooth):
    y, parameters = constant_model
    single = LinearGaussian(*(part.float() for part in parameters))
    filtered = filter_series(y.float(), single)
    smoothed = smooth(filtered, single)
    for ours, exact in zip(filtered, filter_series(y, parameters), strict=True):
        assert ours.dtype == torch.float32
        # float32 rounds to 6e-8 of numbers near 10, through 30 steps
        torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=1e-4)
    assert (torch.linalg.eigvalsh(smoothed.covariance) > 0).all()


@ALGORITHMS
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"Q": torch.ones(3, 2).double()}, r"Q has shape \(3, 2\); expected \(3, 3\) or \(30, 3, 3\)"),
        ({"S0": torch.ones(2, 2).double()}, r"S0 has shape \(2, 2\); expected \(3, 3\)"),
        ({"C": torch.ones(4, 2, 3).double()}, r"C has shape \(4, 2, 3\); expected \(2, 3\) or \(30, 2, 3\)"),
        ({"d": torch.ones(()).double()}, r"d has shape \(\); expected \(2,\) or \(30, 2\)"),
        ({"m0": torch.ones(()).double()}, r"m0 has shape \(\)"),
        ({"A": torch.ones(3, 3)}, "A float32"),
        ({"b": torch.ones(5, 1, 3).double(), "m0": torch.ones(4, 3).double()}, r"\(5,\) of b.*\(4,\) of m0"),
    ],
)
def test_misfits_are_said(constant_model, filter_series, smooth, changes, sentence):
    y, parameters = constant_model
    with pytest.raises(InputError, match=sentence) as error:
        filter_series(y, parameters._replace(**changes))
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("shapes_unchecked")
@ALGORITHMS
def test_a_series_has_a_time_axis(constant_model, filter_series, smooth):
    y, parameters = constant_model
    for wrong in (y[:, 0], y[:0]):
        with pytest.raises(InputError, match="y has shape"):
            filter_series(wrong, parameters)
