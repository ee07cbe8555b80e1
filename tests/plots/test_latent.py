"""The figures of latent variables show what was inferred."""

import math

import numpy as np
import pytest
import torch
import xarray as xr
from matplotlib.figure import Figure
from pplgen.models import VAE

import pplgen
from pplgen.errors import InputError
from pplgen.plots.fit import plot_fit, save_figure
from pplgen.plots.latent import (
    MISSING,
    plot_anomalies,
    plot_inpainting,
    plot_interpolation,
    plot_latent_map,
    plot_reconstructions,
    plot_traversals,
)

pytestmark = pytest.mark.filterwarnings("ignore:column .* is constant")


@pytest.fixture(scope="module")
def fit():
    torch.manual_seed(0)
    x = pplgen.load_data("digits").values[:300] / 16
    return pplgen.fit(VAE(64, 2, hidden=(16,)), x, steps=200, batch_size=128, progress=False)


def axes():
    return Figure().subplots()


def codes_of(z):
    return xr.Dataset({"z": (("row", "latent"), np.asarray(z, float))})


def test_a_figure_shows_latent_means_reconstructions_and_the_bound(fit, tmp_path):
    figure = plot_fit(fit, None)
    codes, rows, elbo = figure.axes
    np.testing.assert_allclose(codes.collections[0].get_offsets(), fit.encode()["z"], rtol=1e-5)
    assert rows.get_title() == "Rows and their reconstructions"
    # three pairs of lines of eight digits of 8 x 8, a pixel between
    assert rows.images[0].get_array().shape == (6 * 9 - 1, 8 * 9 - 1, 3)
    assert elbo.get_ylabel() == "ELBO (nats)"
    save_figure(figure, tmp_path / "fit.png")
    assert (tmp_path / "fit.png").read_bytes().startswith(b"\x89PNG")


def test_a_map_shows_the_dimensions_of_largest_variance_coloured_by_label():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(50, 4)) * [0.1, 2.0, 0.2, 1.0]
    labels = [0, 1] * 24 + [-1, -1]
    panel = axes()
    plot_latent_map(panel, codes_of(z), labels)
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("z[1]", "z[3]")
    assert panel.get_legend_handles_labels()[1] == ["unknown", "0", "1"]
    assert [len(points.get_offsets()) for points in panel.collections] == [2, 24, 24]
    np.testing.assert_allclose(panel.collections[1].get_offsets(), z[0:48:2][:, [1, 3]])
    words = axes()
    plot_latent_map(words, codes_of(z), ["a", "b"] * 25)
    assert words.get_legend_handles_labels()[1] == ["a", "b"]


def test_a_map_by_principal_components():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(500, 3)) @ np.diag([4.0, 1.0, 0.02])
    panel = axes()
    plot_latent_map(panel, codes_of(z), by="pca")
    places = np.asarray(panel.collections[0].get_offsets())
    # what is left out changes a norm by at most its length, here less than five times its standard deviation
    np.testing.assert_allclose(np.linalg.norm(places, axis=1), np.linalg.norm(z - z.mean(0), axis=1), atol=5 * 0.02)
    # 16 / 17 of the variance, with a standard error of .005
    assert panel.get_xlabel().startswith("principal component 1: 9")


def test_a_single_latent_dimension_is_a_histogram():
    panel = axes()
    plot_latent_map(panel, codes_of(np.arange(20.0)[:, None]), [0] * 10 + [1] * 10)
    assert sum(patch.get_height() for patch in panel.patches) == 20
    assert panel.get_ylabel() == "rows"


@pytest.mark.parametrize(
    ("labels", "by", "sentence"),
    [
        ([0, 1], "variance", "labels: 2 for 30 rows"),
        (list(range(30)), "variance", "labels: 30 distinct values; expected at most 20"),
        (None, "tsne", "by='tsne': expected one of variance, pca"),
    ],
)
def test_mistakes_with_a_map(labels, by, sentence):
    with pytest.raises(InputError, match=sentence):
        plot_latent_map(axes(), codes_of(np.zeros((30, 2))), labels, by=by)


def test_images_are_placed_in_their_cells():
    x = torch.zeros(3, 25)
    x[0, 0], x[1, 24] = 1, 1
    panel = axes()
    plot_reconstructions(panel, x, 1 - x)
    shown = panel.images[0].get_array()
    assert shown.shape == (11, 17, 3)
    assert (shown[0, 0] == 0).all()
    assert (shown[4, 10] == 0).all()
    assert (shown[6, 0] == 1).all()
    assert [label.get_text() for label in panel.get_yticklabels()] == ["row", "decoded"]


def test_inpainting_shows_what_was_missing(fit):
    x = fit.table.values[:3]
    masked = x.clone()
    masked[:, :32] = math.nan
    panel = axes()
    plot_inpainting(panel, x, masked, fit.impute(masked, draws=12))
    shown = panel.images[0].get_array()
    assert shown.shape == (3 * 9 - 1, 12 * 9 - 1, 3)
    np.testing.assert_allclose(shown[:4, 9:17], np.broadcast_to(MISSING, (4, 8, 3)))
    # the lower half of every draw is the original's
    for cell in range(2, 12):
        np.testing.assert_allclose(shown[4:8, 9 * cell : 9 * cell + 8], shown[4:8, :8])
    assert [label.get_text() for label in panel.get_xticklabels()][:4] == ["original", "observed", "draw 1", "2"]


def test_traversals_and_interpolations(fit):
    panel = axes()
    plot_traversals(panel, fit.traverse(num=5))
    assert panel.images[0].get_array().shape == (17, 44, 3)
    assert [label.get_text() for label in panel.get_yticklabels()] == ["z[0]", "z[1]"]
    x = fit.table.values
    for walked, lines in ((fit.interpolate(x[0], x[1], 4), 1), (fit.interpolate(x[:2], x[2:4], 4), 2)):
        panel = axes()
        plot_interpolation(panel, walked)
        assert panel.images[0].get_array().shape == (9 * lines - 1, 35, 3)


def test_rows_that_are_not_images_are_bars():
    x = torch.randn(4, 7)
    panel = axes()
    plot_reconstructions(panel, x, x / 2)
    assert not panel.images
    assert len(panel.patches) == 2 * 4 * 7
    heights = np.array([patch.get_height() for patch in panel.patches]).reshape(2, 4, 7)
    # downwards is up, for lines are counted from the top
    np.testing.assert_allclose(heights[0], 2 * heights[1], atol=1e-6)
    assert (np.sign(heights[0]) == -np.sign(x.numpy())).all()
    masked = x.clone()
    masked[:, 0] = math.nan
    panel = axes()
    plot_inpainting(panel, x, masked, x.expand(2, 4, 7))
    assert sum(len(line.get_xdata()) for line in panel.lines if line.get_marker() == ".") == 4


def test_scores_are_shown_with_their_threshold(fit):
    x = fit.table.values
    found = fit.anomaly(1 - x[:50], rate=0.05, draws=20)
    panel = axes()
    plot_anomalies(panel, found)
    (line,) = panel.lines
    assert line.get_xdata()[0] == float(found["threshold"])
    labels = panel.get_legend_handles_labels()[1]
    assert {"training rows", "rows: 50 of 50 flagged"} <= set(labels)
