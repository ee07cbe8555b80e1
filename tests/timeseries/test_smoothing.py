"""Filtering, smoothing, forecasts and scores of series against dense algebra, sums over paths, and plain simulation."""

import dataclasses
import importlib.util
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import pplgen
from pplgen.errors import InputError
from pplgen.exact.enumeration import enumerate_regimes
from pplgen.exact.gaussian_sums import gaussian_sum_filter
from pplgen.posterior.draws import draw_shared
from pplgen.posterior.row_likelihood import LogLikelihood
from pplgen.timeseries import state_paths

_SPEC = importlib.util.spec_from_file_location("series_toys", Path(__file__).parents[1] / "series_toys.py")
toys = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(toys)

NAN = math.nan
DRAWS = 20
ROUNDING = {"rtol": 0, "atol": 2e-5}  # the parameters are floats of single precision
LEVEL = {"q": 0.5, "r": 0.7}
COIN = {"P": [[0.9, 0.1], [0.2, 0.8]], "mu": [[-1.0], [2.0]]}
DRIFT = {"b": [1.0, -1.0]}


def fitted(story, y, steps=3):
    return pplgen.fit(story, y, steps=steps, compile="off", progress=False)


def simulated(story, num_series, num_steps, seed=1):
    torch.manual_seed(seed)
    return story.simulate(num_series, num_steps)


@pytest.fixture(scope="module")
def level():
    """Three series: one with a gap, one that ends early; the parameters learned."""
    y = simulated(toys.Level(known=LEVEL), 3, 30)
    y[0, 8:13] = NAN
    y[1, 22:] = NAN
    return fitted(toys.Level(), y), y


@pytest.fixture(scope="module")
def coin():
    y = simulated(toys.Coin(known=COIN), 3, 40)
    y[0, 8:13] = NAN
    y[1, 22:] = NAN
    return fitted(toys.Coin(), y), y


@pytest.fixture(scope="module")
def drift():
    return fitted(toys.Drift(width=0.4), simulated(toys.Drift(known=DRIFT), 4, 4))


def latents_of(fit, draws=DRAWS):
    with fit._ready(None):
        return {name: value.double() for name, value in draw_shared(fit.pair, draws).items()}


def dense(y, q, r, last=None):
    """Mean and covariance of a level's states given the seen entries of one series up to ``last``."""
    series = toys.LevelSeries(q, r, len(y))
    seen = torch.nonzero(~y[:last, 0].isnan())[:, 0]
    P = series.state_covariance
    gain = P[:, seen] @ torch.linalg.inv(P[seen][:, seen] + r.square() * torch.eye(len(seen)).double())
    return gain @ y[seen, 0].double(), P - gain @ P[seen]


@pytest.fixture(scope="module")
def exact(level):
    """Smoothed moments of every draw and series by dense algebra, shapes ``(draws, 3, T)``."""
    fit, y = level
    theta = latents_of(fit)
    found = [[dense(series, q, r) for series in y] for q, r in zip(theta["q"], theta["r"], strict=True)]
    mean = torch.stack([torch.stack([m for m, _ in row]) for row in found])
    return mean, torch.stack([torch.stack([P.diagonal() for _, P in row]) for row in found])


def test_a_linear_story_is_smoothed_as_by_dense_algebra(level, exact):
    fit, y = level
    found = fit.smooth(draws=DRAWS)
    mean, variance = exact
    inside = ~toys.ended(y)
    total = variance.mean(0) + mean.var(0, correction=0)
    for name, expected in {"mean": mean.mean(0), "sd": total.sqrt()}.items():
        for what in ("state", "y"):
            ours = torch.as_tensor(found[f"{what}_{name}"].values[..., 0])
            torch.testing.assert_close(ours[inside], expected[inside], **ROUNDING)
            assert ours[~inside].isnan().all()
    np.testing.assert_allclose(found["state_covariance"].values[0, :, 0, 0], total[0], atol=2e-5)
    # the interval's ends are quantiles of the mixture over draws, to the last of 16 halvings
    for end, share in {"lower": 0.05, "upper": 0.95}.items():
        bound = torch.as_tensor(found[f"state_{end}"].values[..., 0])
        reached = torch.special.ndtr((bound - mean) / variance.sqrt()).mean(0)
        torch.testing.assert_close(reached[inside], torch.full_like(reached, share)[inside], rtol=0, atol=1e-4)
    assert found.attrs["estimator"] == "exact"
    assert list(found["feature"].values) == ["x0"]


def test_a_linear_story_is_filtered_as_by_dense_algebra(level):
    fit, y = level
    found = fit.filter(draws=DRAWS)
    theta = latents_of(fit)
    for t in (0, 10, 21):
        by_draw = [dense(y[0], q, r, t + 1)[0][t] for q, r in zip(theta["q"], theta["r"], strict=True)]
        assert found["state_mean"].values[0, t, 0] == pytest.approx(float(torch.stack(by_draw).mean()), abs=2e-5)
    # draws weighted by the past: the densities of a series add up to its log-likelihood
    log_likelihood = fit.log_likelihood(draws=DRAWS)
    np.testing.assert_allclose(found["log_density"].sum("time"), log_likelihood.numpy(), atol=1e-3)
    assert found["log_density"].isnull().sum() == 8


def test_imputed_entries_have_the_smoothed_moments(level, exact):
    fit, y = level
    draws = 4000
    filled = fit.impute(draws=draws)
    assert filled.shape == (draws, 3, 30, 1)
    seen = ~y.isnan()
    torch.testing.assert_close(filled[:, seen], y[seen].expand(draws, -1))
    assert filled[:, 1, 22:].isnan().all()
    gap = filled[:, 0, 8:13, 0].double()
    smooth = fit.smooth(draws=draws)
    noise = latents_of(fit, draws)["r"].square().mean()
    variance = torch.as_tensor(smooth["state_sd"].values[0, 8:13, 0]) ** 2 + noise
    expected = torch.as_tensor(smooth["state_mean"].values[0, 8:13, 0])
    # five entries, four standard errors of 4,000 draws; sd of a variance is sqrt(2 / draws) of it
    assert ((gap.mean(0) - expected).abs() < 4 * (variance / draws).sqrt()).all()
    assert ((gap.var(0) / variance - 1).abs() < 4 * (2 / draws) ** 0.5).all()


def test_kept_draws_are_paths(level):
    fit, _ = level
    found = fit.smooth(draws=2000, keep_draws=True)
    paths = found["state_draw"].values[:, 0, :, 0]
    assert found["state_draw"].dims == ("draw", "series", "time", "state")
    # neighbours move together as dense algebra says: four standard errors of a correlation
    theta = latents_of(fit, 2000)
    P = torch.stack(
        [dense(fit.pair.data[0][0], q, r)[1] for q, r in zip(theta["q"][:50], theta["r"][:50], strict=True)]
    )
    expected = (P[:, 9, 10] / (P[:, 9, 9] * P[:, 10, 10]).sqrt()).mean()
    assert np.corrcoef(paths[:, 9], paths[:, 10])[0, 1] == pytest.approx(float(expected), abs=4 / 2000**0.5)


def test_a_forecast_passes_on_what_is_unknown(level):
    fit, y = level
    draws = 4000
    found = fit.forecast(3, draws=draws, keep_draws=True)
    theta = latents_of(fit, draws)
    assert found["step"].values.tolist() == [[30, 31, 32], [22, 23, 24], [30, 31, 32]]
    for series, end in ((0, 30), (1, 22)):
        moments = [
            (m[end - 1], P[end - 1, end - 1])
            for m, P in (dense(y[series], q, r) for q, r in zip(theta["q"][:400], theta["r"][:400], strict=True))
        ]
        mean, variance = (torch.stack(part) for part in zip(*moments, strict=True))
        q, r = theta["q"][:400].square(), theta["r"][:400].square()
        for h in (1, 3):
            ahead = 0.81**h * variance + q * sum(0.81**i for i in range(h)) + r
            total = ahead.mean() + (0.9**h * mean).var()
            # four standard errors of 4,000 futures; the 400 draws of the expectation add little to them
            ours = found["y_mean"].values[series, h - 1, 0]
            assert ours == pytest.approx(float(0.9**h * mean.mean()), abs=4.5 * float(total / draws) ** 0.5)
            assert found["y_sd"].values[series, h - 1, 0] == pytest.approx(
                float(total.sqrt()), rel=4 * (0.5 / draws) ** 0.5 + 0.01
            )
    inside = np.mean(found["y_draw"] <= found["y_upper"], axis=0)
    np.testing.assert_allclose(inside, 0.95, atol=1 / draws + 1e-9)


def paths_of(y, P, mu):
    """Every path of a coin's regimes and its weight given one series, by brute force."""
    paths = torch.tensor(list(itertools.product(range(2), repeat=len(y))))
    moves = P.log()[paths[:, :-1], paths[:, 1:]].sum(1)
    seen = torch.where(
        y[:, 0].isnan(), 0.0, torch.distributions.Normal(mu[paths][..., 0], 1.0).log_prob(y[:, 0].nan_to_num())
    )
    return paths, moves + seen.sum(1) + math.log(0.5)


def test_a_chain_is_filtered_and_smoothed_as_by_sums_over_paths(coin):
    fit, y = coin
    x = y[:1, 6:14]  # five of eight steps are missing
    theta = latents_of(fit)
    smooth, filtered = fit.smooth(x, draws=DRAWS), fit.filter(x, draws=DRAWS)
    expected = []
    for last in (8, 3):
        by_draw = []
        for P, mu in zip(theta["P"], theta["mu"], strict=True):
            paths, weights = paths_of(x[0, :last].double(), P, mu)
            by_draw.append(weights.softmax(0) @ paths.double())
        expected.append(torch.stack(by_draw).mean(0))
    np.testing.assert_allclose(smooth["regime_probability"].values[0, :, 1], expected[0], atol=1e-5)
    np.testing.assert_allclose(filtered["regime_probability"].values[0, 2, 1], expected[1][2], atol=1e-5)
    np.testing.assert_allclose(filtered["log_density"].sum(), fit.log_likelihood(x, draws=DRAWS).item(), atol=1e-4)
    assert fit.latents(x, draws=DRAWS)["regime_probability"].equals(smooth["regime_probability"])
    np.testing.assert_allclose(smooth["y_mean"].values[0, :2, 0], x[0, :2, 0], atol=1e-6)


def test_a_chain_s_gaps_are_filled_along_its_paths(coin):
    fit, _ = coin
    draws = 4000
    filled = fit.impute(draws=draws)[:, 0, 8:13, 0].double()
    found = fit.smooth(draws=draws, keep_draws=True)
    mu = latents_of(fit, draws)["mu"].mean(0)[:, 0]
    shares = torch.as_tensor(found["regime_probability"].values[0, 8:13])
    # four standard errors; the means hardly vary over draws
    spread = 1 + shares[:, 0] * shares[:, 1] * (mu[1] - mu[0]) ** 2
    assert ((filled.mean(0) - shares @ mu).abs() < 4 * (spread / draws).sqrt() + 0.02).all()
    drawn = torch.as_tensor(found["regime_draw"].values[:, 0, 8:13]).mean(0)
    assert ((drawn - shares[:, 1]).abs() < 4 * (0.25 / draws) ** 0.5).all()


def test_a_chain_s_forecast_moves_by_its_transitions(coin):
    fit, _ = coin
    draws = 4000
    found = fit.forecast(5, draws=draws)
    P = latents_of(fit, 400)["P"].float()
    last = torch.as_tensor(fit.filter(draws=400)["regime_probability"].values)
    for series, end in ((0, 39), (1, 21)):
        expected = (last[series, end].float() @ torch.linalg.matrix_power(P, 5)).mean(0)[1]
        # four standard errors, and what draws of P change of the last step's probabilities
        ours = found["regime_probability"].values[series, 4, 1]
        assert ours == pytest.approx(float(expected), abs=4 * (0.25 / draws) ** 0.5 + 0.02)


@pytest.mark.parametrize("width", [0.3, 0.7])
def test_smoothed_paths_are_weighted_to_the_posterior(width):
    """Whatever the guide of the path is."""
    y = simulated(toys.Drift(known=DRIFT), 2, 12)
    y[0, 4:9] = NAN
    fit = fitted(toys.Drift(known=DRIFT, width=width), y)
    found = fit.smooth(draws=4000)
    assert found.attrs["estimator"] == "Gaussian sum smoother (importance-weighted)"
    assert min(found.attrs["effective_draws"]) > 2000
    with fit._ready(None):
        model = fit.story.state_space(y)
    for series in range(2):
        _, expected = enumerate_regimes(y[series], model)
        # four standard errors of at least 2,000 effective draws
        error = 4 * expected.covariance[:, 0, 0].sqrt() / 2000**0.5
        ours = torch.as_tensor(found["state_mean"].values[series, :, 0])
        assert ((ours - expected.mean[:, 0]).abs() < error).all()
        sd = torch.as_tensor(found["state_sd"].values[series, :, 0])
        torch.testing.assert_close(
            sd, expected.covariance[:, 0, 0].sqrt().double(), rtol=4 * (0.5 / 2000) ** 0.5, atol=0
        )
        shares = torch.as_tensor(found["regime_probability"].values[series])
        assert ((shares - expected.probabilities).abs() < 4 * (0.25 / 2000) ** 0.5).all()
        # the filter is Kim's, and knows at the end what the smoother knows
        last = fit.filter(draws=10)
        assert last["state_mean"].values[series, -1, 0] == pytest.approx(float(expected.mean[-1, 0]), abs=0.02)
    assert last.attrs["estimator"] == "Kim's filter"


def test_paths_that_the_filter_misses_are_not_weighted(drift, monkeypatch):
    """A filter whose Gaussians are far too narrow: weights of draws from it are worth nothing."""

    def narrow(*arguments, **options):
        found = gaussian_sum_filter(*arguments, **options)
        return found._replace(steps=[step._replace(covariance=step.covariance / 100) for step in found.steps])

    monkeypatch.setattr(state_paths, "gaussian_sum_filter", narrow)
    x = simulated(toys.Drift(known=DRIFT), 1, 60)
    found = drift.smooth(x, draws=400, keep_draws=True)
    assert found.attrs["estimator"] == "Gaussian sum smoother (unweighted where Pareto k is above 0.7)"
    assert found.attrs["pareto_k"][0] > 0.7
    assert found.attrs["effective_draws"][0] == pytest.approx(400)
    np.testing.assert_allclose(found["state_draw"].mean("draw"), found["state_mean"], atol=1e-6)


def test_a_single_draw_is_one_of_many_weighted_ones(drift):
    found = drift.smooth(simulated(toys.Drift(known=DRIFT), 1, 60), draws=1)
    assert found.attrs["effective_draws"][0] > 50
    assert found["state_sd"].values.min() > 0


def test_unseen_series_with_long_gaps_are_filled_in(drift):
    x = simulated(toys.Drift(known=DRIFT), 1, 60)
    filled = drift.impute(torch.cat([x, torch.full_like(x[:, :20], NAN), x], 1), draws=5)
    assert filled.isfinite().all()


@pytest.mark.parametrize("recurrent", [False, True])
def test_a_switching_forecast_is_that_of_the_story_itself(recurrent):
    """From one step, where Kim's filter is exact, against weighted runs of the story from its start."""
    y = torch.tensor([[[1.5]]])
    fit = fitted(toys.Drift(known=DRIFT, recurrent=recurrent), simulated(toys.Drift(known=DRIFT), 2, 4))
    found = fit.forecast(3, y, draws=10_000)
    torch.manual_seed(5)
    runs = toys.DriftPath(fit.story, {"b": torch.tensor([1.0, -1.0])}, 4).sample((200_000,))[..., 0]
    weights = torch.distributions.Normal(runs[:, 0], 0.5).log_prob(y[0, 0]).softmax(0)
    mean = weights @ runs[:, 1:]
    sd = (weights @ (runs[:, 1:] - mean).square()).sqrt()
    # four standard errors of 10,000 futures and of some 40,000 effective runs
    error = 4 * sd * (1 / 10_000 + 1 / 40_000) ** 0.5
    assert ((torch.as_tensor(found["state_mean"].values[0, :, 0]) - mean).abs() < error).all()
    np.testing.assert_allclose(found["state_sd"].values[0, :, 0], sd, rtol=4 * (0.5 / 8000) ** 0.5)
    np.testing.assert_allclose(found["y_sd"].values[0, :, 0] ** 2, sd**2 + 0.25, rtol=8 * (0.5 / 8000) ** 0.5)


def test_log_likelihoods_know_how_they_were_computed(level, coin, drift):
    for fit, estimator in ((level[0], "exact"), (coin[0], "exact"), (drift, "Gaussian sum smoother")):
        ours = fit.log_likelihood(draws=200)
        assert isinstance(ours, LogLikelihood)
        assert ours.estimator.startswith(estimator)
        assert estimator in repr(ours)
        assert type(ours.sum()) is type(ours + 1) is torch.Tensor
        assert ours.standard_error.shape == ours.shape
    x = drift.pair.data[0]
    exact = torch.stack([enumerate_regimes(series, toys.Drift(known=DRIFT).state_space(series))[0] for series in x])
    fit = fitted(toys.Drift(known=DRIFT, width=0.7), x)
    for estimator, draws in (("importance", 2000), ("gaussian-sum", 20), ("kim", 2), ("particle", 20)):
        ours = fit.log_likelihood(draws=draws, estimator=estimator)
        # four standard errors; collapsing costs a hundredth of a nat
        slack = 4 * ours.standard_error + 0.02
        assert ((ours - exact).abs() < slack).all()


@pytest.mark.parametrize(
    ("of", "estimator", "sentence"),
    [
        ("level", "kim", "estimator='kim': expected 'exact' for Level"),
        ("coin", "importance", "estimator='importance': expected 'exact' for Coin"),
        (
            "drift",
            "exact",
            "estimator='exact': expected 'gaussian-sum' or 'importance' or 'kim' or 'particle' for Drift",
        ),
        ("faithful_fit", "kim", "estimator='kim': expected 'exact' for GaussianMixture"),
    ],
)
def test_other_estimators_are_refused(request, of, estimator, sentence):
    fit = request.getfixturevalue(of)
    with pytest.raises(InputError, match=sentence):
        (fit[0] if isinstance(fit, tuple) else fit).log_likelihood(estimator=estimator)


def test_leave_future_out_is_the_integral_over_the_past_s_posterior():
    """Against quadrature over both parameters, given each past in turn."""
    y = simulated(toys.Level(known=LEVEL), 1, 60, seed=4)
    fit = fitted(toys.Level(), y, steps=200)
    ours = fit.leave_future_out(start=48, draws=4000)
    grid = torch.linspace(-4, 2.5, 80).double()
    densities = torch.zeros(80, 80, 60).double()
    for i, j in itertools.product(range(80), repeat=2):
        series = toys.LevelSeries(grid[i].exp(), grid[j].exp(), 60)
        factor = torch.linalg.cholesky(series.joint.covariance_matrix)
        white = torch.linalg.solve_triangular(factor, y[0].double(), upper=False)[:, 0]
        densities[i, j] = -0.5 * white.square() - factor.diagonal().log() - 0.5 * math.log(2 * math.pi)
    log_prior = -0.5 * (grid[:, None] ** 2 + grid**2)
    past = log_prior[..., None] + densities.cumsum(-1)[..., 47:59]
    weights = past.flatten(0, 1).softmax(0).log()
    expected = (weights + densities[..., 48:].flatten(0, 1)).logsumexp(0)
    # four Monte Carlo standard errors of an importance-sampling estimate with an effective sample size of 1,000
    deviation = ((weights + 2 * densities[..., 48:].flatten(0, 1)).logsumexp(0) - 2 * expected).expm1().sqrt()
    assert ((torch.as_tensor(ours.pointwise[0]) - expected).abs() < 4 * deviation / 1000**0.5).all()
    assert ours.elpd == pytest.approx(ours.pointwise.sum())
    assert "Leave-future-out" in repr(ours)
    assert "not LOO" in repr(ours)
    high = np.concatenate([[0.71, 0.9], ours.pareto_k[2:].clip(max=0.7)])
    printed = repr(dataclasses.replace(ours, pareto_k=high))
    assert "above 0.7 at 2 steps, whose terms are unreliable" in printed
    assert "unreliable" not in repr(dataclasses.replace(ours, pareto_k=high.clip(max=0.7)))


def test_leave_future_out_knows_its_series(level):
    fit, *_ = level if isinstance(level, tuple) else (level,)
    with pytest.raises(InputError, match="are not the training series"):
        fit.leave_future_out(fit.table.values + 1, start=5, draws=10)


def test_impossible_rows_have_no_density():
    """Minus infinity at every draw stays so."""
    found = LogLikelihood.from_draws(torch.tensor([[-torch.inf, -1.0], [-torch.inf, -1.0]]), "exact")
    assert found.tolist() == [-math.inf, -1.0]
    assert found.standard_error.tolist() == [0.0, 0.0]


def test_any_number_of_draws_shares_parameters(drift):
    x = simulated(toys.Drift(known=DRIFT), 1, 12)
    found = drift.smooth(x, draws=7, keep_draws=True)
    assert found.sizes["draw"] == 7
    np.testing.assert_allclose(found["regime_probability"].sum("regime"), 1.0, atol=1e-9)
    assert drift.smooth(x, draws=23, keep_draws=True).sizes["draw"] == 23


def test_intervals_hold_the_truth_as_often_as_they_say():
    """With known parameters, 200 series with 30 % of entries missing and a gap of 20 steps."""
    known = {"q": 0.5, "r": 0.5}
    torch.manual_seed(2)
    num_steps = 80
    x = toys.LevelSeries(torch.tensor(0.5), torch.tensor(0.0), num_steps).sample((200,))
    y = x + 0.5 * torch.randn_like(x)
    y[torch.rand(y.shape) < 0.3] = NAN
    y[:, 30:50] = NAN
    y[:, -1] = x[:, -1]
    found = fitted(toys.Level(known=known), y[:2]).smooth(y, draws=2)
    inside = (x.numpy() >= found["state_lower"].values) & (x.numpy() <= found["state_upper"].values)
    for steps in (slice(0, num_steps - 1), slice(30, 50)):
        rates = inside[:, steps, 0].mean(axis=1)
        # four standard errors between series
        assert rates.mean() == pytest.approx(0.9, abs=4 * rates.std(ddof=1) / 200**0.5)


def test_verbs_of_series_are_refused_to_rows(faithful_fit):
    for verb in (
        faithful_fit.filter,
        faithful_fit.smooth,
        lambda: faithful_fit.forecast(3),
        faithful_fit.leave_future_out,
    ):
        with pytest.raises(InputError, match="expected a state space story, not GaussianMixture"):
            verb()


def test_mistakes_are_said(level):
    fit, _ = level
    with pytest.raises(InputError, match="horizon=0: expected a whole number of at least 1"):
        fit.forecast(0)
    with pytest.raises(InputError, match="start=30: expected a step from 1 to 29"):
        fit.leave_future_out(start=30)
    with pytest.raises(InputError, match="draws=0"):
        fit.smooth(draws=0)
    one = simulated(toys.Level(known=LEVEL), 1, 10)
    with pytest.raises(InputError, match=r"needs at least two rows, and there is one series; fit.leave_future_out\(\)"):
        pplgen.k_fold(pplgen.fit(toys.Level(known=LEVEL), one, steps=5, progress=False))
