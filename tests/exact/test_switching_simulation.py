"""Draws of regimes and states from sums of Gaussians against sums over all paths, and against plain simulation."""

import pytest
import torch
from torch.distributions import Categorical, Normal

from pplgen.errors import InputError
from pplgen.exact.enumeration import enumerate_regimes
from pplgen.exact.gaussian_sums import gaussian_sum_filter
from pplgen.exact.switching import kim_filter, per_regime
from pplgen.exact.switching_simulation import draw_switching_paths
from pplgen.story.dynamics import SwitchingLinearGaussian

PATHS = 20_000


def drawn(y, parameters, num_paths=PATHS, max_terms=0, **options):
    torch.manual_seed(0)
    return draw_switching_paths(
        y, gaussian_sum_filter(y, parameters, max_terms=max_terms, **options), parameters, num_paths, **options
    )


def errors_of(weights, values, centre):
    """Standard errors of weighted means, by the delta method: weights sum to one over the first axis."""
    return torch.einsum("m,m...->...", weights.square(), (values - centre).square()).sqrt()


def log_mean(log_ratios):
    """The estimate of the log-likelihood and its standard error."""
    relative = (log_ratios - log_ratios.max()).exp()
    return relative.mean().log() + log_ratios.max(), relative.std() / relative.mean() / len(relative) ** 0.5


@pytest.mark.parametrize("most", [0, 8])
def test_weighted_paths_have_the_exact_moments(switching_model, most):
    y, parameters = switching_model
    log_likelihood, exact = enumerate_regimes(y, parameters)
    regimes, states, log_ratios = drawn(y, parameters, max_terms=most)
    estimate, error = log_mean(log_ratios)
    assert error < 0.02  # nats: the filter loses little here
    assert abs(estimate - log_likelihood) < 4 * error

    weights = log_ratios.softmax(0)
    effective = 1 / weights.square().sum()
    assert effective > PATHS / 10
    # five standard errors: 42 numbers, whose weights vary with the draws themselves
    hits = torch.nn.functional.one_hot(regimes, 3).double()
    shares, mean = torch.einsum("m,mtk->tk", weights, hits), torch.einsum("m,mtd->td", weights, states)
    assert ((shares - exact.probabilities).abs() < 5 * errors_of(weights, hits, shares)).all()
    assert ((mean - exact.mean).abs() < 5 * errors_of(weights, states, mean)).all()
    squares, variances = (states - mean).square(), exact.covariance.diagonal(dim1=-2, dim2=-1)
    spread = torch.einsum("m,mtd->td", weights, squares)
    assert ((spread - variances).abs() < 5 * errors_of(weights, squares, spread)).all()


def test_without_regimes_every_path_counts_alike(switching_model):
    y, parameters = switching_model
    full = per_regime(y, parameters)
    alike = full._replace(**{name: getattr(full, name)[:1].expand_as(getattr(full, name)) for name in "AbQCdR"})
    log_ratios = drawn(y, alike, 50).log_ratios
    expected = kim_filter(y, alike).log_likelihood
    torch.testing.assert_close(log_ratios, expected.expand(50), rtol=0, atol=1e-9)  # rounding


def test_one_step(switching_model):
    y, parameters = switching_model
    regimes, states, log_ratios = drawn(y[:1], parameters, 50)
    assert regimes.shape == (50, 1)
    assert states.shape == (50, 1, 2)
    torch.testing.assert_close(log_ratios, enumerate_regimes(y[:1], parameters)[0].expand(50))


def test_batches_of_series_and_parameters(switching_models):
    series, models, both = switching_models
    regimes, states, log_ratios = drawn(series, both, 4000)
    assert regimes.shape == (2, 3, 4000, series.shape[1])
    assert states.shape == (2, 3, 4000, series.shape[1], 2)
    for draw, own in enumerate(models):
        exact, _ = enumerate_regimes(series, own)
        for each in range(3):
            estimate, error = log_mean(log_ratios[draw, each])
            assert abs(estimate - exact[each]) < 4.5 * error  # six of them


def test_past_the_end_of_a_series_its_last_state_stays(switching_model):
    y, parameters = switching_model
    lengths = torch.tensor([len(y), 4, 1])
    series = torch.stack([y, y, y])
    regimes, states, log_ratios = drawn(series, parameters, lengths=lengths)
    for each, length in enumerate(lengths.tolist()):
        assert (regimes[each, :, length:] == regimes[each, :, length - 1 : length]).all()
        assert (states[each, :, length:] == states[each, :, length - 1 : length]).all()
        exact, smoothed = enumerate_regimes(y[:length], parameters)
        estimate, error = log_mean(log_ratios[each])
        assert abs(estimate - exact) < 4 * error + 1e-9  # rounding, where all weigh alike
        # what was drawn at each step is not moved by what is beyond the end
        weights = log_ratios[each].softmax(0)
        mean = torch.einsum("m,mtd->td", weights, states[each, :, :length])
        # five standard errors of 22 numbers
        assert ((mean - smoothed.mean).abs() < 5 * errors_of(weights, states[each, :, :length], mean)).all()


@pytest.mark.parametrize("most", [0, 8])
def test_transitions_that_depend_on_the_state(most):
    """Against a million runs of the story itself, weighted by what is seen of them."""
    as_double = {"dtype": torch.float64}
    pi, b = torch.tensor([0.6, 0.4], **as_double), torch.tensor([1.0, -1.0], **as_double)
    P, one = torch.tensor([[0.8, 0.2], [0.3, 0.7]], **as_double), torch.ones(1, 1, **as_double)
    moves = 0.9 * one, b[:, None], 0.3 * one
    parameters = SwitchingLinearGaussian(pi, P, 0 * one[0], one, *moves, one, 0 * one[0], one / 4)

    def log_transition(x):
        return (P.log() + torch.stack([-x[..., 0], x[..., 0]], -1).unsqueeze(-2)).log_softmax(-1)

    y = torch.tensor([[0.3], [torch.nan], [torch.nan], [1.4], [-0.5]], **as_double)
    # many, for one regime has a probability of .006 and so few paths that their weights would not tell its error
    regimes, states, log_ratios = drawn(y, parameters, 200_000, max_terms=most, log_transition=log_transition)

    torch.manual_seed(1)
    s, x, log_seen, path = Categorical(parameters.pi).sample((1_000_000,)), torch.randn(1_000_000, **as_double), 0, []
    passed = []
    for observation in y[:, 0]:
        path.append(x)
        passed.append(s)
        if not observation.isnan():
            log_seen = log_seen + Normal(x, 0.5).log_prob(observation)
        s = Categorical(logits=log_transition(x[:, None])[torch.arange(len(s)), s]).sample()
        x = 0.9 * x + b[s] + 0.3**0.5 * torch.randn_like(x)
    (ours, error), (theirs, their_error) = log_mean(log_ratios), log_mean(log_seen)
    assert error < 0.02  # nats
    assert abs(ours - theirs) < 4 * (error**2 + their_error**2) ** 0.5
    weights, other = log_ratios.softmax(0), log_seen.softmax(0)
    first, others = (regimes == 0).double(), (torch.stack(passed, 1) == 0).double()
    # five standard errors of five numbers each
    for ours, theirs in ((states[..., 0], torch.stack(path, 1)), (first, others)):
        mean, expected = weights @ ours, other @ theirs
        error = torch.hypot(errors_of(weights, ours, mean), errors_of(other, theirs, expected))
        assert ((mean - expected).abs() < 5 * error).all()


def test_no_paths_are_refused(switching_model):
    y, parameters = switching_model
    with pytest.raises(InputError, match="num_paths=0; expected at least 1"):
        drawn(y, parameters, 0)
