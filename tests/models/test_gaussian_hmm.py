"""The hidden Markov model against sums over all paths, forward-backward, published draws and simulation."""

import itertools
import json
import math

import numpy as np
import pyro
import pytest
import torch
from pplgen.models import GaussianHMM
from pyro import poutine
from torch.distributions import Categorical, MultivariateNormal, Normal, Poisson

import pplgen
from pplgen.errors import DataWarning, InputError
from pplgen.exact.hmm import forward_backward

NAN = math.nan
KINDS = ("diag", "full", "poisson", "categorical")
CLOSE = {"rtol": 0, "atol": 1e-10}  # float64 sums of 64 terms


def story_of(kind, K=2, D=2, **options):
    extra = {"num_categories": 3} if kind == "categorical" else {}
    return GaussianHMM(K, D, emission=kind, **extra, **options).double()


def draw(story):
    """One draw of the parameters from their prior."""
    with torch.no_grad():
        trace = poutine.trace(story.model).get_trace(None, num_rows=1)
    return {name: trace.nodes[name]["value"] for name in story.theta.names}


def short_series(story, num_steps=6):
    """Three series: one whole, one with gaps, one that ends early."""
    y = story.simulate(3, num_steps).double()
    y[1, 2] = NAN
    y[1, 4, 0] = NAN
    y[2, 4:] = NAN
    story.notice(y)
    return y


def step_density(kind, theta, k, step):
    """Log density of the seen entries of one step, by torch's distributions."""
    seen = ~step.isnan()
    if not seen.any():
        return torch.zeros((), dtype=torch.float64)
    x = step[seen]
    if kind == "diag":
        return Normal(theta["mu"][k][seen], theta["sigma"][k][seen]).log_prob(x).sum()
    if kind == "full":
        return MultivariateNormal(theta["mu"][k][seen], theta["Sigma"][k][seen][:, seen]).log_prob(x)
    if kind == "poisson":
        return Poisson(theta["rate"][k][seen]).log_prob(x).sum()
    return Categorical(theta["probability"][k][seen]).log_prob(x).sum()


@pytest.mark.parametrize("kind", KINDS)
def test_density_is_a_sum_over_all_paths(kind):
    story = story_of(kind)
    y, theta = short_series(story), draw(story)
    trace = poutine.trace(poutine.condition(story.model, theta)).get_trace(y)
    trace.compute_log_prob()
    K, T = 2, y.shape[1]
    for series, ours in zip(y, trace.nodes["y"]["log_prob"], strict=True):
        weights = []
        for path in itertools.product(range(K), repeat=T):
            weight = theta["pi"][path[0]].log() + sum(theta["P"][i, j].log() for i, j in itertools.pairwise(path))
            weights.append(
                weight + sum(step_density(kind, theta, k, step) for k, step in zip(path, series, strict=True))
            )
        torch.testing.assert_close(ours, torch.stack(weights).logsumexp(0), **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_density_is_the_state_space_s_normaliser(kind):
    story = story_of(kind, K=3)
    y, theta = short_series(story, 40), draw(story)
    trace = poutine.trace(poutine.condition(story.model, theta)).get_trace(y)
    trace.compute_log_prob()
    chain, log_emission, regimes = poutine.condition(story.state_space, theta)(y)
    assert regimes.tolist() == [0, 1, 2]
    torch.testing.assert_close(
        trace.nodes["y"]["log_prob"], forward_backward(log_emission, chain).log_normaliser, **CLOSE
    )
