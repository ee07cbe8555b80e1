"""The switching linear dynamical system against enumeration, published values and the truth behind simulations."""

import math

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pplgen.models import SwitchingLDS
from pyro import poutine
from pyro.infer import TraceEnum_ELBO

import pplgen
from pplgen.distributions.switching_observations import Emission
from pplgen.distributions.switching_path import Dynamics, SwitchingLinearGaussianPath
from pplgen.errors import InputError
from pplgen.exact.enumeration import enumerate_regimes
from pplgen.exact.hmm import forward_backward
from pplgen.posterior.draws import row_densities
from pplgen.story.isolation import seeded
from pplgen.story.pair import Pair
from pplgen.verification.switching_systems import GROWTH

TWELVE_QUARTERS = -19.794290757
OPTIONS = [{}, {"recurrent": True}, {"switching_emission": True}, {"covariance": "diag"}]
MISTAKES = [
    ({"guide": "exact"}, "guide='exact': expected one of responsibilities, markov, mean-field"),
    ({"num_regimes": 0}, "num_regimes=0: expected a whole number of at least 1"),
    ({"known": {"a": 1.0}}, "known: 'a' is not a parameter of this story"),
    ({"known": {"A": [1.0]}}, "known: 'A' has shape (1,); expected (2, 2, 2)"),
    ({"known": {"q": -1.0}}, "known: 'q' has values outside its support"),
]


def name_of(options):
    return "-".join(options) or "plain"


@pytest.fixture
def growth(reference_data):
    """All quarterly growth rates, as one series."""
    table = pd.read_csv(reference_data / "series" / "hamilton_rgnp.csv")
    return torch.tensor(table["rgnp_growth_pct"].to_numpy())[None, :, None]


def drawn_series(story, num_steps, seed=0):
    """Parameters, a path and a series of the story's, from its prior."""
    with seeded(seed), torch.no_grad():
        story.num_steps.fill_(num_steps)
        trace = poutine.trace(story.model).get_trace(None, num_rows=1)
    values = {name: trace.nodes[name]["value"] for name in trace.stochastic_nodes if name != "data"}
    return {name: value for name, value in values.items() if name not in "xy"}, values["x"], trace.nodes["y"]["value"]


def parts(theta):
    return (kind(**{name: theta[name] for name in kind._fields if name in theta}) for kind in (Dynamics, Emission))


def markov_model(theta, x, y, recurrent):
    """The story with its regimes enumerated one after the other, at a given path."""
    moves, emission = parts(theta)
    C, d, r = emission.each()
    several = len(C) > 1
    s = None
    for t in pyro.markov(range(x.shape[0])):
        logits = moves.pi.log()
        if s is not None:
            logits = moves.log_transition(x[t - 1])[s] if recurrent else moves.P.log()[s]
        s = pyro.sample(f"s_{t}", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})
        mean, L = moves.m0, torch.diag(moves.s0)
        if t > 0:
            mean, L = (moves.A @ x[t - 1] + moves.b)[s], moves.L[s]
        pyro.sample(f"x_{t}", dist.MultivariateNormal(mean, scale_tril=L), obs=x[t])
        seen = dist.Normal((C @ x[t] + d)[s if several else 0], r[s if several else 0])
        pyro.sample(f"y_{t}", seen.to_event(1), obs=y[t])


@pytest.mark.parametrize("options", OPTIONS, ids=name_of)
def test_density_is_that_of_enumerated_markov_regimes(options):
    """TraceEnum_ELBO over pyro.markov gives the same number, to rounding."""
    story = SwitchingLDS(3, 2, 2, **options).double()
    theta, x, y = drawn_series(story, 6)
    with poutine.block():
        conditioned = poutine.condition(story.model, {**theta, "x": x})
        trace = poutine.trace(conditioned).get_trace(y)
        trace.compute_log_prob()
    ours = (trace.nodes["x"]["log_prob"] + trace.nodes["y"]["log_prob"]).item()
    elbo = TraceEnum_ELBO(max_plate_nesting=0)
    theirs = -elbo.loss(lambda: markov_model(theta, x[0], y[0], "recurrent" in options), lambda: None)
    assert ours == pytest.approx(theirs, abs=1e-9)


@pytest.mark.parametrize("options", OPTIONS, ids=name_of)
def test_missing_entries_and_ends_of_series_are_marginalised(options):
    """A series that ends earlier has the density of the shorter one, whatever its path does after the end."""
    story = SwitchingLDS(2, 2, 3, **options).double()
    theta, x, y = drawn_series(story, 9)
    padded = y.clone()
    padded[:, 6:] = torch.nan

    def ratio(x, y):
        trace = poutine.trace(poutine.condition(story.model, {**theta, "x": x})).get_trace(y)
        guide = poutine.trace(poutine.condition(story.guide, {**theta, "x": x})).get_trace(y)
        terms = [*((trace, name) for name in "xy"), (guide, "x")]
        for each in (trace, guide):
            each.compute_log_prob()
        return sum(sign * each.nodes[name]["log_prob"] for sign, (each, name) in zip((1, 1, -1), terms, strict=True))

    with torch.no_grad():
        torch.testing.assert_close(ratio(x, padded), ratio(x[:, :6], y[:, :6]), rtol=0, atol=1e-9)
        holes = y.clone()
        holes[:, 2, 1] = torch.nan
        assert ratio(x, holes).isfinite().all()


def test_simulated_series_have_the_moments_of_the_story():
    """First steps: x_1 and, regimes apart, x_2 and y; 20,000 series, bounds of five standard errors."""
    known = {**GROWTH, "pi": [0.5, 0.5]}
    story = SwitchingLDS(2, 1, 1, known=known, switching_emission=False).double()
    with seeded(1):
        y = story.simulate(20_000, 3)
    assert y.shape == (20_000, 3, 1)
    # y_1 = x_1 + noise: mean 0, variance 1.25; y_2 has mean .575 (.3) + .425 (-.4), for p(s_2) = (.425, .575)
    assert y[:, 0].mean().item() == pytest.approx(0.0, abs=5 * math.sqrt(1.25 / 20_000))
    assert y[:, 1].mean().item() == pytest.approx(0.575 * 0.3 - 0.425 * 0.4, abs=5 * y[:, 1].std().item() / 141)


def log_weights(fit, num_draws):
    """log p(x, y) - log q(x) at draws of the guide, shape ``(num_draws,)``."""
    with seeded(1), fit.pair.isolated(), torch.no_grad():
        return row_densities(fit.pair, {}, num_draws, fit.pair.data).log_likelihood[:, 0]


def test_bound_and_regimes_on_twelve_quarters(growth):
    """Enumeration of 4,096 paths gives log p(y) and the regimes' probabilities."""
    y = growth[:, :12]
    story = SwitchingLDS(2, 1, 1, known=GROWTH)
    fit = pplgen.fit(story, y, steps=400, learning_rate=0.02, compile="graph", progress=False)
    weights = log_weights(fit, 10_000)
    # of 1,000 draws each, with weights that have a standard deviation of half a nat, more while the guide is rough
    bounds = weights.view(-1, 1000).logsumexp(1) - math.log(1000)
    assert bounds.mean().item() == pytest.approx(TWELVE_QUARTERS, abs=0.02 + 4 * bounds.std().item() / 10**0.5)
    assert weights.mean().item() > TWELVE_QUARTERS - 0.5
    smoothed = fit.smooth(draws=8000)  # standard error at most .006
    _, exact = enumerate_regimes(y[0], fit.story.state_space(y))
    np.testing.assert_allclose(smoothed["regime_probability"].values[0], exact.probabilities, atol=0.02)


@pytest.mark.parametrize("options", OPTIONS, ids=name_of)
def test_regimes_given_a_path_are_those_of_forward_backward(options):
    """The path's chain, summed out, is the density of path and series; its marginals are probabilities."""
    story = SwitchingLDS(3, 2, 2, **options).double()
    theta, x, y = drawn_series(story, 7)
    with torch.no_grad():
        given = poutine.condition(story.regimes_given, theta)(y, x)
        trace = poutine.trace(poutine.condition(story.model, {**theta, "x": x})).get_trace(y)
    posterior = forward_backward(given.log_emission, given.chain)
    torch.testing.assert_close(posterior.smoothed.sum(-1), torch.ones(1, 7).double())
    trace.compute_log_prob()
    start = dist.MultivariateNormal(theta["m0"], scale_tril=torch.diag(theta["s0"])).log_prob(x[:, 0])
    expected = trace.nodes["x"]["log_prob"] - start
    if options.get("switching_emission"):
        expected = expected + trace.nodes["y"]["log_prob"]
    torch.testing.assert_close(posterior.log_normaliser, expected, rtol=0, atol=1e-9)


def test_learns_from_scratch():
    """Two regimes that turn at different speeds: the segmentation of the true parameters is all but reached."""
    truth = {
        "pi": [0.5, 0.5],
        "P": [[0.95, 0.05], [0.05, 0.95]],
        "m0": [0.0, 0.0],
        "s0": [1.0, 1.0],
        "A": [[[0.96, -0.12], [0.12, 0.96]], [[0.8, -0.55], [0.55, 0.8]]],
        "b": [[0.3, 0.0], [-0.3, 0.3]],
        "q": 0.2,
        "l": 0.0,
        "C": torch.randn(6, 2, generator=torch.Generator().manual_seed(0)).tolist(),
        "d": 0.0,
        "r": 0.5,
    }
    source = SwitchingLDS(2, 2, 6, known=truth)
    with seeded(0), torch.no_grad():
        dynamics, emission = parts(source.theta.guide_mean())
        path = SwitchingLinearGaussianPath(dynamics, torch.ones(2, 200, dtype=torch.bool))
        x, s = path.sample_with_regimes()
        y = emission.observations(path, x).sample()
    fit = pplgen.fit(SwitchingLDS(2, 2, 6), y, steps=150, compile="graph", progress=False)
    assert fit.path == "the traced graph"
    regimes = fit.smooth(draws=50)["regime_probability"].values.argmax(-1)
    agreement = (regimes == s.numpy()).mean()
    assert max(agreement, 1 - agreement) > 0.94


@pytest.mark.parametrize("guide", ["responsibilities", "markov", "mean-field"])
def test_every_guide_bounds_the_likelihood(growth, guide):
    """Sixteen evaluations of the bound, none of which has a mean above the exact value by four standard errors."""
    y = growth[:, :12]
    pair = Pair.of_story(SwitchingLDS(2, 1, 1, known=GROWTH, guide=guide), y)
    with pair.isolated(), torch.no_grad():
        weights = row_densities(pair, {}, 500, pair.data).log_likelihood[:, 0]
    assert weights.isfinite().all()
    assert weights.mean() < TWELVE_QUARTERS + 4 * weights.std() / math.sqrt(500)


@pytest.mark.parametrize(("options", "message"), MISTAKES)
def test_mistakes_are_said_in_a_sentence(options, message):
    with pytest.raises(InputError) as raised:
        SwitchingLDS(**options)
    assert message in str(raised.value)


def test_hard_series_give_a_sentence_or_a_finite_fit():
    torch.manual_seed(0)
    walk = torch.randn(1, 40, 2).cumsum(1)
    flat, gap = walk.clone(), walk.clone()
    flat[..., 0], gap[..., 0] = 3.0, torch.nan
    with pytest.raises(InputError, match="1 step is too few to train on"):
        pplgen.fit(SwitchingLDS(), walk[:, :1], steps=5, progress=False)
    with pytest.raises(InputError, match="no observed value"):
        pplgen.fit(SwitchingLDS(), gap, steps=5, progress=False)
    with pytest.warns(pplgen.errors.DataWarning, match="constant"):
        fits = [pplgen.fit(SwitchingLDS(), flat, steps=5, progress=False)]
    fits.append(pplgen.fit(SwitchingLDS(num_regimes=5), walk[:, :3], steps=5, progress=False))
    fits.append(pplgen.fit(SwitchingLDS(), walk + 1000, steps=5, progress=False))
    assert all(math.isfinite(fit.elbo) for fit in fits)


def test_saved_and_loaded(tmp_path):
    torch.manual_seed(0)
    y = torch.randn(3, 30, 2).cumsum(1)
    fit = pplgen.fit(SwitchingLDS(), y, steps=5, batch_size=2, progress=False)
    fit.save(tmp_path / "run")
    loaded = pplgen.load(tmp_path / "run", y)
    torch.testing.assert_close(loaded.log_likelihood(draws=5), fit.log_likelihood(draws=5))


def test_intervals_through_a_long_gap_hold_the_truth_at_their_rate():
    """Forty series of known parameters, in each twelve steps lost: long enough for the regime to change unseen."""
    turns = [[[0.98, -0.15], [0.15, 0.98]], [[0.87, 0.48], [-0.48, 0.87]]]
    known = {
        "pi": [0.5, 0.5], "P": [[0.95, 0.05], [0.05, 0.95]], "A": turns, "b": [[0.2, 0.0], [-0.2, 0.3]],
        "q": [[0.12, 0.12], [0.12, 0.12]], "l": [[0.0], [0.0]], "m0": [0.0, 0.0], "s0": [1.0, 1.0],
        "C": [[1.0, 0.0], [0.0, 1.0]], "d": [0.0, 0.0], "r": [0.15, 0.15],
    }  # fmt: skip
    story = SwitchingLDS(2, 2, 2, known=known)
    with seeded(0):
        y = story.simulate(40, 40)
    seen = y.clone()
    seen[:, 15:27] = torch.nan
    fit = pplgen.fit(story, seen, steps=2, compile="off", progress=False)
    low, high = fit.impute(draws=200, seed=1)[:, :, 15:27].quantile(torch.tensor([0.05, 0.95]), dim=0)
    inside = ((y[:, 15:27] > low) & (y[:, 15:27] < high)).float().mean((1, 2))
    # four standard errors of forty series, whose steps hang together
    assert float(inside.mean()) == pytest.approx(0.9, abs=4 * float(inside.std()) / 40**0.5)
    assert float(inside.std()) < 0.2
