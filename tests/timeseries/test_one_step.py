"""One-step-ahead predictions against dense algebra and sums over paths, and the check that rests on them."""

import importlib.util
import itertools
import math
from pathlib import Path

import pytest
import torch
from pplgen.models import GaussianHMM, LinearGaussianSSM, MarkovSwitchingAR
from scipy import stats
from statsmodels.stats.diagnostic import acorr_ljungbox
from torch.distributions import MultivariateNormal, Normal

import pplgen
from pplgen.checks.check import Verdict
from pplgen.checks.inputs import CheckInputs
from pplgen.checks.series import one_step_residuals
from pplgen.errors import InputError
from pplgen.posterior.draws import draw_shared
from pplgen.posterior.residuals import autocorrelations
from pplgen.story.isolation import seeded
from pplgen.timeseries.one_step import one_step_pit

_SPEC = importlib.util.spec_from_file_location("series_toys", Path(__file__).parents[1] / "series_toys.py")
toys = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(toys)

NAN = math.nan
EXACT = {"rtol": 0, "atol": 2e-5, "equal_nan": True}  # the parameters are floats of single precision


def pit(fit, draws=1):
    with seeded(0), fit.pair.isolated(), torch.no_grad():
        return one_step_pit(fit.pair, fit.pair.data[0], draw_shared(fit.pair, draws), draws)


def fitted(story, y, steps=3):
    return pplgen.fit(story, y, steps=steps, compile="off", progress=False)


def judged(fit):
    with seeded(0), fit.pair.isolated(), torch.no_grad():
        inputs = CheckInputs(fit.pair, runs=fit.runs, columns=fit.columns, one_step_pit=one_step_pit)
        return one_step_residuals(inputs)


def test_a_linear_gaussian_step_is_a_conditional_of_the_joint_normal():
    y = torch.tensor([[[0.3], [1.2], [NAN], [-0.4]], [[2.0], [0.1], [0.7], [NAN]]])
    fit = fitted(toys.Level(known={"q": 0.5, "r": 0.7}), y)
    series = toys.LevelSeries(torch.tensor(0.5).double(), torch.tensor(0.7).double(), 4)
    covariance = series.state_covariance + series.r.square() * torch.eye(4)
    expected = torch.full((2, 4, 1), NAN, dtype=torch.float64)
    for i, t in itertools.product(range(2), range(4)):
        past = [s for s in range(t) if not y[i, s].isnan()]
        if y[i, t].isnan():
            continue
        mean, variance = 0.0, float(covariance[t, t])
        if past:
            gain = torch.linalg.solve(covariance[past][:, past], covariance[past, t])
            mean = float(gain @ y[i, past, 0].double())
            variance -= float(gain @ covariance[past, t])
        expected[i, t] = stats.norm(mean, math.sqrt(variance)).cdf(float(y[i, t]))
    torch.testing.assert_close(pit(fit), expected, **EXACT)


def test_a_hidden_markov_step_is_a_mixture_over_all_paths():
    known = {"pi": [0.3, 0.7], "P": [[0.9, 0.1], [0.2, 0.8]], "mu": [[-1.0], [2.0]], "sigma": [[1.0], [0.5]]}
    y = torch.tensor([[[0.3], [1.2], [NAN], [-0.4]]])
    pi, P, mu, sigma = (torch.tensor(value, dtype=torch.float64) for value in known.values())
    expected = torch.full((1, 4, 1), NAN, dtype=torch.float64)
    for t in (0, 1, 3):
        total = below = 0.0
        for path in itertools.product(range(2), repeat=t + 1):
            weight = pi[path[0]]
            for before, after in itertools.pairwise(path):
                weight = weight * P[before, after]
            for s in range(t):
                if not y[0, s].isnan():
                    weight = weight * Normal(mu[path[s]], sigma[path[s]]).log_prob(y[0, s].double()).exp()
            total, below = total + weight, below + weight * Normal(mu[path[t]], sigma[path[t]]).cdf(y[0, t].double())
        expected[0, t] = below / total
    torch.testing.assert_close(pit(fitted(GaussianHMM(2, 1, known=known), y)), expected, **EXACT)


def test_an_autoregression_is_conditioned_on_its_first_steps():
    known = {"P": [[0.9, 0.1], [0.2, 0.8]], "mu": [0.0, 0.0], "sigma": 1.0, "phi": [0.5]}
    y = torch.tensor([[[0.3], [1.2], [0.8], [-0.4]]])
    expected = Normal(0.5 * y[:, :-1].double(), 1.0).cdf(y[:, 1:].double())  # both regimes are alike
    found = pit(fitted(MarkovSwitchingAR(2, order=1, switching_mean=True, known=known), y.repeat(1, 3, 1)))
    assert found[0, 0].isnan()
    torch.testing.assert_close(found[:, 1:4], expected, **EXACT)


def test_a_switching_step_is_a_mixture_over_pairs_of_regimes():
    """Kim's filter is exact for two steps."""
    y = torch.tensor([[[0.3], [1.2]]])
    fit = fitted(toys.Drift(known={"b": [1.0, -1.0]}), y)
    with fit.pair.isolated():
        model = fit.story.state_space(fit.pair.data[0])
    K = len(model.pi)
    part = {name: getattr(model, name).double() for name in model._fields}
    by_regime = {name: part[name].expand(K, *part[name].shape[-2:]) for name in "AQCR"}
    by_regime |= {name: part[name].expand(K, part[name].shape[-1]) for name in "bd"}
    total = below = torch.zeros((), dtype=torch.float64)
    for i, j in itertools.product(range(K), repeat=2):
        A, b, Q = (by_regime[name][j] for name in "AbQ")
        x1, S1 = part["m0"], part["S0"]
        x2, S2 = A @ x1 + b, A @ S1 @ A.mT + Q
        first, second = ([by_regime[name][k] for name in "CdR"] for k in (i, j))
        mean = torch.cat([first[0] @ x1 + first[1], second[0] @ x2 + second[1]])
        cross = first[0] @ (A @ S1).mT @ second[0].mT
        one, two = first[0] @ S1 @ first[0].mT + first[2], second[0] @ S2 @ second[0].mT + second[2]
        covariance = torch.cat([torch.cat([one, cross], 1), torch.cat([cross.mT, two], 1)])
        weight = part["pi"][i] * part["P"][i, j]
        weight = weight * MultivariateNormal(mean[:1], covariance[:1, :1]).log_prob(y[0, 0].double()).exp()
        gain = covariance[1, 0] / covariance[0, 0]
        at = Normal(mean[1] + gain * (y[0, 0, 0] - mean[0]), (covariance[1, 1] - gain * covariance[0, 1]).sqrt())
        total, below = total + weight, below + weight * at.cdf(y[0, 1, 0].double())
    torch.testing.assert_close(pit(fit)[0, 1, 0], below / total, **EXACT)


def test_steps_without_a_normal_distribution_are_refused():
    counts = torch.poisson(torch.full((1, 12, 1), 3.0))
    fit = fitted(GaussianHMM(2, 1, emission="poisson"), counts)
    with pytest.raises(InputError, match="the emission is Poisson; expected a normal one"):
        pit(fit, 2)
    assert judged(fit).verdict is Verdict.NOT_APPLICABLE


def test_autocorrelations_are_those_of_statsmodels():
    z = torch.randn(1, 80, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    r, pairs = autocorrelations(z, 10)
    table = acorr_ljungbox(z[0].numpy(), lags=10)
    torch.testing.assert_close(float(80 * 82 * (r.square() / pairs).sum()), float(table["lb_stat"].iloc[-1]))


def local_level(season=0.0, seed=0, num_series=1):
    generator = torch.Generator().manual_seed(seed)
    level = torch.randn(num_series, 120, 1, generator=generator, dtype=torch.float64).cumsum(1)
    noise = torch.randn(num_series, 120, 1, generator=generator, dtype=torch.float64)
    y = level + noise
    y[-1] += season * torch.sin(2 * math.pi * torch.arange(120) / 7)[:, None]
    return pplgen.fit(LinearGaussianSSM.local_level(), y, progress=False)


def test_a_season_is_seen_in_whichever_series_it_is():
    found = judged(local_level(season=15.0))
    assert found.verdict is Verdict.FAIL
    assert "residuals are correlated, most at lag 7" in found.remedy
    assert "a season of 7 steps" in found.remedy
    last = judged(local_level(season=15.0, num_series=2))
    assert last.verdict is Verdict.FAIL
    assert "most at lag 7" in last.remedy


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_right_model_passes(seed):
    assert judged(local_level(seed=seed)).verdict is Verdict.PASS


def test_residuals_are_normal_quantiles_of_the_probabilities():
    y = torch.tensor([[[0.3], [1.2], [NAN], [-0.4]], [[2.0], [0.1], [0.7], [NAN]]])
    fit = fitted(toys.Level(known={"q": 0.5, "r": 0.7}), y)
    found = fit.residuals(draws=1)
    torch.testing.assert_close(torch.as_tensor(found["probability"].values), pit(fit), **EXACT)
    expected = stats.norm.ppf(found["probability"].values)
    torch.testing.assert_close(torch.as_tensor(found["residual"].values), torch.as_tensor(expected), **EXACT)
    assert found["residual"].dims == ("series", "time", "feature")
