"""The hidden Markov model against sums over all paths, forward-backward, published draws and simulation."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from pplgen.models import GaussianHMM, LinearGaussianSSM
from pplgen.models._starts import hmm_start
from pyro import poutine
from torch.distributions import Categorical, MultivariateNormal, Normal, Poisson, Wishart, biject_to

import pplgen
from pplgen.distributions import InverseWishart, inverse_chi
from pplgen.errors import DataWarning, InputError
from pplgen.exact.hmm import forward_backward

NAN = math.nan
KINDS = ("diag", "full", "poisson", "categorical")
EXTRA = {kind: {"num_categories": 3} if kind == "categorical" else {} for kind in KINDS}
FIT = {"progress": False, "compile": "graph"}
CLOSE = {"rtol": 0, "atol": 1e-10}  # float64 sums of 64 terms


def story_of(kind, K=2, D=2, **options):
    return GaussianHMM(K, D, emission=kind, **EXTRA[kind], **options).double()


def draw(story):
    """One draw of the parameters from their prior."""
    with torch.no_grad():
        trace = poutine.trace(story.model).get_trace(None, num_rows=1)
    return {name: trace.nodes[name]["value"] for name in story.theta.names}


def short_series(story, num_steps=6, *, partly=True):
    """Three series: one whole, one with gaps, one that ends early."""
    y = story.simulate(3, num_steps).double()
    y[1, 2] = NAN
    y[1, 4, 0] = NAN if partly else 1.0
    y[2, 4:] = NAN
    story.observe_missing(y)
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


@pytest.mark.parametrize("partly", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_density_is_a_sum_over_all_paths(kind, partly):
    story = story_of(kind)
    y, theta = short_series(story, partly=partly), draw(story)
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


def test_published_posterior(reference_data):
    """The fit has the means and deviations of reference draws: posteriordb's ``hmm_example``."""
    y = torch.tensor(json.loads((reference_data / "posteriordb" / "hmm_example.json").read_text())["y"])
    known = {"pi": 0.5, "sigma": 1.0}
    story = GaussianHMM(2, 1, known=known, prior_mean=[[3.0], [10.0]], prior_mean_scale=1.0)
    fit = pplgen.fit(story, y.double()[None, :, None], restarts=2, steps=800, **FIT)
    assert fit.path.startswith("the traced graph")
    posterior = fit.to_datatree(draws=4000)["posterior"]
    published = {"A11": (0.66665, 0.1012), "A21": (0.07313, 0.0284), "mu1": (3.02152, 0.2245), "mu2": (8.82728, 0.1106)}
    P, mu = posterior["P"].values[0], posterior["mu"].values[0]
    ours = {"A11": P[:, 0, 0], "A21": P[:, 1, 0], "mu1": mu[:, 0, 0], "mu2": mu[:, 1, 0]}
    for name, (mean, deviation) in published.items():
        # 4,000 draws know a mean to .016 deviations, and a deviation to 1.1 %; the rest is the guide's
        assert abs(ours[name].mean() - mean) < 0.15 * deviation, name
        assert ours[name].std() == pytest.approx(deviation, rel=0.15), name


TRUTH = {
    "diag": {"mu": [[-1.0, 0.0], [2.0, 1.0]], "sigma": [[0.5, 1.0], [1.0, 0.5]]},
    "full": {"mu": [[-1.0, 0.0], [2.0, 1.0]], "Sigma": [[[1.0, 0.8], [0.8, 1.0]], [[0.5, -0.3], [-0.3, 1.0]]]},
    "poisson": {"rate": [[1.0, 6.0], [5.0, 2.0]]},
    "categorical": {"probability": [[[0.7, 0.2, 0.1]] * 2, [[0.1, 0.3, 0.6]] * 2]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_fit_recovers_what_it_was_simulated_from(kind):
    truth = {"P": [[0.9, 0.1], [0.2, 0.8]], **TRUTH[kind]}
    y = story_of(kind, known=truth).simulate(3, 160).double()
    y[0, 100:] = NAN
    y[1, 7] = NAN
    y[1, 20:30, 1] = NAN
    fit = pplgen.fit(story_of(kind), y, steps=200, optimiser="adam", **FIT)
    assert fit.path.startswith("the traced graph")
    posterior = fit.to_datatree(draws=500)["posterior"]
    for name, value in truth.items():
        sample = posterior[name].values[0]
        # 14 numbers at most: errors stay below 4 in all but 1 of 1,100 data sets;
        # few steps know a deviation to a fifth
        assert (np.abs(sample.mean(0) - np.array(value)) < 5 * sample.std(0)).all(), name


def test_starts_find_regimes_that_differ_in_spread_alone():
    truth = {"P": [[0.98, 0.02], [0.05, 0.95]], "mu": 0.0, "sigma": [[0.5], [2.0]]}
    y = GaussianHMM(2, 1, known=truth).double().simulate(2, 500)
    for _ in range(3):
        story = GaussianHMM(2, 1).double()
        story.initialise(y)
        sigma = story.theta.guide_mean()["sigma"].detach().sort(dim=0).values[:, 0]
        # each regime has hundreds of steps, so that a deviation is known to some per cent
        torch.testing.assert_close(sigma, torch.tensor([0.5, 2.0]).double(), rtol=0.2, atol=0)


def test_weights_are_repetitions():
    y = story_of("diag", known=TRUTH["diag"]).simulate(3, 60)
    once, repeated = story_of("diag"), story_of("diag")
    torch.manual_seed(0)
    once.initialise(y, weights=torch.tensor([2.0, 1.0, 0.0]))
    torch.manual_seed(1)
    repeated.initialise(y[[0, 0, 1]])
    for name, value in once.theta.guide_mean().items():
        # both stand at the same mode, which the climb finds to the root of its tolerance
        torch.testing.assert_close(value, repeated.theta.guide_mean()[name], rtol=0, atol=1e-3)
    torch.testing.assert_close(once.theta.unit, repeated.theta.unit, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_gaps_are_filled_from_the_regime_s_emissions(kind):
    """Means along a known path are those of the emissions, given the seen entry where columns depend on one another."""
    story = story_of(kind, known={"P": 0.5, "pi": 0.5, **TRUTH[kind]})
    y = torch.full((20_000, 2, 2), NAN, dtype=torch.float64)
    y[:, 1, 0] = 1.0
    story.observe_missing(y)
    filled = story.fill(y, torch.tensor([0, 1]).expand(len(y), 2))
    assert (filled[:, 1, 0] == 1.0).all()
    first = next(iter(TRUTH[kind].values()))
    means = torch.tensor(first).double()
    if kind == "categorical":
        means = (means * torch.arange(3)).sum(-1)
    expected = torch.stack([means[0, 0], means[0, 1], means[1, 1]])
    if kind == "full":
        expected[2] += -0.3 / 0.5 * (1.0 - 2.0)
    sample = torch.stack([filled[:, 0, 0], filled[:, 0, 1], filled[:, 1, 1]])
    assert ((sample.mean(1) - expected).abs() < 4 * sample.std(1) / math.sqrt(len(y))).all()  # 3 means


def test_regimes_are_numbered_by_their_first_mean_or_as_their_priors_are():
    y = story_of("diag", known=TRUTH["diag"]).simulate(3, 60)
    for prior, expected in (([[-1.0, 0.0], [2.0, 0.0]], [0, 1]), ([[2.0, 0.0], [-1.0, 0.0]], [1, 0]), (None, [0, 1])):
        story = story_of("diag", prior_mean=prior)
        story.initialise(y)
        assert story.theta.guide_mean()["mu"][:, 0].argsort().tolist() == expected


def test_starts_are_chosen_by_whole_series_where_first_steps_are_missing(monkeypatch):
    y = story_of("diag", K=2, D=1, known={"mu": [[-3.0], [3.0]], "sigma": 0.5}).simulate(2, 60)
    y[:, 0] = NAN
    totals, run_em = [], hmm_start._run_em

    def recorded(*arguments):
        totals.append(run_em(*arguments)[0])
        return run_em(*arguments)

    monkeypatch.setattr(hmm_start, "_run_em", recorded)
    story_of("diag", D=1).initialise(y)
    assert all(total < 0 for total in totals)


@pytest.mark.parametrize("kind", KINDS)
def test_constants_are_what_the_priors_know_of(kind):
    scales = {"categorical": [], "poisson": ["prior_mean", "prior_mean_scale"]}
    expected = scales.get(kind, ["prior_mean", "prior_mean_scale", "prior_scale"])
    assert list(story_of(kind).constants) == expected


def test_known_values_are_plain_whatever_they_came_as():
    mu = [[1.0, 2.0], [3.0, 4.0]]
    for value in (mu, torch.tensor(mu), np.array(mu), list(torch.tensor(mu)), tuple(np.array(mu))):
        for story in (GaussianHMM(2, 2, known={"mu": value}), LinearGaussianSSM(2, 2, known={"C": value})):
            assert next(iter(story.config["known"].values())) == mu


def test_one_regime_is_independent_steps():
    story = GaussianHMM(1, 2).double()
    y, theta = torch.randn(2, 5, 2, dtype=torch.float64), draw(story)
    expected = Normal(theta["mu"][0], theta["sigma"][0]).log_prob(y).sum((1, 2))
    trace = poutine.trace(poutine.condition(story.model, theta)).get_trace(y)
    trace.compute_log_prob()
    torch.testing.assert_close(trace.nodes["y"]["log_prob"], expected, **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_inverse_wishart_and_inverse_chi(kind):
    """Draws of the covariances' priors have the moments in closed form, and the transform its Jacobian."""
    if kind == "diag":
        sigma = inverse_chi(torch.tensor([1.0, 3.0]).double(), 8.0).sample((20_000,))
        expected = torch.tensor([1.0, 9.0]).double() / 6  # E 1 / ChiSquared(8)
        sample = sigma.square()
        assert ((sample.mean(0) - expected).abs() < 4 * sample.std(0) / math.sqrt(20_000)).all()
    elif kind == "full":
        scale = torch.tensor([0.5, 1.0, 2.0]).double()
        prior = InverseWishart(12.0, scale)
        sample = prior.expand((20_000,)).sample()
        expected = torch.diag(scale.square()) / (12 - 3 - 1)
        assert ((sample.mean(0) - expected).abs() < 4 * sample.std(0) / math.sqrt(20_000)).all()
        Sigma = sample[0]
        precision = torch.linalg.inv(Sigma)
        wishart = Wishart(torch.tensor(12.0).double(), torch.diag(1 / scale.square()))
        # the inverse has the Jacobian |Sigma|^-(D + 1)
        torch.testing.assert_close(prior.log_prob(Sigma), wishart.log_prob(precision) - 4 * Sigma.logdet(), **CLOSE)
        transform = biject_to(prior.support)
        u = transform.inv(Sigma)
        torch.testing.assert_close(transform(u), Sigma, **CLOSE)
        i, j = torch.tril_indices(3, 3)
        jacobian = torch.autograd.functional.jacobian(lambda u: transform(u)[i, j], u)
        torch.testing.assert_close(transform.log_abs_det_jacobian(u, Sigma), jacobian.slogdet().logabsdet, **CLOSE)


def test_saved_and_loaded(tmp_path):
    y = GaussianHMM(2, 2, emission="full").simulate(2, 30)
    y[0, 5, 1] = NAN
    fit = pplgen.fit(GaussianHMM(2, 2, emission="full", prior_mean=[0.0, 1.0]), y, steps=30, progress=False)
    fit.save(tmp_path / "fit")
    loaded = pplgen.load(tmp_path / "fit")
    assert loaded.story.config == fit.story.config
    assert torch.equal(loaded.log_likelihood(y), fit.log_likelihood(y))


@pytest.mark.parametrize("kind", KINDS)
def test_constant_series_stay_finite(kind):
    y = torch.full((2, 12, 2), 1.0)
    y[..., 1] = torch.arange(12) % 3
    with pytest.warns(DataWarning, match="column 'x0' is constant"):
        fit = pplgen.fit(GaussianHMM(3, 2, emission=kind, **EXTRA[kind]), y, steps=30, progress=False)
    assert math.isfinite(fit.elbo)
    assert fit.log_likelihood(y).isfinite().all()


def test_bad_data():
    y = torch.randn(2, 4, 2)
    with pytest.raises(InputError, match="8 steps are too few for 9 regimes; give at least 9"):
        pplgen.fit(GaussianHMM(9, 2), y, progress=False)
    with pytest.raises(InputError, match=r"expects \(num_series, num_steps, 1\)"):
        pplgen.fit(GaussianHMM(2, 1), y, progress=False)
    with pytest.raises(InputError, match="1 step is too few to train on"):
        pplgen.fit(GaussianHMM(2, 2), y[:, :1], progress=False)
    with pytest.raises(InputError, match=r"series 1, step 1, column 1: .*: expected a count 0, 1, 2"):
        pplgen.fit(GaussianHMM(2, 2, emission="poisson"), y, progress=False)
    wrong = torch.ones(1, 4, 1)
    wrong[0, 2] = 3
    with pytest.raises(InputError, match="series 1, step 3, column 1: 3: expected a whole number below num_categ"):
        pplgen.fit(GaussianHMM(2, 1, emission="categorical", num_categories=3), wrong, progress=False)
    y[..., 1] = NAN
    with pytest.raises(InputError, match="column 'x1' has no observed value"):
        pplgen.fit(GaussianHMM(2, 2), y, progress=False)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_regimes": 0}, "num_regimes=0: expected a whole number of at least 1"),
        ({"emission": "round"}, "emission='round': expected one of diag, full, categorical, poisson"),
        ({"emission": "categorical"}, "num_categories: required by categorical emissions"),
        ({"num_categories": 3}, "num_categories=3: these emissions accept only prior_mean"),
        ({"emission": "poisson", "prior_scale": 1.0}, "these emissions accept only prior_mean, prior_mean_scale"),
        ({"emission": "poisson", "prior_mean": -1.0}, "prior_mean.*positive, finite"),
        ({"prior_mean": [[1.0], [2.0], [3.0]]}, "expected one list for each of 2 regimes"),
        ({"concentration": 0}, "concentration=0: expected a positive"),
        ({"known": [3]}, r"known=\[3\]: expected a mapping from parameter names to values"),
        ({"known": {"rate": 1.0}}, "known: 'rate' is not a parameter of this story; expected some of pi, P, mu, sigma"),
        ({"known": {"P": [[0.5, 0.6], [0.1, 0.9]]}}, "known: 'P' has values outside its support"),
    ],
)
def test_bad_options(options, sentence):
    with pytest.raises(InputError, match=sentence):
        GaussianHMM(**options)
