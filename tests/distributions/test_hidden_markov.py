"""Chains of regimes against sums over paths and sequential recursions."""

import itertools
import math

import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import Normal
from torch.fx.experimental.proxy_tensor import make_fx

from pplgen.distributions.hidden_markov import HiddenMarkovSeries, log_normaliser, log_product, marginals, sample_chain
from pplgen.distributions.missing import MarginalIndependent, MarginalNormal
from pplgen.exact.hmm import forward_backward
from pplgen.story.dynamics import MarkovChain

LENGTHS = (1, 2, 3, 4, 5, 8, 33, 100)


def potentials(K, T, *, timed=False, spread=1.0, batch=(2,)):
    """Weights that need not sum to one."""
    generator = torch.Generator().manual_seed(T)
    sizes = ((*batch, K), (*batch, T - 1, K, K) if timed else (K, K), (*batch, T, K))
    initial, transition, emission = (torch.randn(size, generator=generator).double() for size in sizes)
    return initial, transition, spread * emission


@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize("K", [1, 2, 3, 6, 7, 20])
def test_normaliser_is_that_of_forward_backward(K, timed):
    for T in LENGTHS:
        initial, transition, emission = potentials(K, T, timed=timed, spread=10.0)
        expected = forward_backward(emission, MarkovChain(initial, transition)).log_normaliser
        # sums of at most 100 terms of some tens of nats, and a few roundings for each
        torch.testing.assert_close(log_normaliser(initial, transition, emission), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("K", [2, 9])
def test_marginals_are_those_of_forward_backward(K):
    for T in LENGTHS:
        initial, transition, emission = potentials(K, T)
        total, regimes, pairs = marginals(initial, transition, emission)
        expected = forward_backward(emission, MarkovChain(initial, transition))
        torch.testing.assert_close(total, expected.log_normaliser, rtol=0, atol=1e-10)
        torch.testing.assert_close(regimes, expected.smoothed, rtol=0, atol=1e-10)
        torch.testing.assert_close(pairs, expected.pairs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("K", [3, 9])
def test_second_derivatives(K):
    """Curvature is what the guide of parameters starts with."""
    initial, transition, emission = potentials(K, 5, batch=())
    arguments = tuple(value.requires_grad_() for value in (initial, transition, emission))
    assert torch.autograd.gradcheck(log_normaliser, arguments)
    assert torch.autograd.gradgradcheck(log_normaliser, arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("K", "spread"), [(2, 300.0), (6, 300.0), (9, 30.0)])
def test_nothing_underflows(K, spread, dtype):
    """Left-to-right chains whose steps are far apart, against the recursion in double precision."""
    T = 50
    _, _, emission = potentials(K, T, spread=spread)
    transition = torch.full((K, K), -math.inf, dtype=torch.float64)
    for k in range(K):
        transition[k, k : k + 2] = math.log(0.5) if k < K - 1 else 0.0
    initial = torch.full((K,), -math.inf, dtype=torch.float64)
    initial[0] = 0.0
    expected = forward_backward(emission, MarkovChain(initial, transition)).log_normaliser
    arguments = tuple(value.to(dtype).requires_grad_() for value in (initial.expand(2, K), transition, emission))
    total = log_normaliser(*arguments)
    # 50 terms of up to 1,000 nats, rounded in each of 6 rounds
    torch.testing.assert_close(total.double(), expected, rtol=10 * torch.finfo(dtype).eps, atol=0)
    gradients = torch.autograd.grad(total.sum(), arguments)
    assert all(gradient.isfinite().all() for gradient in gradients)
    torch.testing.assert_close(gradients[2].sum(-1), torch.ones(2, T, dtype=dtype), rtol=1e-3, atol=0)


@pytest.mark.parametrize("K", [2, 9])
def test_an_outlier_costs_what_it_costs(K):
    """A step of a density below any floor that stands for the impossible shifts the sum, and no path gets cheaper."""
    initial, transition, emission = potentials(K, 20)
    transition[0, 1] = -math.inf
    before = log_normaliser(initial, transition, emission)
    emission[:, 7] -= 1e6
    torch.testing.assert_close(log_normaliser(initial, transition, emission) + 1e6, before, rtol=0, atol=1e-8)


@pytest.mark.parametrize("K", [2, 9])
def test_impossible_series(K):
    initial, transition, emission = potentials(K, 20)
    emission[0, 4] = -math.inf
    emission.requires_grad_()
    total = log_normaliser(initial, transition, emission)
    assert total[0] == -math.inf
    assert total[1].isfinite()
    (gradient,) = torch.autograd.grad(total[1], emission)
    assert gradient.isfinite().all()


def test_product_is_the_product():
    for K, T in itertools.product((3, 9), LENGTHS):
        steps = torch.randn(2, T, K, K, dtype=torch.float64)
        expected = steps[:, 0].exp()
        for t in range(1, T):
            expected = expected @ steps[:, t].exp()
        torch.testing.assert_close(log_product(steps), expected.log(), rtol=0, atol=1e-10)
        shift = torch.randn(2, T, K, dtype=torch.float64)
        torch.testing.assert_close(
            log_product(steps, shift), log_product(steps + shift.unsqueeze(-2)), rtol=0, atol=1e-10
        )


@pytest.mark.parametrize("K", [3, 9])
def test_traced_and_mapped(K):
    """Value and gradient as the engine runs them: traced once, then mapped over sets of parameters."""

    def value_and_gradient(transition, emission):
        leaf = transition.detach().requires_grad_()
        total = log_normaliser(emission.new_zeros(K), leaf, emission)
        return total.detach(), *torch.autograd.grad(total, leaf)

    transitions = torch.randn(4, K, K, dtype=torch.float64)
    emission = torch.randn(41, K, dtype=torch.float64)
    graph = make_fx(value_and_gradient)(transitions[0], emission)
    mapped = torch.func.vmap(graph, in_dims=(0, None))(transitions, emission)
    for index, transition in enumerate(transitions):
        for ours, expected in zip(mapped, value_and_gradient(transition, emission), strict=True):
            torch.testing.assert_close(ours[index], expected, rtol=0, atol=1e-10)


def test_sampled_paths_have_the_chain_s_frequencies():
    K, T, number = 3, 6, 20_000
    initial, transition = torch.randn(K).log_softmax(-1), torch.randn(K, K).log_softmax(-1)
    transition[0, 2] = -math.inf
    transition = transition.log_softmax(-1)
    path = sample_chain(initial.expand(number, K), transition.expand(number, K, K), T)
    assert path.shape == (number, T)
    states = torch.nn.functional.one_hot(path, K).float()
    frequencies = torch.einsum("nti,ntj->tij", states[:, :-1], states[:, 1:]) / number
    marginal, expected = initial.exp(), []
    for _ in range(T - 1):
        expected.append(marginal.unsqueeze(-1) * transition.exp())
        marginal = expected[-1].sum(0)
    expected = torch.stack(expected)
    assert (frequencies[:, 0, 2] == 0).all()
    # 45 frequencies: the largest of as many standard normals stays below 4.5 in all but 1 of 3000 draws
    assert ((frequencies - expected).abs() <= 4.5 * (expected * (1 - expected) / number).sqrt() + 1e-7).all()
    assert sample_chain(initial, transition, 1).shape == (1,)


def test_series_of_regimes():
    """Draws have the moments of the mixture that each step is, and the density is that of the chain."""
    pi, P = torch.tensor([0.25, 0.75]), torch.tensor([[0.5, 0.5], [0.125, 0.875]])
    emission = MarginalIndependent(
        Normal(torch.tensor([[-1.0, 0.0], [3.0, 5.0]]), torch.tensor([[1.0, 2.0], [1.0, 0.5]]))
    )
    series = HiddenMarkovSeries(pi.log(), P.log(), emission, 4)
    assert series.expand([3]).batch_shape == (3,)
    y = series.expand([20_000]).sample()
    assert y.shape == (20_000, 4, 2)
    marginal = pi
    for t in range(4):
        mean = marginal @ emission.columns.loc
        square = marginal @ (emission.columns.loc.square() + emission.columns.scale.square())
        error = ((square - mean.square()) / 20_000).sqrt()
        assert ((y[:, t].mean(0) - mean).abs() <= 4.5 * error).all()  # 8 means
        marginal = marginal @ P
    some = y[:3].clone()
    some[0, 2:] = math.nan
    log_emission = series.log_emission(some)
    assert log_emission.shape == (3, 4, 2)
    assert (log_emission[0, 2:] == 0).all()
    expected = forward_backward(log_emission, MarkovChain(pi.log(), P.log())).log_normaliser
    torch.testing.assert_close(series.expand([3]).log_prob(some), expected, rtol=1e-5, atol=0)  # single precision


K, T, D = 2, 5, 3
EMISSIONS = {
    "counts": dist.Poisson(torch.tensor([1.0, 6.0])),
    "columns of Student's t": dist.StudentT(4.0, torch.tensor([[0.0] * D, [3.0] * D]), 1.0).to_event(1),
    "columns of categories": MarginalIndependent(dist.Categorical(torch.rand(K, D, 4) + 0.1)),
    "normal": MarginalNormal(torch.randn(K, D), torch.eye(D) + 0.3 * torch.ones(K, D, D)),
    "matrices": dist.Normal(torch.zeros(K, D, 2), torch.tensor([1.0, 2.0])[:, None, None]).to_event(2),
}


@pytest.mark.parametrize("name", EMISSIONS)
def test_any_distribution_is_an_emission(name):
    """The density is the sum over all paths of the emissions' own densities, step by step and regime by regime."""
    emission, pi, P = EMISSIONS[name], torch.tensor([0.25, 0.75]), torch.tensor([[0.5, 0.5], [0.125, 0.875]])
    series = HiddenMarkovSeries(pi.log(), P.log(), emission, T)
    y = series.expand([2]).sample()
    assert y.shape == (2, T, *emission.event_shape)
    for values, ours in zip(y, series.expand([2]).log_prob(y), strict=True):
        weights = []
        for path in itertools.product(range(K), repeat=T):
            weight = pi[path[0]].log() + sum(P[i, j].log() for i, j in itertools.pairwise(path))
            weights.append(weight + sum(emission.log_prob(v)[k] for k, v in zip(path, values, strict=True)))
        torch.testing.assert_close(ours, torch.stack(weights).logsumexp(0))


@pytest.mark.parametrize("name", ["columns of categories", "normal"])
def test_missing_entries_are_drawn_from_the_regimes_of_a_path(name):
    emission = EMISSIONS[name]
    series = HiddenMarkovSeries(torch.ones(K).log(), torch.ones(K, K).log(), emission, 2)
    y = torch.full((20_000, 2, D), math.nan)
    y[:, 1, 0] = 1.0
    filled = series.complete(y, torch.tensor([1, 0]).expand(len(y), 2))
    assert (filled[:, 1, 0] == 1.0).all()
    draws = emission.expand((20_000, K)).sample().float()
    # two samples of 20,000; 3 means
    error = ((filled[:, 0].var(0) + draws[:, 1].var(0)) / 20_000).sqrt()
    assert ((filled[:, 0].mean(0) - draws[:, 1].mean(0)).abs() < 4.5 * error).all()
