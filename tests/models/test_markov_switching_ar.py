"""The switching autoregression against sums over all paths, statsmodels, Hamilton's maximum and simulation."""

import itertools
import math

import numpy as np
import pytest
import torch
from pplgen.models import MarkovSwitchingAR
from pyro import poutine
from torch.distributions import Normal, biject_to

import pplgen
from pplgen.distributions.switching_autoregression import MarkovSwitchingAutoregression, stationary
from pplgen.errors import DataWarning, InputError
from pplgen.exact.hmm import forward_backward

NAN = math.nan
HAMILTON_MAXIMUM = -181.26339
CLOSE = {"rtol": 0, "atol": 1e-9}  # float64 sums of some hundred terms
FIT = {"progress": False, "compile": "graph"}
STORIES = {
    "hamilton": {"num_regimes": 2, "order": 2},
    "three": {"num_regimes": 3, "order": 1, "switching_variance": True},
    "everything": {"num_regimes": 2, "order": 3, "switching_variance": True, "switching_coefficients": True},
    "variance": {"num_regimes": 2, "order": 2, "switching_mean": False, "switching_variance": True},
    "no lags": {"num_regimes": 3, "order": 0, "switching_variance": True},
}


def draw(story):
    """One draw of the parameters from their prior."""
    with torch.no_grad():
        trace = poutine.trace(story.model).get_trace(None, num_rows=1)
    return {name: trace.nodes[name]["value"] for name in story.theta.names}


def density(story, theta, y):
    """Log density of each series at values of the parameters."""
    trace = poutine.trace(poutine.condition(story.model, theta)).get_trace(y)
    trace.compute_log_prob()
    return trace.nodes["y"]["log_prob"]


@pytest.fixture
def growth(reference_data):
    """Growth of real GNP, shape ``(1, 135, 1)``, and the flag of recessions."""
    table = np.genfromtxt(reference_data / "series" / "hamilton_rgnp.csv", delimiter=",", skip_header=1)
    return torch.from_numpy(table[:, 1].copy())[None, :, None], table[:, 2].astype(bool)


@pytest.mark.parametrize("name", STORIES)
def test_density_is_a_sum_over_all_paths(name):
    story = MarkovSwitchingAR(**STORIES[name]).double()
    K, p, T = story.K, story.order, 6
    theta, y = draw(story), torch.randn(2, T, 1, dtype=torch.float64)
    y[1, 5:] = NAN
    mu, sigma = (theta[name].expand(K) for name in ("mu", "sigma"))
    phi = theta["phi"].expand(K, p) if p else torch.zeros(K, 0)
    # the stationary distribution as the left eigenvector of the largest eigenvalue, one
    values, vectors = np.linalg.eig(theta["P"].T.numpy())
    pi = np.real(vectors[:, np.real(values).argmax()])
    pi = torch.from_numpy(pi / pi.sum())
    for series, end, ours in zip(y[..., 0], (6, 5), density(story, theta, y), strict=True):
        weights = []
        for path in itertools.product(range(K), repeat=end):
            weight = pi[path[0]].log() + sum(theta["P"][i, j].log() for i, j in itertools.pairwise(path))
            for t in range(p, end):
                s = path[t]
                lags = sum(phi[s, i - 1] * (series[t - i] - mu[path[t - i]]) for i in range(1, p + 1))
                weight = weight + Normal(mu[s] + lags, sigma[s]).log_prob(series[t])
            weights.append(weight)
        torch.testing.assert_close(ours, torch.stack(weights).logsumexp(0), **CLOSE)


@pytest.mark.parametrize("name", STORIES)
def test_density_is_the_state_space_s_normaliser(name):
    story = MarkovSwitchingAR(**STORIES[name], prior_mean_scale=1.0).double()
    theta, y = draw(story), torch.randn(3, 50, 1, dtype=torch.float64)
    theta["sigma"] = theta["sigma"].clamp_min(0.5)  # products of matrices lose paths 700 nats below the best
    y[0, 30:] = NAN
    y[1, 3:] = NAN
    chain, log_emission, regimes = poutine.condition(story.state_space, theta)(y)
    assert sorted(regimes.unique().tolist()) == list(range(story.K))
    torch.testing.assert_close(density(story, theta, y), forward_backward(log_emission, chain).log_normaliser, **CLOSE)
    torch.testing.assert_close(chain.log_transition.exp().sum(-1), torch.ones(len(regimes), dtype=torch.float64))


def test_a_density_whose_paths_underflow_is_not_finite():
    """Each step excludes one regime by a million nats and more: no path is left in products of matrices."""
    series = MarkovSwitchingAutoregression(
        torch.tensor([[0.7, 0.3], [0.4, 0.6]]).double(),
        torch.tensor([5.0, -5.0]).double(),
        torch.tensor([1e-3, 1e-3]).double(),
        torch.tensor([[0.9, 0.9, 0.9], [-0.9, -0.9, -0.9]]).double(),
        num_steps=50,
        memory=3,
    )
    y = torch.linspace(-1, 1, 50).double()[:, None]
    assert series.log_prob(y).item() == -math.inf


# statsmodels 0.15 lays switching variances along the wrong lag where there is more than one
@pytest.mark.parametrize(
    ("K", "p", "variance", "coefficients"),
    [(2, 4, False, False), (2, 1, True, True), (3, 1, True, True), (2, 3, False, True), (3, 2, False, True)],
)
def test_density_is_that_of_statsmodels(K, p, variance, coefficients):
    api = pytest.importorskip("statsmodels.api")
    rng = np.random.default_rng(K + p)
    y = 0.3 * rng.normal(size=60).cumsum()
    options = {"switching_variance": variance, "switching_coefficients": coefficients}
    story = MarkovSwitchingAR(K, p, **options).double()
    theirs = api.tsa.MarkovAutoregression(
        y, k_regimes=K, order=p, switching_ar=coefficients, switching_variance=variance
    )
    P, mu = rng.dirichlet(np.ones(K), size=K), rng.normal(size=K)
    sigma, phi = rng.uniform(0.5, 1.5, size=(K, 1)), 0.3 * rng.normal(size=(K, p))
    values = {
        "P": iter(P.T[:-1].flatten()),
        "mu": iter(mu),
        "sigma": iter((sigma if variance else sigma[:1])[:, 0] ** 2),
    }
    values["phi"] = iter((phi.T if coefficients else phi[0]).flatten())  # all regimes of one lag after the other
    if coefficients and theirs.param_names[-p:] == [f"ar.L{i + 1}[{K - 1}]" for i in range(p)]:
        values["phi"] = iter(phi.flatten())  # or all lags of one regime
    order = {"p": "P", "const": "mu", "sigma2": "sigma", "ar": "phi"}
    names = [name.partition("[")[0].partition(".")[0] for name in theirs.param_names]
    parameters = np.array([next(values[order[name]]) for name in names])
    if not variance:
        sigma = sigma[0]
    theta = {"P": P, "mu": mu, "sigma": sigma.squeeze(), "phi": phi if coefficients else phi[0]}
    theta = {name: torch.as_tensor(value) for name, value in theta.items()}
    ours = density(story, theta, torch.from_numpy(y)[None, :, None]).item()
    assert ours == pytest.approx(theirs.loglike(parameters), abs=1e-8)


def test_hamilton(growth):
    """The maximum of the likelihood is Hamilton's; at the posterior mean, recessions are those of the NBER."""
    y, recession = growth
    fit = pplgen.fit(MarkovSwitchingAR(2, 4), y, restarts=2, steps=400, optimiser="adam", **FIT)
    assert fit.path.startswith("the traced graph")
    tree = fit.to_datatree(draws=500)
    names = ("P", "mu", "sigma", "phi")
    mean = {name: torch.tensor(tree["posterior"][name].mean(("chain", "draw")).values).double() for name in names}
    story = fit.story.double()
    chain, log_emission, regimes = poutine.condition(story.state_space, mean)(y)
    smoothed = forward_backward(log_emission, chain).smoothed[0]
    probability = smoothed[:, regimes == 0].sum(-1)[4:].numpy()
    flag = recession[4:]
    area = (probability[flag][:, None] > probability[~flag]).mean()
    assert area > 0.9
    supports = story.theta.supports
    u = {name: biject_to(supports[name]).inv(mean[name]).clone().requires_grad_() for name in names}
    climb = torch.optim.LBFGS(list(u.values()), max_iter=200, line_search_fn="strong_wolfe", tolerance_change=1e-12)

    def loss():
        climb.zero_grad()
        value = -density(story, {name: biject_to(supports[name])(u[name]) for name in names}, y).sum()
        value.backward()
        return value

    climb.step(loss)
    assert -loss().item() == pytest.approx(HAMILTON_MAXIMUM, abs=1e-3)


def test_a_fit_recovers_what_it_was_simulated_from():
    truth = {"P": [[0.9, 0.1], [0.2, 0.8]], "mu": [-1.0, 2.0], "sigma": [0.5, 1.0], "phi": [0.5, -0.3]}
    source = MarkovSwitchingAR(2, 2, switching_variance=True, known=truth).double()
    y = source.simulate(3, 150)
    y[0, 100:] = NAN
    fit = pplgen.fit(MarkovSwitchingAR(2, 2, switching_variance=True), y, steps=400, **FIT)
    assert fit.path.startswith("the traced graph")
    posterior = fit.to_datatree(draws=500)["posterior"]
    for name, value in truth.items():
        sample = posterior[name].values[0]
        # 12 numbers: errors stay below 4 in all but 1 of 1,300 data sets;
        # few steps know a deviation to a fifth
        assert (np.abs(sample.mean(0) - np.array(value)) < 5 * sample.std(0)).all(), name


def test_series_are_continued_from_their_ends():
    """Past the end, mean and variance along a known path are those of the linear recursion."""
    truth = {"P": 0.5, "mu": [0.0, 4.0], "sigma": [1.0, 0.5], "phi": [[0.5, 0.2], [-0.4, 0.3]]}
    options = {"switching_variance": True, "switching_coefficients": True}
    story = MarkovSwitchingAR(2, 2, known=truth, **options).double()
    y = torch.full((20_000, 6, 1), NAN, dtype=torch.float64)
    y[:, :3, 0] = torch.tensor([0.5, 3.0, -1.0])
    path = torch.tensor([0, 1, 0, 1, 1, 0])
    hidden = torch.tensor([4 * path[max(t - 2, 0)] + 2 * path[max(t - 1, 0)] + path[t] for t in range(6)])
    filled = story.fill(y, hidden.expand(len(y), 6))
    torch.testing.assert_close(filled[:, :3], y[:, :3])
    mu, sigma, phi = (torch.tensor(truth[name]).double() for name in ("mu", "sigma", "phi"))
    mean, weight = list(y[0, :3, 0]), torch.zeros(6, 6, dtype=torch.float64)
    for t in range(3, 6):
        s = path[t]
        mean.append(mu[s] + sum(phi[s, i - 1] * (mean[t - i] - mu[path[t - i]]) for i in (1, 2)))
        weight[t] = phi[s, 0] * weight[t - 1] + phi[s, 1] * weight[t - 2]
        weight[t, t] = sigma[s]
    covariance = (weight @ weight.T)[3:, 3:]
    error = (covariance.diagonal() / len(y)).sqrt()
    sample = filled[:, 3:, 0]
    assert ((sample.mean(0) - torch.stack(mean[3:])).abs() < 4 * error).all()
    # a covariance's error is at most sqrt(2) of the product of deviations, over the root of the number of draws
    scale = (covariance.diagonal()[:, None] * covariance.diagonal() * 2 / len(y)).sqrt()
    assert ((sample.T.cov() - covariance).abs() < 4 * scale).all()


def test_lags_are_bounded_only_where_the_mean_switches():
    MarkovSwitchingAR(2, 9)
    MarkovSwitchingAR(2, 24, switching_mean=False, switching_variance=True)


def test_stationary_distribution():
    P = torch.rand(5, 5, dtype=torch.float64).softmax(-1)
    torch.testing.assert_close(stationary(P) @ P, stationary(P), rtol=1e-13, atol=0)
    slow = torch.tensor([[1 - 1e-12, 1e-12], [3e-12, 1 - 3e-12]], dtype=torch.float64)
    torch.testing.assert_close(stationary(slow), torch.tensor([0.75, 0.25]).double(), rtol=1e-12, atol=0)


def test_many_lags_and_steps():
    """Ten thousand steps of windows of five regimes, against the recursion over windows on the first thousand."""
    numbers = ([[0.95, 0.05], [0.1, 0.9]], [-1.0, 1.0], [1.0, 0.5], [[0.3, -0.1, 0.1, 0.05]] * 2)
    P, mu, sigma, phi = (torch.tensor(value, dtype=torch.float64) for value in numbers)
    y = torch.randn(1, 10_000, 1).double()
    whole = MarkovSwitchingAutoregression(P, mu, sigma, phi, 10_000, 4).expand([1])
    assert whole.log_prob(y).isfinite().all()
    part = MarkovSwitchingAutoregression(P, mu, sigma, phi, 1_000, 4).expand([1])
    expected = forward_backward(part.log_emission(y[:, :1000]), part.chain()).log_normaliser
    torch.testing.assert_close(part.log_prob(y[:, :1000]), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"prior_mean": [[5.0], [-5.0]], "prior_mean_scale": [[1.0], [1.0]]}, "mu"),
        ({"known": {"mu": [5.0, -5.0]}}, "P"),
        ({"switching_mean": False, "switching_variance": True, "known": {"sigma": [3.0, 0.5]}}, "P"),
    ],
)
def test_regimes_are_numbered_as_their_priors_or_known_values_are(options, name):
    truth = {"P": [[0.95, 0.05], [0.3, 0.7]], "mu": [5.0, -5.0], "sigma": 0.5}
    if "switching_mean" in options:
        truth |= {"mu": 0.0, "sigma": [3.0, 0.5]}
    switching = {key: value for key, value in options.items() if key.startswith("switching")}
    y = MarkovSwitchingAR(2, 0, known=truth, **switching).double().simulate(2, 200)
    story = MarkovSwitchingAR(2, 0, **options).double()
    story.initialise(y)
    found = story.theta.guide_mean()[name].detach()
    values = found if name == "mu" else found.diagonal()
    assert values[0] > values[1]


def test_saved_and_loaded(tmp_path):
    y = MarkovSwitchingAR(2, 1).simulate(2, 40)
    fit = pplgen.fit(MarkovSwitchingAR(2, 1, prior_mean=[[-1.0], [1.0]], prior_scale=0.5), y, steps=30, progress=False)
    fit.save(tmp_path / "fit")
    loaded = pplgen.load(tmp_path / "fit")
    assert loaded.story.config == fit.story.config
    torch.testing.assert_close(loaded.log_likelihood(y), fit.log_likelihood(y))


def test_constant_and_short_series_stay_finite():
    y = torch.full((1, 12, 1), 3.0)
    with pytest.warns(DataWarning, match="is constant"):
        fit = pplgen.fit(MarkovSwitchingAR(2, 1), y, steps=50, progress=False)
    assert math.isfinite(fit.elbo)
    y = torch.randn(3, 8, 1)
    y[2] = NAN
    fit = pplgen.fit(MarkovSwitchingAR(3, 2), y, steps=50, progress=False)
    assert math.isfinite(fit.elbo)
    assert fit.log_likelihood(y)[2].item() == pytest.approx(0, abs=1e-6)  # probabilities in float32 sum to 1 + 1e-7


def test_bad_data():
    story = MarkovSwitchingAR(3, 4)
    y = torch.randn(2, 20, 1)
    with pytest.raises(InputError, match="expects"):
        pplgen.fit(story, torch.randn(1, 20, 2), progress=False)
    with pytest.raises(InputError, match="2 steps after the first 4 are too few for 3 regimes"):
        pplgen.fit(story, y[:1, :6], progress=False)
    with pytest.raises(InputError, match="1 step is too few to train on"):
        pplgen.fit(story, y[:, :1], progress=False)
    with pytest.raises(InputError, match="no observed value"):
        pplgen.fit(story, torch.full((1, 20, 1), NAN), progress=False)
    y[1, 4] = NAN
    with pytest.raises(InputError, match=r"series 2, step 5: the value is missing inside.*SwitchingLDS"):
        pplgen.fit(story, y, progress=False)
    y[1, :5] = NAN
    with pytest.raises(InputError, match="series 2 starts with 5 missing steps; drop them"):
        pplgen.fit(story, y, progress=False)
    y[0, 0] = NAN
    with pytest.raises(InputError, match="series 1 starts with a missing step; drop it"):
        pplgen.fit(story, y, progress=False)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"order": -1}, "order=-1: expected a whole number of at least 0"),
        ({"num_features": 2}, "one column"),
        ({"switching_mean": False}, "nothing switches"),
        ({"order": 0, "switching_mean": False, "switching_coefficients": True}, "nothing switches"),
        ({"prior_mean": [[1.0], [2.0], [3.0]]}, "one list for each of 2 regimes"),
        ({"order": 10}, r"num_regimes=2 and order=10 make 2\^11 windows .* more than 1,024; .*switching_mean=False"),
        ({"known": [3]}, r"known=\[3\]: expected a mapping from parameter names to values"),
        ({"known": {"psi": 1.0}}, "'psi' is not a parameter of this story"),
        ({"known": {"mu": [1.0, 2.0, 3.0]}}, r"'mu' has shape \(3,\); expected \(2,\)"),
    ],
)
def test_bad_options(options, sentence):
    with pytest.raises(InputError, match=sentence):
        MarkovSwitchingAR(**options)
