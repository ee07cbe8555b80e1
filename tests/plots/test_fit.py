"""The figures of a fit show what they claim."""

import numpy as np
import pytest
import torch
from matplotlib.patches import Ellipse
from pplgen.models import DirichletProcessMixture, GaussianMixture

import pplgen
from pplgen import plots
from pplgen.plots.fit import MASS, _ellipse, plot_fit, save_figure


def test_figure_shows_components_and_bound(faithful_fit, faithful_tree, tmp_path):
    figure = plot_fit(faithful_fit, faithful_tree)
    mixture, elbo = figure.axes
    assert len([patch for patch in mixture.patches if isinstance(patch, Ellipse)]) == 2 * len(MASS)
    assert (mixture.get_xlabel(), mixture.get_ylabel()) == ("eruptions", "waiting")
    assert len(mixture.collections[0].get_offsets()) == 272
    np.testing.assert_array_equal(elbo.lines[0].get_ydata(), faithful_fit.best.history)
    save_figure(figure, tmp_path / "fit.png")
    assert (tmp_path / "fit.png").read_bytes().startswith(b"\x89PNG")


def test_renamed_functions_are_found_by_their_old_names():
    for old, new in plots._RENAMED.items():
        with pytest.warns(FutureWarning, match=f"pplgen.plots.{old} is now {new}"):
            assert getattr(plots, old) is getattr(plots, new)


def test_ellipses_hold_their_mass():
    covariance = np.array([[2.0, 1.2], [1.2, 1.0]])
    rng = np.random.default_rng(0)
    draws = rng.multivariate_normal([1.0, -1.0], covariance, size=20_000)
    for mass in MASS:
        patch = _ellipse(np.array([1.0, -1.0]), covariance, mass, "red")
        path = patch.get_path().transformed(patch.get_patch_transform())
        inside = path.contains_points(draws).mean()
        # three binomial standard errors of 20,000 draws, and the polygon's own error
        assert inside == pytest.approx(mass, abs=3 * (mass * (1 - mass) / 20_000) ** 0.5 + 2e-3)


@pytest.mark.parametrize("covariance", ["full", "tied", "diag", "spherical"])
@pytest.mark.parametrize("num_features", [1, 4])
def test_other_numbers_of_features(num_features, covariance):
    x = torch.randn(40, num_features)
    x[3, 0] = torch.nan
    fit = pplgen.fit(GaussianMixture(2, num_features, covariance=covariance), x, steps=5, compile="off", progress=False)
    figure = plot_fit(fit, fit.to_datatree(3))
    assert len(figure.axes) == 2
    assert figure.axes[0].get_legend() is not None


def test_components_without_rows_are_left_out():
    fit = pplgen.fit(DirichletProcessMixture(6, 2, concentration=0.1), "faithful", steps=300, progress=False)
    mixture = plot_fit(fit, fit.to_datatree(50)).axes[0]
    assert len([patch for patch in mixture.patches if isinstance(patch, Ellipse)]) == 2 * len(MASS)


def test_a_bare_pair_shows_its_bound():
    import pyro
    import pyro.distributions as dist

    def model(y):
        pyro.sample("y", dist.Normal(pyro.sample("mu", dist.Normal(0.0, 1.0)), 1.0), obs=y.mean())

    fit = pplgen.fit(model, torch.zeros(3), steps=5, progress=False)
    assert len(plot_fit(fit, fit.to_datatree(3)).axes) == 1
