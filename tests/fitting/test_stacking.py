"""Stacking of fits and of restarts, against weights found by a search over the mixture's score."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pplgen.models import PPCA, GaussianMixture
from scipy.optimize import minimize_scalar
from scipy.stats import cauchy

import pplgen
from pplgen.errors import InputError

# quantiles of two groups around -8 and 8, sixty and forty rows
NOISE = [dist.Normal(0.0, 1.0).icdf((torch.arange(n) + 0.5) / n) for n in (60, 40)]
TWO = torch.cat([NOISE[0] - 8, NOISE[1] + 8])


def one_place(y):
    """A location with heavy tails: a mode at each group, of which the first has all the mass."""
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Cauchy(mu, 1.0), obs=y)


@pytest.fixture(scope="module")
def modes():
    """Restarts at either mode; parameters of a restart are those of its guide."""
    fit = pplgen.fit(one_place, TWO, restarts=24, seed=1, progress=False)
    places = {round(float(np.asarray(run.final)[0]) / 8) for run in fit.runs}
    assert places == {-1, 1}, "the seed must have restarts at both"
    return fit


def mixture_weight(first, second):
    """Maximise the log score of a mixture of two densities, shape (num_rows,) each; weight of the first."""
    score = lambda w: -np.log(w * first + (1 - w) * second).sum()  # noqa: E731
    return minimize_scalar(score, bounds=(0, 1), method="bounded", options={"xatol": 1e-8}).x


def test_restarts_at_two_modes_are_mixed(modes, capsys):
    stacked = pplgen.stack(modes)
    tree = stacked.to_datatree(1000)
    mu = tree["posterior"]["mu"].values
    assert mu.shape == (1, 1000)
    fraction = (mu < 0).mean()
    # the posterior at each mode is narrow: its predictive density is nearly the likelihood's at the mode
    densities = [cauchy.pdf(TWO.numpy(), mu[np.sign(mu) == sign].mean()) for sign in (-1, 1)]
    expected = mixture_weight(*densities)
    # ArviZ's search stops at 1e-6 of the score, .01 of the weight; one draw of rounding for each restart
    assert fraction == pytest.approx(expected, abs=0.03)
    assert 0.5 < expected < 0.7
    assert float(stacked.weights.sum()) == pytest.approx(1.0)
    found = stacked.log_likelihood()
    mixture = np.log(fraction * densities[0] + (1 - fraction) * densities[1])
    # the posterior's width of .2 moves log densities by .02 in the mean, more in the flanks
    np.testing.assert_allclose(found.numpy(), mixture, atol=0.15)
    assert (found.standard_error > 0).all()
    assert float(found.as_subclass(torch.Tensor).sum()) > float(modes.log_likelihood().sum()) + 20
    # the pair's own parameters are as they were
    assert abs(float(modes.to_datatree(200)["posterior"]["mu"].mean()) + 8) < 0.5
    stacked.summary()
    printed = capsys.readouterr().out
    assert "Stacking weights" in printed
    assert "restarts stacked" in printed
    replicated = tree["posterior_predictive"]["y"].values
    # medians of Cauchy replicates lie at their mode, up to .16 for 100 rows
    np.testing.assert_allclose(np.median(replicated, -1), mu, atol=1.2)


def test_models_are_weighted_by_their_mixture_s_score(faithful_fit):
    one = pplgen.fit(GaussianMixture(1, 2), "faithful", progress=False)
    fits = {"one": one, "two": faithful_fit}
    stacked = pplgen.stack(fits, draws=500)
    assert stacked.table.attrs["method"] == "loo"
    loo = {name: np.exp(fit.loo(draws=500).elpd_i.values) for name, fit in fits.items()}
    expected = mixture_weight(loo["two"], loo["one"])
    assert float(stacked.table.loc["two", "weight"]) == pytest.approx(expected, abs=0.01)
    rows = stacked.sample(400, seed=3)
    assert rows.shape == (400, 2)
    # the mean of Old Faithful's eruptions, 3.49 with sd 1.14: four standard errors of 400 rows
    assert abs(float(rows[:, 0].mean()) - 3.49) < 4 * 1.14 / math.sqrt(400)
    tree = stacked.to_datatree(100)
    assert list(tree.children) == ["posterior_predictive", "observed_data"]
    with pytest.raises(InputError, match="group 'posterior': a stack of different models has posterior_predictive"):
        stacked.to_datatree(100, groups=["posterior"])


def test_weights_depend_on_ratios_of_densities_alone():
    """Rows of forty columns in units of a thousandth: densities of a row underflow or overflow when exponentiated."""
    generator = torch.Generator().manual_seed(0)
    x = 1e12 * torch.randn(30, 40, generator=generator, dtype=torch.float64)
    options = {"covariance": "diag", "mean_precision": 1.0}
    fits = {
        name: pplgen.fit(GaussianMixture(1, 40, prior_scale=scale, **options), x, steps=400, progress=False)
        for name, scale in (("right", 1e12), ("wide", 5e12))
    }
    assert float(fits["right"].log_likelihood(draws=50).max()) < -745, "or they would not underflow"
    table = pplgen.compare(fits, draws=200)
    assert table["weight"].sum() == pytest.approx(1.0, abs=1e-6)
    terms = {name: fit.loo(draws=200).elpd_i.values for name, fit in fits.items()}
    best = np.maximum(*terms.values())
    expected = mixture_weight(*(np.exp(each - best) for each in terms.values()))
    assert 0.5 < expected < 1
    assert table.loc["right", "weight"] == pytest.approx(expected, abs=0.01)


def test_what_cannot_be_stacked(faithful_fit, modes):
    with pytest.raises(InputError, match="1 restarts; expected at least two, as by fit"):
        pplgen.stack(pplgen.fit(one_place, TWO, steps=20, progress=False))
    with pytest.raises(InputError, match="1 candidates: expected at least two to stack"):
        pplgen.stack({"only": faithful_fit})
    with pytest.raises(InputError, match="candidate 'story' is a GaussianMixture; expected a fit"):
        pplgen.stack({"fit": faithful_fit, "story": GaussianMixture(1, 2)})
    with pytest.raises(InputError, match="restarts are stacked at their own parameters"):
        pplgen.stack(modes, method="k-fold")
    points = pplgen.fit(PPCA(2, 1), torch.randn(20, 2), restarts=2, steps=50, progress=False)
    with pytest.raises(InputError, match="constants that were fitted to the rows have no leave-one-out density"):
        pplgen.stack(points)
    normal = pplgen.fit(one_place, TWO, method="laplace", restarts=2, progress=False)
    with pytest.raises(InputError, match="the parameters of its restarts were not stored"):
        pplgen.stack(normal)
