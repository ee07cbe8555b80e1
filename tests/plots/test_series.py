"""The figures of series show the inferred states, regimes and forecasts."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from matplotlib.figure import Figure

import pplgen
from pplgen.errors import InputError
from pplgen.plots.fit import plot_fit, save_figure
from pplgen.plots.palette import COLOURS
from pplgen.plots.series import (
    plot_autocorrelations,
    plot_dynamics,
    plot_forecast,
    plot_regimes,
    plot_residuals,
    plot_series,
    plot_states,
)

_SPEC = importlib.util.spec_from_file_location("series_toys", Path(__file__).parents[1] / "series_toys.py")
toys = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(toys)


@pytest.fixture(scope="module")
def coin():
    torch.manual_seed(0)
    y = toys.Coin(known={"P": [[0.9, 0.1], [0.1, 0.9]], "mu": [[-1.0], [2.0]]}).simulate(2, 30)
    y[0, 10:13] = torch.nan
    y[0, 25:] = torch.nan
    return pplgen.fit(toys.Coin(), y, steps=3, compile="off", progress=False), y


@pytest.fixture(scope="module")
def drift():
    torch.manual_seed(0)
    y = toys.Drift().simulate(2, 12)
    return pplgen.fit(toys.Drift(), y, steps=3, compile="off", progress=False), y


def axes():
    return Figure().subplots()


def test_a_figure_shows_the_first_series_beside_the_bound(coin, tmp_path):
    fit, y = coin
    figure = plot_fit(fit, fit.to_datatree(3))
    series, elbo = figure.axes
    assert series.get_title() == "Series 1 of 2, smoothed (exact)"
    assert series.get_ylabel() == "x0"
    assert elbo.get_ylabel() == "ELBO (nats)"
    np.testing.assert_array_equal(series.lines[0].get_ydata(), y[0, :, 0])
    save_figure(figure, tmp_path / "fit.png")
    assert (tmp_path / "fit.png").read_bytes().startswith(b"\x89PNG")


def test_a_series_shows_its_gaps_and_regimes(coin):
    fit, y = coin
    found = fit.smooth(draws=20)
    panel = axes()
    plot_series(panel, y, found)
    line = panel.lines[1].get_ydata()
    np.testing.assert_allclose(line[:25], found["y_mean"].values[0, :25, 0])
    assert np.isnan(line[25:]).all()
    (bands,) = panel.images
    assert bands.get_array().shape == (1, 30, 3)
    labels = panel.get_legend_handles_labels()[1]
    assert labels == ["data", "imputed", "regime 0", "regime 1"]
    # a step that is surely of one regime has that regime's tint; past the end it is white
    probabilities = found["regime_probability"].values[0]
    sure = int(np.nanargmax(probabilities[:, 1]))
    tint = bands.get_array()[0, sure]
    assert tint.argmin() == min(range(3), key=lambda c: int(COLOURS[2][1 + 2 * c : 3 + 2 * c], 16))
    np.testing.assert_array_equal(bands.get_array()[0, -1], 1.0)
    alone = axes()
    plot_regimes(alone, found, series=1)
    assert alone.get_xlim() == (-0.5, 29.5)


def test_states_and_their_intervals(drift):
    fit, y = drift
    found = fit.smooth(draws=50)
    panel = axes()
    plot_states(panel, found, series=1)
    np.testing.assert_allclose(panel.lines[0].get_ydata(), found["state_mean"].values[1, :, 0])
    assert len(panel.collections) == 1
    filtered = axes()
    plot_series(filtered, y, fit.filter(draws=5), series=1)
    assert "signal, 90 %" in filtered.get_legend_handles_labels()[1]


@pytest.mark.parametrize("keep_draws", [False, True])
def test_a_forecast_goes_on_from_the_series_own_end(coin, keep_draws):
    fit, y = coin
    forecast = fit.forecast(4, draws=50, keep_draws=keep_draws)
    panel = axes()
    plot_forecast(panel, y, forecast)
    assert len(panel.collections) == (3 if keep_draws else 1)
    np.testing.assert_array_equal(panel.lines[0].get_xdata(), np.arange(9, 25))
    np.testing.assert_array_equal(panel.lines[1].get_xdata(), np.arange(25, 29))
    np.testing.assert_allclose(panel.lines[1].get_ydata(), forecast["y_mean"].values[0, :, 0])


def test_dynamics_are_drawn_in_each_regime():
    A = np.stack([0.9 * np.eye(2), np.array([[0.0, -1.0], [1.0, 0.0]])])
    posterior = xr.Dataset({"A": (("chain", "draw", "regime", "i", "j"), A[None, None])})
    tree = xr.DataTree.from_dict({"posterior": posterior})
    panel = axes()
    plot_dynamics(panel, tree)
    shrinking, turning = panel.collections
    places = shrinking.get_offsets()
    np.testing.assert_allclose(np.stack([shrinking.U, shrinking.V], 1), -0.1 * places, atol=1e-12)
    np.testing.assert_allclose(turning.U, -places[:, 1] - places[:, 0])
    found = xr.Dataset(
        {
            "state_mean": (("series", "time", "state"), np.random.default_rng(0).normal(size=(1, 9, 2))),
            "regime_probability": (("series", "time", "regime"), np.eye(2)[[0, 0, 0, 1, 1, 1, 1, 0, 0]][None]),
        }
    )
    with_path = axes()
    plot_dynamics(with_path, tree, found)
    assert [len(line.get_xdata()) for line in with_path.lines] == [5, 4, 9]


def test_dynamics_need_two_dimensions(drift):
    fit, _ = drift
    with pytest.raises(InputError, match=r"dynamics: A has shape none; expected \(2, 2\), or \(regimes, 2, 2\)"):
        plot_dynamics(axes(), fit.to_datatree(3, groups=["posterior"]))


def test_residuals_and_their_autocorrelations_are_drawn(drift):
    fit, _ = drift
    found = fit.residuals(draws=5)
    left, right = Figure().subplots(1, 2)
    plot_residuals(left, found, series=1)
    np.testing.assert_array_equal(left.lines[0].get_ydata(), found["residual"].values[1, :, 0])
    plot_autocorrelations(right, found)
    residuals = found["residual"].values[:, :, 0]
    centred = residuals - residuals.mean()
    expected = [(centred[:, lag:] * centred[:, :-lag]).sum() / (centred**2).sum() for lag in (1, 2, 3)]
    np.testing.assert_allclose(right.lines[0].get_ydata(), expected, rtol=1e-6)
    with pytest.raises(InputError, match="3 steps; expected at least 4"):
        plot_autocorrelations(right, found.isel(time=slice(3)))
