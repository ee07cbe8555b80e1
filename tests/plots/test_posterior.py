"""The figures of any posterior show what they claim; leave-one-out agrees with a conjugate model."""

import arviz_base
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib.figure import Figure
from scipy import stats

import pplgen
from pplgen.plots.posterior import (
    distinct,
    most_correlated,
    plot_fan,
    plot_loo_pit,
    plot_pairs,
    plot_pareto_k,
    plot_predictive,
    plot_prior_posterior,
    scalars,
)
from pplgen.plots.svg import inline_svg
from pplgen.report.observed import Column, leave_one_out, observed_columns

RNG = np.random.default_rng(0)


@pytest.fixture
def axes():
    return Figure().subplots()


@pytest.fixture(scope="module")
def tree():
    """Scalars a and b with correlation .8, c on its own, d constant, and the two weights of a mixture."""
    a, c, logit = RNG.normal(size=(3, 1, 2000))
    b = 0.8 * a + 0.6 * RNG.normal(size=a.shape)
    weight = 1 / (1 + np.exp(-logit))
    posterior = {"a": a, "bc": np.stack([b, c], -1), "d": np.ones_like(a), "w": np.stack([weight, 1 - weight], -1)}
    prior = {"a": RNG.standard_cauchy(size=a.shape)}
    coords = {"column": ["b", "c"]}
    return arviz_base.from_dict({"posterior": posterior, "prior": prior}, dims={"bc": ["column"]}, coords=coords)


def test_scalars_are_named_as_in_the_table(tree):
    found = scalars(tree, ["a", "bc"])
    assert [scalar.label for scalar in found] == ["a", "bc[b]", "bc[c]"]
    np.testing.assert_array_equal(found[2].draws(tree), tree["posterior"]["bc"].values[0, :, 1])


def test_scalars_that_repeat_another_or_nothing_are_left_out(tree):
    labels = [scalar.label for scalar in distinct(tree, scalars(tree, ["a", "bc", "d", "w"]))]
    assert labels == ["a", "bc[b]", "bc[c]", "w[0]"]
    assert distinct(tree, []) == []


def test_pairs_show_the_most_correlated(tree):
    found = distinct(tree, scalars(tree, ["bc", "w", "a"]))
    chosen = most_correlated(tree, found, 2)
    assert [scalar.label for scalar in chosen] == ["bc[b]", "a"]
    grid = Figure().subplots(2, 2)
    plot_pairs(grid, tree, chosen)
    correlation = float(grid[1, 0].get_title().removeprefix("r = "))
    assert correlation == pytest.approx(0.8, abs=4 * 0.36 / 2000**0.5)  # four standard errors, (1 - r^2) / sqrt(S)
    np.testing.assert_array_equal(grid[1, 0].collections[0].get_offsets()[:, 1], chosen[1].draws(tree))


def test_a_wide_prior_leaves_the_posterior_legible(tree, axes):
    plot_prior_posterior(axes, tree, scalars(tree, ["a"])[0])
    low, high = axes.get_xlim()
    assert -15 < low < -3 < 3 < high < 15
    prior, posterior = (line.get_xydata() for line in axes.lines)
    # a normal density at its mode; a kernel estimate from 2,000 draws is off by some per cent
    assert posterior[:, 1].max() == pytest.approx(0.399, rel=0.1)
    # the prior density is not renormalised to the visible range
    inside = np.trapezoid(prior[:, 1], prior[:, 0])
    assert inside == pytest.approx(stats.cauchy.cdf(high) - stats.cauchy.cdf(low), abs=0.05)


def test_replicates_of_the_truth_cover_the_data(axes):
    replicated = RNG.normal(size=(400, 300))
    plot_predictive(axes, RNG.normal(size=300), replicated)
    band, _, data = axes.patches
    densities, edges, lower = *data.get_data()[:2], band.get_data().baseline
    upper = band.get_data().values
    inside = (densities >= lower) & (densities <= upper)
    # 90 % of bins but for their number, some twenty: three binomial standard errors
    assert inside.mean() >= 0.9 - 3 * (0.09 / len(inside)) ** 0.5
    assert (densities * np.diff(edges)).sum() == pytest.approx(1.0)


def test_counts_are_drawn_one_by_one(axes):
    counts = np.array([0.0, 1.0, 1.0, 3.0, np.nan])
    plot_predictive(axes, counts, RNG.poisson(1.2, size=(50, 5)))
    values, edges, _ = axes.patches[2].get_data()
    assert edges[0] == -0.5
    np.testing.assert_allclose(values[:4], [0.25, 0.5, 0.0, 0.25])
    with pytest.raises(pplgen.InputError, match="no value"):
        plot_predictive(axes, counts[4:], RNG.poisson(1.2, size=(50, 1)))


def test_a_fan_holds_its_probability(axes):
    replicated = RNG.normal(size=(5000, 20))
    plot_fan(axes, np.zeros(20), replicated)
    wide, narrow = (band.get_paths()[0].vertices for band in axes.collections)
    # a quantile of 5,000 normal draws errs by sqrt(p (1 - p) / 5000) / density, .030 at .95 and .019 at .75; five of
    # these, for the worst of forty ends of a band
    for band, end, error in ((wide, 1.645, 0.030), (narrow, 0.674, 0.019)):
        np.testing.assert_allclose(abs(band[abs(band[:, 1]) > 0.3, 1]), end, atol=5 * error)


def test_the_band_of_loo_pit_tells_uniform_numbers_from_others(axes):
    uniform = (np.arange(200) + 0.5) / 200
    assert plot_loo_pit(axes, uniform, "calibrated")
    assert not plot_loo_pit(axes, stats.beta(3, 3).ppf(uniform), "too wide")
    assert len(axes.collections) == 1  # one band for both
    assert [len(line.get_xdata()) > 0 for line in axes.lines if line.get_marker() == "x"] == [False, True]


def test_pareto_k_counts_the_rows_above(axes):
    plot_pareto_k(axes, np.array([0.1, 0.6, 0.9, np.inf, -np.inf]))
    good, bad = axes.collections
    assert good.get_label() == "reliable: 3 rows"
    assert np.isfinite(bad.get_offsets()).all()


def test_loo_pit_agrees_with_a_conjugate_model():
    """LOO-PIT of a normal mean with known standard deviation, under a guide that is 1.4 times too wide."""
    y = torch.tensor([-1.2, 0.3, 0.8, 2.9, 0.1, -0.4, 1.1, 0.6])
    n, prior_variance = len(y), 4.0

    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, prior_variance**0.5))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    variance = 1 / (1 / prior_variance + n)

    def guide(y):
        pyro.sample("mu", dist.Normal(pyro.param("m", variance * y.sum()), 1.4 * variance**0.5))

    fit = pplgen.fit(model, y, guide, steps=1, learning_rate=1e-9, compile="off", progress=False)
    tree = fit.to_datatree(8_000)
    weights = leave_one_out(fit, tree)
    (column,) = observed_columns(fit, tree)
    found = weights.loo_pit(column, np.random.default_rng(0))
    rest = 1 / (1 / prior_variance + n - 1)
    exact = stats.norm.cdf(y, rest * (y.sum() - y), (1 + rest) ** 0.5)
    # each is a mean of zeros and ones over some 5,000 effective draws: four standard errors of at most .007
    np.testing.assert_allclose(found, exact, atol=0.03)


def test_columns_differ_as_far_as_their_distributions():
    column = Column("x", np.array([0.0, 1.0, 2.0, 3.0, np.nan]), np.array([[0.0, 1.0, 2.0, 3.0]]))
    assert column.distance == 0.0
    assert column._replace(replicated=np.full((2, 3), 9.0)).distance == 1.0


def test_dense_parts_of_a_picture_are_pixels_and_nothing_is_from_elsewhere():
    figure = Figure()
    few, many = figure.subplots(1, 2)
    few.scatter(*RNG.normal(size=(2, 30)), label="<few> & far")
    few.legend()
    many.scatter(*RNG.normal(size=(2, 5000)))
    text = inline_svg(figure, "name", "A <title>", "Points & more.")
    assert text.count("data:image/png;base64,") == 1
    assert "&lt;few&gt; &amp; far" in text
    assert '<title id="name-title">A &lt;title&gt;</title>' in text
    assert '<desc id="name-description">Points &amp; more.</desc>' in text
    assert "http" not in text
    assert len(text) < 200_000
