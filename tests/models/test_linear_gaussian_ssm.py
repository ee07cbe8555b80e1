"""The linear Gaussian state space model against the step-by-step filter, the dense joint, statsmodels and a grid."""

import math
import warnings

import numpy as np
import pytest
import torch
from pplgen.models import LinearGaussianSSM
from pyro import poutine
from torch.distributions import MultivariateNormal

import pplgen
from pplgen.distributions.linear_gaussian import LinearGaussianSeries
from pplgen.errors import InputError
from pplgen.exact.kalman import kalman_filter
from pplgen.story.dynamics import LinearGaussian
from pplgen.story.shared_sites import shared_values

CLOSE = {"rtol": 0, "atol": 1e-8}  # some ten float64 steps of size 10 to 100, rounded to 1e-16 of it
NILE_KNOWN = {"m0": 1000.0, "s0": 1000.0}


@pytest.fixture
def nile(reference_data):
    return pplgen.load_data(reference_data / "series" / "nile.csv", dtype=torch.float64).values[None, :, 1:]


@pytest.fixture(scope="module")
def nile_fit():
    """The two deviations of a local level, its start known."""
    y = pplgen.load_data("nile").values[None, :, -1:]
    return pplgen.fit(LinearGaussianSSM.local_level(known=NILE_KNOWN), y, restarts=4, steps=400, progress=False)


def random_model(D, E, seed=0):
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    def covariance(size):
        root = normal(size, size)
        return root @ root.T / size + 0.1 * torch.eye(size, dtype=torch.float64)

    A = 0.9 * torch.linalg.qr(normal(D, D))[0]
    return LinearGaussian(normal(D), covariance(D), A, normal(D), covariance(D), normal(E, D), normal(E), covariance(E))


def gappy(y):
    """Lone entries, a step and a run of steps missing; the last series is shorter."""
    y = y.clone()
    y[0, 0, 0] = y[0, 3] = y[-1, y.shape[1] // 2 :] = torch.nan
    y[1:, 2:4, -1] = torch.nan
    return y


def dense_log_density(y, p):
    """Log density of one series' seen entries under the joint normal of all its entries."""
    T, D = len(y), len(p.m0)
    mean, covariance = [p.m0], [[p.S0]]
    for _ in range(1, T):
        mean.append(p.A @ mean[-1] + p.b)
        row = [p.A @ block for block in covariance[-1]]
        covariance.append([*row, row[-1] @ p.A.T + p.Q])
    joint = torch.zeros(T, T, D, D, dtype=y.dtype)
    for t, row in enumerate(covariance):
        for s, block in enumerate(row):
            joint[t, s], joint[s, t] = block, block.T
    noise = torch.eye(T, dtype=y.dtype)[:, :, None, None] * p.R
    E = len(p.d)
    total = (p.C @ joint @ p.C.T + noise).transpose(1, 2).reshape(T * E, T * E)
    centre = (torch.stack(mean) @ p.C.T + p.d).flatten()
    seen = ~y.flatten().isnan()
    return MultivariateNormal(centre[seen], total[seen][:, seen]).log_prob(y.flatten()[seen])


def log_density(story, y, values):
    """Log density of the series in a story's model at values of its parameters."""
    story.observe_missing(y)
    trace = poutine.trace(poutine.condition(story.model, values)).get_trace(y)
    return trace.nodes["y"]["fn"].log_prob(y)


@pytest.mark.parametrize(("D", "E", "T"), [(1, 1, 1), (1, 2, 2), (2, 1, 17), (3, 2, 16), (4, 3, 9), (9, 2, 12)])
@pytest.mark.parametrize("missing", [False, True])
def test_density_and_derivatives_equal_the_filters(D, E, T, missing):
    """Small and large matrices, and every way in which steps pair up."""
    p = random_model(D, E)
    y = LinearGaussianSeries(p, T).expand((3,)).sample()
    y = gappy(y) if missing and T > 4 else y
    given = [part.clone().requires_grad_() for part in p]
    ours = LinearGaussianSeries(LinearGaussian(*given), T, missing=missing).expand((3,)).log_prob(y)
    exact = kalman_filter(y, LinearGaussian(*given)).log_likelihood
    torch.testing.assert_close(ours, exact, **CLOSE)
    for series, log_prob in zip(y, ours, strict=True):
        torch.testing.assert_close(log_prob, dense_log_density(series, p), **CLOSE)
    weights = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    options = {"create_graph": True, "allow_unused": True, "materialize_grads": True}
    gradients = [torch.autograd.grad((weights * each).sum(), given, **options) for each in (ours, exact)]
    for mine, theirs in zip(*gradients, strict=True):
        # the reference splits the gradient of a symmetric matrix differently between its halves
        mine, theirs = ((g + g.mT) / 2 if g.ndim == 2 and g.shape[0] == g.shape[1] else g for g in (mine, theirs))
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-8)
    if T > 4 and D < 9:
        again = [torch.autograd.grad(each[2].square().sum(), given, **options) for each in gradients]
        torch.testing.assert_close(again[0][2], again[1][2], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(
    ("form", "known"),
    [
        ("level", {"q": 0.1, "r": 1.0, "m0": 0.0, "s0": 1.0}),
        ("trend", {"q": [1e-6, 0.01], "r": 1.0, "m0": 0.0, "s0": 1.0}),
        ("autoregression", {"phi": 0.9, "q": 1.0, "d": 0.0, "m0": 0.0, "s0": 1.0}),
    ],
)
def test_single_precision_is_kept_over_long_series(form, known):
    """States that hardly move, that move without noise, that are seen exactly: 2,000 terms near 2, rounded to 1e-7."""
    story = LinearGaussianSSM(form=form, known=known).double()
    p = story.state_space(torch.zeros(1, 2000, 1, dtype=torch.float64))
    y = LinearGaussianSeries(p, 2000).expand((2,)).sample()
    exact = kalman_filter(y, p).log_likelihood
    single = LinearGaussian(*(part.float() for part in p))
    ours = LinearGaussianSeries(single, 2000, missing=False).log_prob(y.float())
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=0)


def test_draws_have_the_joint_moments():
    p = random_model(2, 1)
    T, n = 6, 20_000
    y = LinearGaussianSeries(p, T).expand((n,)).sample().squeeze(-1)
    mean, state, expected = p.m0, p.S0, []
    for t in range(T):
        if t:
            mean, state = p.A @ mean + p.b, p.A @ state @ p.A.T + p.Q
        expected.append(((p.C @ mean + p.d).item(), (p.C @ state @ p.C.T + p.R).item()))
    mean, variance = torch.tensor(expected, dtype=y.dtype).T
    # means and variances of 20,000 draws err by sd / sqrt(n) and variance sqrt(2 / n): four of these
    assert ((y.mean(0) - mean).abs() < 4 * (variance / n).sqrt()).all()
    assert ((y.var(0) / variance - 1).abs() < 4 * math.sqrt(2 / n)).all()
    # successive entries: Cov[y_2, y_1] = C A S0 C', known to about the product of the deviations over sqrt(n)
    lagged = torch.cov(y[:, :2].T)[0, 1]
    assert (lagged - (p.C @ p.A @ p.S0 @ p.C.T).item()).abs() < 4 * (variance[0] * variance[1] * 2 / n).sqrt()


@pytest.mark.parametrize("missing", [False, True])
def test_the_storys_density_is_that_of_its_state_space(missing):
    story = LinearGaussianSSM(2, 3).double()
    y = story.simulate(3, 11)
    y = gappy(y) if missing else y
    values = shared_values(story.model)
    with poutine.condition(data=values):
        p = story.state_space(y)
    assert p.C[0, 1] == 0, "C is lower trapezoidal"
    torch.testing.assert_close(log_density(story, y, values), kalman_filter(y, p).log_likelihood, **CLOSE)


def test_nile_at_known_variances(nile):
    """Durbin and Koopman's variances at the maximum, and a wide start."""
    story = LinearGaussianSSM.local_level(known={**NILE_KNOWN, "q": math.sqrt(1469.1), "r": math.sqrt(15099)}).double()
    assert log_density(story, nile, {}).item() == pytest.approx(-640.38054, abs=1e-4)


def test_equals_statsmodels_on_a_random_model():
    kalman = pytest.importorskip("statsmodels.tsa.statespace.kalman_filter")
    p = random_model(3, 2, seed=1)
    y = gappy(LinearGaussianSeries(p, 40).expand((2,)).sample())
    m0, S0, A, b, Q, C, d, R = (part.numpy() for part in p)
    ours = LinearGaussianSeries(p, 40).log_prob(y)
    for series, log_prob in zip(y, ours, strict=True):
        theirs = kalman.KalmanFilter(
            2, 3, transition=A, state_cov=Q, selection=np.eye(3), state_intercept=b[:, None], design=C, obs_cov=R
        )
        theirs["obs_intercept"] = d[:, None]
        theirs.bind(series.numpy())
        theirs.initialize_known(m0, S0)
        assert log_prob.item() == pytest.approx(theirs.loglike(), abs=1e-8)


def test_local_linear_trend_equals_statsmodels(nile):
    structural = pytest.importorskip("statsmodels.tsa.statespace.structural")
    theirs = structural.UnobservedComponents(nile[0, :, 0].numpy(), "local linear trend")
    theirs.ssm.initialize_known(np.array([1000.0, 0.0]), np.diag([300.0**2, 20.0**2]))
    theirs.loglikelihood_burn = 0
    known = {"m0": [1000.0, 0.0], "s0": [300.0, 20.0], "q": [40.0, 3.0], "r": 120.0}
    story = LinearGaussianSSM.local_linear_trend(known=known).double()
    expected = theirs.loglike([120.0**2, 40.0**2, 3.0**2])
    assert log_density(story, nile, {}).item() == pytest.approx(expected, abs=1e-8)


def test_autoregression_equals_statsmodels(nile):
    """Of order 3, the measurement error being a thousandth of the columns' deviation."""
    sarimax = pytest.importorskip("statsmodels.tsa.statespace.sarimax")
    y = nile - 900.0
    y[0, 40:43] = torch.nan
    phi = [0.4, 0.2, -0.1]
    theirs = sarimax.SARIMAX(y[0, :, 0].numpy(), order=(3, 0, 0), measurement_error=True)
    # statsmodels' states beyond the first are sums of lags: x_2 = phi_2 y_{t-1} + phi_3 y_{t-2}, x_3 = phi_3 y_{t-1}
    lags = np.array([[1.0, 0.0, 0.0], [0.0, 0.2, -0.1], [0.0, -0.1, 0.0]])
    theirs.ssm.initialize_known(np.zeros(3), lags @ np.diag([200.0**2] * 3) @ lags.T)
    theirs.loglikelihood_burn = 0
    known = {"m0": 0.0, "s0": 200.0, "phi": [[each] for each in phi], "q": 140.0, "d": 0.0}
    story = LinearGaussianSSM.autoregression(3, known=known).double()
    story.scale.fill_(150.0)
    expected = theirs.loglike([*phi, 0.15**2, 140.0**2])
    assert log_density(story, y, {}).item() == pytest.approx(expected, abs=1e-8)


def test_nile_posterior_agrees_with_a_grid(nile, nile_fit):
    """The exact posterior of the two deviations, summed over a grid of 80 x 80 on the log scale."""
    story, step = nile_fit.story, torch.linspace(-3.2, 1.6, 80, dtype=torch.float64)
    q, r = torch.meshgrid(math.log(60.0) + step, math.log(120.0) + step / 4, indexing="ij")
    one = torch.eye(1, dtype=torch.float64)

    def variance(log_deviation):
        return (2 * log_deviation).exp().reshape(-1, 1, 1, 1)

    grid = LinearGaussian(1000.0 * one[0], 1e6 * one, one, 0 * one[0], variance(q), one, 0 * one[0], variance(r))
    scale = story.scale.double().log()
    prior = -0.5 * (q - scale - math.log(0.3)) ** 2 - 0.5 * (r - scale - math.log(0.5)) ** 2
    joint = kalman_filter(nile, grid).log_likelihood.reshape(q.shape) + prior
    weight = joint.flatten().softmax(0).reshape(q.shape)
    assert max(weight[0].sum(), weight[-1].sum(), weight[:, 0].sum(), weight[:, -1].sum()) < 1e-3, "the grid is wide"
    posterior = nile_fit.to_datatree(4000, groups=["posterior"])["posterior"]
    for name, exact in (("q", q), ("r", r)):
        draws = np.log(posterior[name].values).ravel()
        mean = (weight * exact).sum().item()
        sd = ((weight * exact.square()).sum() - mean**2).sqrt().item()
        # 4,000 draws: the mean errs by .016 sd, the deviation by 1.1 %; the normal guide itself by the rest
        assert draws.mean() == pytest.approx(mean, abs=0.1 * sd)
        assert draws.std() == pytest.approx(sd, rel=0.1)


def test_nile_posterior_covers_the_maximum(nile_fit):
    posterior = nile_fit.to_datatree(1000, groups=["posterior"])["posterior"]
    for name, maximum in (("q", math.sqrt(1469.1)), ("r", math.sqrt(15099))):
        low, high = np.quantile(posterior[name].values, [0.05, 0.95])
        assert low < maximum < high


def test_restarts_run_as_one_graph(nile_fit):
    assert nile_fit.path.startswith("the traced graph")
    assert len(nile_fit.runs) == 4
    # one mode: what is left is the ELBOs' own error, .1 nats or so
    assert nile_fit.spread < 1.0


def test_saved_and_loaded(nile_fit, tmp_path):
    nile_fit.save(tmp_path / "run")
    loaded = pplgen.load(tmp_path / "run", nile_fit.table)
    assert loaded.story.config == nile_fit.story.config
    torch.testing.assert_close(loaded.log_likelihood(draws=10), nile_fit.log_likelihood(draws=10))


def test_autoregression_recovers_coefficients():
    truth = {"phi": [[0.5], [0.3]], "q": 1.0, "d": 10.0, "m0": 0.0, "s0": 1.0}
    y = LinearGaussianSSM.autoregression(2, known=truth).simulate(4, 150)
    y[0, 100:] = y[1, 20:30] = torch.nan
    known = {"m0": 0.0, "s0": 1.0}
    fit = pplgen.fit(LinearGaussianSSM.autoregression(2, known=known), y, steps=150, progress=False)
    posterior = fit.to_datatree(1000, groups=["posterior"])["posterior"]
    for name, value in (("phi", [0.5, 0.3]), ("q", [1.0]), ("d", [10.0])):
        draws = posterior[name].values.reshape(1000, -1)
        # of four parameters, five deviations of the posterior: few steps know a deviation to a fifth
        assert (np.abs(draws.mean(0) - value) < 5 * draws.std(0)).all()
        assert (draws.std(0) < 0.5).all()


def test_free_form_finds_the_predictive_density():
    """The posterior predicts new series as well as the truth does, but for what is not known of the parameters."""
    truth = {
        "A": [[0.9, 0.3], [-0.3, 0.8]],
        "C": [[1.0, 0.0], [0.5, 1.0], [0.0, -1.0]],
        "m0": 0.0,
        "s0": 1.0,
        "d": 0.0,
        "r": 0.5,
    }
    story = LinearGaussianSSM(2, 3, known=truth)
    y, new = story.simulate(24, 50), story.simulate(24, 50)
    fit = pplgen.fit(LinearGaussianSSM(2, 3), y, steps=150, compile="graph", progress=False)
    exact = kalman_filter(new.double(), story.double().state_space(new)).log_likelihood.sum().item()
    # 19 parameters learned from as many series as are predicted: half a nat each is lost, give or take 3 nats in all
    assert exact - 25 < fit.log_likelihood(new, draws=50).sum().item() < exact + 5


@pytest.mark.parametrize(
    "story",
    [
        LinearGaussianSSM(3, 1),
        LinearGaussianSSM.local_linear_trend(),
        LinearGaussianSSM.autoregression(4),
    ],
    ids=["free", "trend", "autoregression"],
)
@pytest.mark.parametrize("kind", ["short", "constant", "large"])
def test_meagre_series_give_a_finite_fit(story, kind):
    y = {"short": torch.randn(1, 2, 1), "constant": torch.full((2, 12, 1), 3.0), "large": 1e6 + torch.randn(1, 12, 1)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pplgen.errors.DataWarning)
        fit = pplgen.fit(story, y[kind], steps=5, progress=False)
    assert math.isfinite(fit.elbo)


def test_bad_data():
    story = LinearGaussianSSM.local_level(2)
    with pytest.raises(InputError, match="1 step is too few to train on"):
        pplgen.fit(story, torch.randn(3, 1, 2), progress=False)
    with pytest.raises(InputError, match=r"data of shape \(3, 9, 1\).*expects \(num_series, num_steps, 2\)"):
        pplgen.fit(story, torch.randn(3, 9, 1), progress=False)
    y = torch.randn(2, 9, 2)
    y[..., 1] = torch.nan
    with pytest.raises(InputError, match="column 'x1' has no observed value"):
        pplgen.fit(story, y, progress=False)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_states": 0}, "num_states=0: expected a whole number of at least 1"),
        ({"form": "cycle"}, "form='cycle': expected one of free, level, trend, autoregression"),
        ({"form": "level", "num_states": 2}, "num_states=2: only form='free' has this option; form='level' was given"),
        ({"order": 2}, "order=2: only form='autoregression' has this option; form='free' was given"),
        (
            {"form": "level", "known": {"phi": 1.0}},
            "known: 'phi' is not a parameter of this story; expected some of m0, s0, q, r",
        ),
        ({"known": {"r": [1.0, 2.0]}}, r"known: 'r' has shape \(2,\); expected \(1,\)"),
        ({"known": 3.0}, "known=3.0: expected a mapping from parameter names to values"),
        ({"known": {"r": -1.0}}, "known: 'r' has values outside its support"),
        ({"known": {"r": float("nan")}}, "options must be plain, finite values"),
    ],
)
def test_bad_options(options, sentence):
    with pytest.raises(InputError, match=sentence):
        LinearGaussianSSM(**options)


@pytest.mark.parametrize("form", ["level", "autoregression"])
def test_weights_are_repetitions(form):
    y = LinearGaussianSSM(form=form).double().simulate(3, 30)
    y[2] *= 100
    y[1, 4:7] = torch.nan
    once, repeated = LinearGaussianSSM(form=form).double(), LinearGaussianSSM(form=form).double()
    once.initialise(y, weights=torch.tensor([2.0, 1.0, 0.0]))
    repeated.initialise(y[[0, 0, 1]])
    torch.testing.assert_close(once.scale, repeated.scale)
    for name, value in once.theta.guide_mean().items():
        # both stand at the same mode, which the climb finds to the root of its tolerance
        torch.testing.assert_close(value, repeated.theta.guide_mean()[name], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(once.theta.unit, repeated.theta.unit, rtol=1e-2, atol=1e-3)


def test_a_story_is_rebuilt_from_its_config():
    for story in (LinearGaussianSSM.local_level(2), LinearGaussianSSM.autoregression(3, known={"d": 1.0})):
        twin = type(story)(**story.config)
        assert twin.config == story.config
        assert twin.dims == story.dims
