"""Kim's filter and smoother against published values, where they are exact, and near enumeration elsewhere."""

import pytest
import torch

from pplgen.errors import InputError
from pplgen.exact.enumeration import enumerate_regimes
from pplgen.exact.hmm import forward_backward
from pplgen.exact.kalman import kalman_filter, rts_smoother
from pplgen.exact.switching import collapse, kim_filter, kim_smoother, per_regime
from pplgen.story.dynamics import LinearGaussian, MarkovChain

CLOSE = {"rtol": 0, "atol": 1e-10}  # six steps of well-conditioned float64


def test_growth_rates(growth):
    y, parameters = growth
    # published with five decimals; the first quarters against enumeration: collapsing costs some 1e-4 nats a step
    assert kim_filter(y, parameters).log_likelihood.item() == pytest.approx(-209.13861, abs=1e-4)
    exact, smoothed = enumerate_regimes(y[:12], parameters)
    filtered = kim_filter(y[:12], parameters)
    assert filtered.log_likelihood.item() == pytest.approx(exact.item(), abs=5e-3)
    approximate = kim_smoother(filtered, parameters)
    # a smoother that drops what later observations say about this regime once the next is known: no digits to trust,
    # but never far off
    assert (approximate.probabilities - smoothed.probabilities).abs().max() < 0.2
    assert (approximate.mean - smoothed.mean).abs().max() < 0.1


def test_exact_for_two_steps(switching_model):
    y, parameters = switching_model
    exact, expected = enumerate_regimes(y[:2], parameters)
    filtered = kim_filter(y[:2], parameters)
    torch.testing.assert_close(filtered.log_likelihood, exact, **CLOSE)
    torch.testing.assert_close(filtered.probabilities[-1], expected.probabilities[-1], **CLOSE)
    mean, covariance = collapse(filtered.probabilities[-1], filtered.mean[-1], filtered.covariance[-1])
    torch.testing.assert_close(mean, expected.mean[-1], **CLOSE)
    torch.testing.assert_close(covariance, expected.covariance[-1], **CLOSE)


def test_exact_where_states_forget(switching_model):
    """Without dynamics (``A = 0``) each step's Gaussian depends on its regime alone: a hidden Markov model."""
    y, parameters = switching_model
    parameters = parameters._replace(A=torch.zeros_like(parameters.A))
    filtered = kim_filter(y, parameters)
    smoothed = kim_smoother(filtered, parameters)
    exact, expected = enumerate_regimes(y, parameters)
    torch.testing.assert_close(filtered.log_likelihood, exact, **CLOSE)
    for ours, theirs in zip(smoothed, expected, strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)


def test_without_regimes_it_is_the_kalman_filter(switching_model):
    """Regimes that differ in nothing leave the state as one Gaussian and the regimes as a chain of their own."""
    y, parameters = switching_model
    pi, P, m0, S0, *rest = per_regime(y, parameters)
    alike = parameters._replace(**dict(zip("AbQCdR", (part[0] for part in rest), strict=True)))
    plain = LinearGaussian(m0, S0, *(part[0] for part in rest))
    filtered, expected = kim_filter(y, alike), kalman_filter(y, plain)
    smoothed = kim_smoother(filtered, alike)
    torch.testing.assert_close(filtered.log_densities, expected.log_densities, **CLOSE)
    torch.testing.assert_close(filtered.mean, expected.mean.unsqueeze(-2).expand(-1, 3, -1), **CLOSE)
    torch.testing.assert_close(smoothed.mean, rts_smoother(expected, plain).mean, **CLOSE)
    torch.testing.assert_close(smoothed.covariance, rts_smoother(expected, plain).covariance, **CLOSE)
    chain = forward_backward(torch.zeros(len(y), 3, dtype=y.dtype), MarkovChain(pi.log(), P.log()))
    torch.testing.assert_close(smoothed.probabilities, chain.smoothed, **CLOSE)


def test_batches_are_series_side_by_side(switching_model):
    y, parameters = switching_model
    both = torch.stack([y, y.flip(0)])
    filtered = kim_filter(both, parameters)
    smoothed = kim_smoother(filtered, parameters)
    for series, own in enumerate(both):
        alone = kim_filter(own, parameters)
        for ours, theirs in zip((*filtered, *smoothed), (*alone, *kim_smoother(alone, parameters)), strict=True):
            torch.testing.assert_close(ours[series], theirs)


def test_a_regime_out_of_reach_stays_finite(switching_model):
    """A left-to-right chain that starts in its first regime reaches its last at the third step."""
    y, parameters = switching_model
    P = torch.tensor([[0.8, 0.2, 0.0], [0.0, 0.7, 0.3], [0.0, 0.0, 1.0]], dtype=y.dtype)
    A = parameters.A.clone().requires_grad_()
    parameters = parameters._replace(pi=torch.tensor([1.0, 0.0, 0.0], dtype=y.dtype), P=P, A=A)
    filtered = kim_filter(y, parameters)
    smoothed = kim_smoother(filtered, parameters)
    exact, _ = enumerate_regimes(y[:2], parameters)
    torch.testing.assert_close(filtered.log_densities[:2].sum(), exact, **CLOSE)
    assert filtered.probabilities[1, 2] == 0
    (slope,) = torch.autograd.grad(filtered.log_likelihood + smoothed.mean.sum(), A)
    for part in (*filtered, *smoothed, slope):
        assert part.isfinite().all()


def test_one_step(switching_model):
    y, parameters = switching_model
    filtered = kim_filter(y[:1], parameters)
    exact, expected = enumerate_regimes(y[:1], parameters)
    torch.testing.assert_close(filtered.log_likelihood, exact, **CLOSE)
    for ours, theirs in zip(kim_smoother(filtered, parameters), expected, strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)


def test_collapse_keeps_the_mixture_s_moments():
    generator = torch.Generator().manual_seed(0)
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    mean = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    ours, spread = collapse(weights, mean, torch.eye(2, dtype=torch.float64).expand(3, 2, 2))
    second = torch.einsum("k,ki,kj->ij", weights, mean, mean) + torch.eye(2, dtype=torch.float64)
    torch.testing.assert_close(ours, weights @ mean)
    torch.testing.assert_close(spread, second - torch.outer(ours, ours))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"P": torch.ones(3, 2).double()}, r"P has shape \(3, 2\); expected \(3, 3\)"),
        ({"Q": torch.ones(2, 3).double()}, r"Q has shape \(2, 3\); expected \(2, 2\) or \(3, 2, 2\)"),
        ({"C": torch.ones(2, 2, 2).double()}, r"C has shape \(2, 2, 2\); expected \(2, 2\) or \(3, 2, 2\)"),
        ({"d": torch.ones(2)}, "d float32"),
    ],
)
def test_misfits_are_said(switching_model, changes, sentence):
    y, parameters = switching_model
    for solve in (kim_filter, enumerate_regimes):
        with pytest.raises(InputError, match=sentence):
            solve(y, parameters._replace(**changes))


def test_batches_of_parameters(switching_models):
    series, models, both = switching_models
    filtered = kim_filter(series, both)
    smoothed = kim_smoother(filtered, both)
    for draw, own in enumerate(models):
        alone = kim_filter(series, own)
        for ours, theirs in zip((*filtered, *smoothed), (*alone, *kim_smoother(alone, own)), strict=True):
            torch.testing.assert_close(ours[draw], theirs)


def test_transitions_that_depend_on_the_state(switching_model):
    """From a start that is known exactly the first transition is; one that ignores the state changes nothing."""
    y, parameters = switching_model
    same = kim_filter(y, parameters, log_transition=lambda x: parameters.P.log().expand(*x.shape[:-1], 3, 3))
    torch.testing.assert_close(same.log_densities, kim_filter(y, parameters).log_densities)
    start = parameters._replace(S0=0 * parameters.S0)

    def tilted(x):
        return (start.P.log() + x[..., :1, None] * torch.arange(3.0).double()).log_softmax(-1)

    at_start = tilted(start.m0)
    expected, _ = enumerate_regimes(y[:2], start._replace(P=at_start.exp()))
    torch.testing.assert_close(kim_filter(y[:2], start, log_transition=tilted).log_likelihood, expected, **CLOSE)
