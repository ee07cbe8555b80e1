"""Hidden Markov models against a sum over all paths."""

import itertools

import pytest
import torch

from pplgen.errors import InputError
from pplgen.exact.hmm import forward_backward, log_normaliser, sample_paths, viterbi
from pplgen.story.dynamics import MarkovChain

T, K = 5, 3
LENGTHS = torch.tensor([5, 3])
CLOSE = {"rtol": 0, "atol": 1e-12}  # float64 sums of 243 terms


def potentials(seed=0):
    """Two series; transitions that vary in time, one of them impossible, and weights that need not sum to one."""
    generator = torch.Generator().manual_seed(seed)
    log_emission, log_initial = (torch.randn(2, *size, K, generator=generator).double() for size in ((T,), ()))
    log_transition = torch.randn(T - 1, K, K, generator=generator).double()
    log_transition[:, 2, 0] = -torch.inf
    return log_emission, MarkovChain(log_initial, log_transition)


def all_paths(log_emission, chain, length):
    """Every path of one series and its weight, by definition."""
    paths = torch.tensor(list(itertools.product(range(K), repeat=length)))
    log_weight = chain.log_initial[paths[:, 0]] + log_emission[0, paths[:, 0]]
    for t in range(1, length):
        log_weight = log_weight + chain.log_transition[t - 1, paths[:, t - 1], paths[:, t]]
        log_weight = log_weight + log_emission[t, paths[:, t]]
    return paths, log_weight


@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_equals_a_sum_over_paths(lengths):
    log_emission, chain = potentials()
    posterior = forward_backward(log_emission, chain, lengths=lengths)
    parallel = log_normaliser(log_emission, chain, lengths=lengths)
    best_path, best_weight = viterbi(log_emission, chain, lengths=lengths)
    for series in range(2):
        own = chain._replace(log_initial=chain.log_initial[series])
        end = T if lengths is None else int(lengths[series])
        paths, log_weight = all_paths(log_emission[series], own, end)
        torch.testing.assert_close(posterior.log_normaliser[series], log_weight.logsumexp(0), **CLOSE)
        _, of_first_two = all_paths(log_emission[series], own, 2)
        torch.testing.assert_close(posterior.log_densities[series].sum(), log_weight.logsumexp(0), **CLOSE)
        torch.testing.assert_close(posterior.log_densities[series, :2].sum(), of_first_two.logsumexp(0), **CLOSE)
        torch.testing.assert_close(parallel[series], log_weight.logsumexp(0), **CLOSE)
        torch.testing.assert_close(best_weight[series], log_weight.max(), **CLOSE)
        assert best_path[series, :end].tolist() == paths[log_weight.argmax()].tolist()
        weight = log_weight.softmax(0)
        states = torch.nn.functional.one_hot(paths, K).double()
        torch.testing.assert_close(posterior.smoothed[series, :end], torch.einsum("p,ptk->tk", weight, states), **CLOSE)
        pairs = torch.einsum("p,pti,ptj->tij", weight, states[:, :-1], states[:, 1:])
        torch.testing.assert_close(posterior.pairs[series, : end - 1], pairs, **CLOSE)
        for t in range(end):
            paths, log_weight = all_paths(log_emission[series], own, t + 1)
            now = torch.nn.functional.one_hot(paths[:, -1], K).double()
            torch.testing.assert_close(posterior.filtered[series, t], log_weight.softmax(0) @ now, **CLOSE)


def test_past_the_end_the_state_stays():
    log_emission, chain = potentials()
    posterior = forward_backward(log_emission, chain, lengths=LENGTHS)
    path, _ = viterbi(log_emission, chain, lengths=LENGTHS)
    torch.testing.assert_close(posterior.smoothed[1, 3:], posterior.smoothed[1, 2:3].expand(2, -1), **CLOSE)
    assert path[1, 2:].unique().numel() == 1
    assert (sample_paths(log_emission, chain, 10, lengths=LENGTHS)[:, 1, 2:].diff() == 0).all()


@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_gradients_of_the_normaliser_are_marginals(lengths):
    log_emission, chain = potentials()
    posterior = forward_backward(log_emission, chain, lengths=lengths)
    emission = log_emission.clone().requires_grad_()
    transition = chain.log_transition.expand(2, -1, -1, -1).clone().requires_grad_()
    total = log_normaliser(emission, chain._replace(log_transition=transition), lengths=lengths).sum()
    smoothed, pairs = torch.autograd.grad(total, (emission, transition))
    inside = torch.ones(2, T) if lengths is None else (torch.arange(T) < lengths[:, None])
    torch.testing.assert_close(smoothed, posterior.smoothed * inside.unsqueeze(-1), **CLOSE)
    torch.testing.assert_close(pairs, posterior.pairs * inside[:, 1:, None, None], **CLOSE)


def test_sampled_paths_have_the_posterior_s_pairs():
    log_emission, chain = potentials()
    num_paths = 20_000
    paths = sample_paths(log_emission, chain, num_paths, seed=3)
    assert paths.shape == (num_paths, 2, T)
    states = torch.nn.functional.one_hot(paths, K).double()
    frequencies = torch.einsum("nbti,nbtj->btij", states[:, :, :-1], states[:, :, 1:]) / num_paths
    pairs = forward_backward(log_emission, chain).pairs
    # 72 frequencies: the largest of as many standard normals stays below 4.5 in all but 1 of 2000 draws
    assert ((frequencies - pairs).abs() <= 4.5 * (pairs * (1 - pairs) / num_paths).sqrt()).all()
    assert torch.equal(paths, sample_paths(log_emission, chain, num_paths, seed=3))


def test_one_step_and_a_constant_transition():
    log_emission, chain = potentials()
    constant = chain._replace(log_transition=chain.log_transition[0])
    expected = (log_emission[:, 0] + chain.log_initial).logsumexp(-1)
    posterior = forward_backward(log_emission[:, :1], constant)
    torch.testing.assert_close(posterior.log_normaliser, expected, **CLOSE)
    torch.testing.assert_close(log_normaliser(log_emission[:, :1], constant), expected, **CLOSE)
    assert posterior.pairs.shape == (2, 0, K, K)
    assert viterbi(log_emission[:, :1], constant)[0].shape == (2, 1)
    timed = constant._replace(log_transition=constant.log_transition.expand(T - 1, K, K))
    torch.testing.assert_close(log_normaliser(log_emission, constant), log_normaliser(log_emission, timed), **CLOSE)


def test_a_long_series_in_parallel():
    generator = torch.Generator().manual_seed(0)
    log_emission = 10 * torch.randn(1000, 4, generator=generator, dtype=torch.float64)
    transition = torch.randn(4, 4, generator=generator, dtype=torch.float64).log_softmax(-1)
    chain = MarkovChain(torch.zeros(4, dtype=torch.float64), transition)
    expected = forward_backward(log_emission, chain).log_normaliser
    # rounding of sums near 1e4 in float64
    torch.testing.assert_close(log_normaliser(log_emission, chain), expected, rtol=0, atol=1e-9)


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize("solve", [forward_backward, log_normaliser, viterbi])
def test_misfits_are_said(solve):
    log_emission, chain = potentials()
    with pytest.raises(InputError, match=r"log_transition has shape \(4, 3, 2\); expected \(3, 3\) or \(4, 3, 3\)"):
        solve(log_emission, chain._replace(log_transition=chain.log_transition[..., :2]))
    with pytest.raises(InputError, match=r"log_initial has shape \(2, 2\); expected \(3,\)"):
        solve(log_emission, chain._replace(log_initial=chain.log_initial[:, :2]))
    with pytest.raises(InputError, match=r"log_emission has shape \(3,\)"):
        solve(log_emission[0, 0], chain)
    with pytest.raises(InputError, match="log_emission float32"):
        solve(log_emission.float(), chain)
    with pytest.raises(InputError, match="lengths run from 0 to 5; expected between 1 and 5"):
        solve(log_emission, chain, lengths=torch.tensor([5, 0]))
    with pytest.raises(InputError, match=r"lengths are float32s of shape \(2,\); expected integers of shape \(2,\)"):
        solve(log_emission, chain, lengths=torch.tensor([5.0, 3.0]))
