"""The parallel filter and smoother: gradients and long series against the loop, the flat start against its limit."""

import numpy as np
import pytest
import torch

import pplgen
from pplgen.exact.kalman import kalman_filter, rts_smoother
from pplgen.exact.kalman_scan import diffuse_log_likelihood, kalman_filter_scan, rts_smoother_scan
from pplgen.exact.linear_gaussian import symmetrise
from pplgen.story.dynamics import LinearGaussian


@pytest.fixture
def nile():
    """Flow of the Nile as a random walk seen through noise, at the variances of its maximum likelihood."""
    pytest.importorskip("statsmodels")
    y = pplgen.load_data("nile", dtype=torch.float64).values
    one = torch.ones(1, 1, dtype=y.dtype)
    return y, LinearGaussian(
        m0=1000 * one[0], S0=1e6 * one, A=one, b=0 * one[0], Q=1469.1 * one, C=one, d=0 * one[0], R=15099 * one
    )


def test_gradients_equal_the_loop_s(varying_model):
    y, parameters = varying_model
    gradients = []
    for filter_series, smooth in ((kalman_filter, rts_smoother), (kalman_filter_scan, rts_smoother_scan)):
        leaves = LinearGaussian(*(part.clone().requires_grad_() for part in parameters))
        filtered = filter_series(y, leaves)
        smoothed = smooth(filtered, leaves)
        total = filtered.log_likelihood.sum() + sum(part.sin().sum() for part in smoothed)
        slopes = LinearGaussian(*torch.autograd.grad(total, leaves))
        # only the symmetric part of a covariance's gradient means anything
        gradients.append(slopes._replace(**{name: symmetrise(getattr(slopes, name)) for name in ("S0", "Q", "R")}))
    for loop, scan in zip(*gradients, strict=True):
        assert loop.isfinite().all()
        torch.testing.assert_close(scan, loop, rtol=1e-8, atol=1e-8)  # float64 through seven steps


def test_long_series_equal_the_loop_s(constant_model):
    _, parameters = constant_model
    y = torch.randn(3, 1000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    loop, scan = kalman_filter(y, parameters), kalman_filter_scan(y, parameters)
    for ours, theirs in zip(scan, loop, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-8)  # the filter forgets, so rounding does not add up
    for ours, theirs in zip(rts_smoother_scan(loop, parameters), rts_smoother(loop, parameters), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-8)


def test_the_nile(nile):
    y, parameters = nile
    # published with five decimals
    assert kalman_filter(y, parameters).log_likelihood.item() == pytest.approx(-640.38054, abs=1e-5)
    assert kalman_filter_scan(y, parameters).log_likelihood.item() == pytest.approx(-640.38054, abs=1e-5)
    assert diffuse_log_likelihood(y, parameters).item() == pytest.approx(-633.46456, abs=1e-5)


def test_flat_start_of_the_nile_is_its_first_observation(nile):
    """Given ``y_1`` and nothing else, ``x_2 ~ N(y_1, R + Q)``; the first density keeps only its constant."""
    y, parameters = nile
    started = parameters._replace(m0=y[0], S0=parameters.Q + parameters.R)
    rest = kalman_filter(y[1:], started).log_likelihood - 0.5 * np.log(2 * np.pi)
    torch.testing.assert_close(diffuse_log_likelihood(y, parameters), rest, rtol=0, atol=1e-9)


def test_flat_start_is_the_limit_of_wide_ones(varying_model):
    y, parameters = varying_model
    wide = 1e7
    S0 = wide * torch.eye(3, dtype=y.dtype)
    limit = kalman_filter(y, parameters._replace(S0=S0)).log_likelihood + 1.5 * np.log(wide)
    # what is left of the start's precision is 1e-7, times squared states near 10 and slopes of the same order
    torch.testing.assert_close(diffuse_log_likelihood(y, parameters), limit, rtol=0, atol=1e-4)


def test_flat_start_is_differentiable(nile):
    y, parameters = nile
    log_R = parameters.R.log().requires_grad_()

    def log_likelihood(log_R):
        return diffuse_log_likelihood(y, parameters._replace(R=log_R.exp()))

    assert torch.autograd.gradcheck(log_likelihood, log_R, eps=1e-5, atol=1e-5)
