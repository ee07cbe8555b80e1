"""K-fold and leave-group-out cross-validation, compared with closed forms and with refits by hand."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pplgen.models import PPCA, VAE, Autoencoder, FactorAnalysis, GaussianMixture, MarkovSwitchingAR, SemiSupervisedVAE

import pplgen
from pplgen.errors import InputError
from pplgen.fitting.compare import bic

PRIOR_SD, SD = 10.0, 2.0


def normal_mean(y):
    mu = pyro.sample("mu", dist.Normal(torch.zeros((), dtype=y.dtype), PRIOR_SD))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, SD), obs=y)


def predictive(held_out, training):
    """Log density of each held-out row, given the training rows, of a normal with known variance."""
    precision = PRIOR_SD**-2 + len(training) / SD**2
    mean = training.sum() / SD**2 / precision
    return dist.Normal(mean, (SD**2 + 1 / precision) ** 0.5).log_prob(held_out)


@pytest.fixture(scope="module")
def y():
    return 1 + SD * torch.randn(23, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture(scope="module")
def mean_fit(y):
    return pplgen.fit(normal_mean, y, progress=False)


def test_a_fold_is_scored_by_the_posterior_of_the_others(mean_fit, y):
    result = pplgen.k_fold(mean_fit, 23, draws=4000)
    expected = torch.stack([predictive(y[i], torch.cat([y[:i], y[i + 1 :]])) for i in range(23)])
    # 4,000 draws of mu with sd .43: the density's relative sd is below .6 of .43 |y - mu| / 4, which is at most .3
    np.testing.assert_allclose(result.elpd_i.values, expected, atol=4 * 0.3 / math.sqrt(4000) + 1e-3)
    assert result.elpd == pytest.approx(float(expected.sum()), abs=0.05)
    assert result.se == pytest.approx(math.sqrt(23 * float(expected.var(correction=0))), rel=0.02)
    assert 0.3 < result.p < 2.0  # one parameter
    assert not result.warning


def test_groups_are_left_out_together(mean_fit, y):
    groups = ["a", "b", "c", "a"] * 5 + ["d"] * 3
    result = pplgen.k_fold(mean_fit, groups=groups, draws=4000)
    inside = np.array(groups)
    expected = torch.zeros_like(y)
    for group in "abcd":
        held_out = torch.from_numpy(inside == group)
        expected[held_out] = predictive(y[held_out], y[~held_out])
    np.testing.assert_allclose(result.elpd_i.values, expected, atol=4 * 0.3 / math.sqrt(4000) + 1e-3)
    sums = np.array([float(expected[torch.from_numpy(inside == group)].sum()) for group in "abcd"])
    assert result.n_folds == 4
    assert result.se == pytest.approx(math.sqrt(4 * sums.var()), rel=0.05)


def test_an_overfitting_factor_model_does_not_win_on_noise():
    generator = torch.Generator().manual_seed(0)
    x, new = torch.randn(40, 8, generator=generator), torch.randn(4000, 8, generator=generator)
    fits = {f"PPCA({k})": pplgen.fit(PPCA(8, k), x, progress=False) for k in (1, 6)}
    fits["normal"] = pplgen.fit(GaussianMixture(1, 8, covariance="diag"), x, progress=False)
    ranked = pplgen.compare(fits, draws=200, with_bic=True)
    assert ranked.attrs["method"] == "k-fold"
    assert list(ranked.index) == ["normal", "PPCA(1)", "PPCA(6)"]
    assert ranked.loc["PPCA(6)", "weight"] < 0.2
    for name in ("PPCA(1)", "PPCA(6)"):
        # fitted to nine tenths of the rows, hence a little worse; two sets of 40 rows differ by 1.4 standard errors
        true = 40 * float(fits[name].log_likelihood(new).double().mean())
        assert ranked.loc[name, "elpd"] == pytest.approx(true, abs=4 * 1.5 * ranked.loc[name, "se"])
        assert float(fits[name].log_likelihood().double().sum()) > ranked.loc[name, "elpd"] + 10
    fitted = fits["PPCA(6)"]
    penalty = (8 * 6 + 8 + 1) * math.log(40)  # loadings, means, noise
    assert bic(fitted) == pytest.approx(-2 * float(fitted.log_likelihood().double().sum()) + penalty, abs=0.5)
    with pytest.raises(InputError, match=r"constants fitted to the rows, .* pplgen.k_fold\(fit\)"):
        fitted.loo()


def test_folds_are_refits_by_hand():
    generator = torch.Generator().manual_seed(0)
    x = 1.5 * torch.randn(60, 1, generator=generator) + torch.randn(60, 6, generator=generator)  # one factor
    result = pplgen.k_fold(pplgen.fit(FactorAnalysis(6, 1), x, progress=False), groups=[i % 3 for i in range(60)])
    for fold in range(3):
        held_out = torch.arange(60) % 3 == fold
        alone = pplgen.fit(FactorAnalysis(6, 1), x[~held_out], progress=False)
        expected = alone.log_likelihood(x[held_out])
        # both end within .001 of the maximum, in its curvature; densities of rows have slopes of a few nats there
        error = 4 * expected.standard_error.numpy() * 2**0.5 + 0.01
        assert (np.abs(result.elpd_i.values[held_out.numpy()] - expected.numpy()) < error).all()


def test_rows_that_weights_cannot_leave_out_are_dropped():
    x = torch.rand(24, 6, generator=torch.Generator().manual_seed(0)).round()
    labels = [0, 1, -1] * 8
    story = SemiSupervisedVAE(6, 2, num_classes=2, hidden=(4,))
    fit = pplgen.fit(story, x, labels=labels, steps=30, progress=False)
    result = pplgen.k_fold(fit, 2, draws=20)
    assert result.elpd_i.shape == (24,)
    assert np.isfinite(result.elpd)
    assert result.warning  # thirty steps


def test_what_cannot_be_held_out(mean_fit, y):
    with pytest.raises(InputError, match=r"folds=1: expected a number from 2 to 23, the number of rows"):
        pplgen.k_fold(mean_fit, 1)
    with pytest.raises(InputError, match="groups: 2 values; expected one for each of the 23 rows"):
        pplgen.k_fold(mean_fit, groups=["a", "b"])
    with pytest.raises(InputError, match="unknown option 'step'"):
        pplgen.k_fold(mean_fit, step=3)
    weighted = pplgen.fit(normal_mean, y, weights=torch.ones(23), steps=5, progress=False)
    with pytest.raises(InputError, match="weighted rows"):
        pplgen.k_fold(weighted)
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    codes = pplgen.fit(Autoencoder(3, 1, hidden=(4,), likelihood="normal"), x, steps=5, progress=False)
    sentence = "the guide is a point mass at 'z' of each row, which gives rows no density"
    with pytest.raises(InputError, match=f"k_fold: {sentence}"):
        pplgen.k_fold(codes)
    with pytest.raises(InputError, match=f"candidate 'codes': {sentence}"):
        pplgen.compare({"codes": codes, "normal": GaussianMixture(1, 3)}, x, steps=5, progress=False)
    with pytest.raises(InputError, match=f"BIC: {sentence}"):
        bic(codes)
    grey = pplgen.fit(VAE(3, 1, hidden=(4,)), torch.rand(20, 3), steps=5, progress=False)
    with pytest.raises(InputError, match=r"'x' has grey values between 0 and 1, .* use ContinuousBernoulli"):
        pplgen.k_fold(grey)


def test_orders_of_an_autoregression_are_scored_on_the_same_steps():
    y = torch.randn(1, 60, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    stories = {f"AR({p})": MarkovSwitchingAR(2, order=p) for p in (0, 1, 3)}
    ranked = pplgen.compare(stories, y, draws=200, progress=False)
    assert ranked.attrs["method"] == "leave-future-out"
    assert len(ranked) == 3
    # white noise: no order is better by more than its own standard error allows
    assert ranked["elpd_diff"].max() < 4 * ranked["dse"].max()
    truth = float(dist.Normal(0.0, 1.0).log_prob(y[0, 30:]).sum())
    assert ranked["elpd"].max() == pytest.approx(truth, abs=8)  # scores of 30 steps have a standard error of 4
