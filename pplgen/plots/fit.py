"""Matplotlib figures of a fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from torch import Tensor

from pplgen.errors import InputError
from pplgen.inference.convergence import WINDOW
from pplgen.plots.latent import MAX_LABELS, plot_latent_map, plot_reconstructions
from pplgen.plots.literal_text import literal
from pplgen.plots.palette import COLOURS
from pplgen.plots.series import plot_series
from pplgen.posterior.datatree import group_of
from pplgen.posterior.fitted_pair import FittedPair
from pplgen.story.latent import LatentStory

__all__ = [
    "encoded_rows",
    "example_rows",
    "is_gaussian_mixture",
    "plot_chains",
    "plot_elbo",
    "plot_fit",
    "plot_mixture",
    "plot_smoothed",
    "plot_training",
    "save_figure",
]

MASS = (0.5, 0.9)
"""Probability inside each ellipse of a Gaussian component."""
MAX_PANELS, SMOOTHING_DRAWS = 3, 100
"""Maximum number of columns of a series shown, and parameter draws used to smooth them."""

MAX_ENCODED, MAX_RECONSTRUCTED = 5000, 24
"""Maximum numbers of rows whose latent means and whose reconstructions are shown."""


def plot_fit(fit: FittedPair, tree: xr.DataTree) -> Figure:
    """Plot the data with the fitted model, beside the ELBO or the chains.

    Parameters
    ----------
    fit
        The fit.
    tree
        Its draws. Mixtures show their components if it has ``posterior`` and ``observed_data``; state space stories
        show the first training series, smoothed; latent-variable stories show latent means and reconstructions.
    """
    if isinstance(fit.story, LatentStory) and fit.has_rows:
        return _plot_latent_fit(fit, tree)
    if fit.story is not None and fit.story.takes_series and fit.has_rows:
        return _plot_series_fit(fit, tree)
    mixture = is_gaussian_mixture(tree)
    figure = Figure(figsize=(10, 4.2) if mixture else (5.5, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2, squeeze=False, width_ratios=(1.25, 1))[0] if mixture else [figure.subplots()]
    if mixture:
        plot_mixture(axes[0], tree)
    plot_training(axes[-1], fit, tree)
    return figure


def is_gaussian_mixture(tree: xr.DataTree) -> bool:
    """Return whether draws are of a Gaussian mixture and include its rows."""
    names = set(tree["posterior"].data_vars)
    return {"weights", "mu"} <= names and bool({"Sigma", "sigma"} & names) and "x" in group_of(tree, "observed_data")


def _plot_series_fit(fit: FittedPair, tree: xr.DataTree) -> Figure:
    """Plot the first series, smoothed, beside the ELBO or the chains."""
    panels = min(MAX_PANELS, fit.pair.data[0].shape[-1])
    figure = Figure(figsize=(12, 3.2 + panels), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subfigures(1, 2, width_ratios=(1.8, 1), squeeze=False)[0]
    plot_smoothed(left.subplots(panels, 1, sharex=True, squeeze=False)[:, 0], fit)
    plot_training(right.subplots(), fit, tree)
    return figure


def _plot_latent_fit(fit: FittedPair, tree: xr.DataTree) -> Figure:
    """Plot latent means of rows, some rows with their reconstructions, and the ELBO or the chains."""
    examples = example_rows(fit)
    figure = Figure(figsize=(15, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.1, 1.2, 1))
    plot_latent_map(left, *encoded_rows(fit))
    plot_reconstructions(middle, examples, fit.reconstruct(fit.named(examples)))
    plot_training(right, fit, tree)
    return figure


def plot_smoothed(panels: np.ndarray, fit: FittedPair) -> None:
    """Plot the first series, smoothed, one column per panel."""
    y = fit.pair.data[0]
    smoothed = fit.smooth(draws=SMOOTHING_DRAWS)
    for feature, axes in enumerate(panels):
        plot_series(axes, y, smoothed, feature=feature)
        axes.label_outer()
        if feature and (legend := axes.get_legend()):
            legend.remove()
    first = f"Series 1 of {len(y)}" if len(y) > 1 else "The series"
    panels[0].set_title(f"{first}, smoothed ({smoothed.attrs['estimator'].partition(' (')[0]})")


def encoded_rows(fit: FittedPair) -> tuple[xr.Dataset, Tensor | None]:
    """Return the encoding of the first rows, and their labels or classes if known and few enough to colour."""
    known = [] if fit.table is None else [each for each in (fit.table.labels, fit.table.target) if each is not None]
    labels = known[0][:MAX_ENCODED] if known and len(known[0].unique()) <= MAX_LABELS else None
    return fit.encode(fit.named(fit.pair.data[0][:MAX_ENCODED])), labels


def example_rows(fit: FittedPair) -> Tensor:
    """Return evenly spaced rows whose reconstructions are shown."""
    x = fit.pair.data[0]
    return x[:: max(1, len(x) // MAX_RECONSTRUCTED)][:MAX_RECONSTRUCTED]


def plot_mixture(axes: Axes, tree: xr.DataTree) -> None:
    """Plot rows and posterior mean components: ellipses of two features, or densities of one over a histogram.

    With more than two features, shows the two with the largest ratio of total to within-component variance.
    Components with an expected size below half a row are left out.
    """
    mean = tree["posterior"].to_dataset().mean(dim=("chain", "draw"))
    x = tree["observed_data"].to_dataset()["x"].values
    weights = mean["weights"].values
    occupied = np.flatnonzero(weights * len(x) >= 0.5)
    mu, Sigma = mean["mu"].values[occupied], _covariances(mean)[occupied]
    names = [literal(name) for name in mean["feature"].values]
    if len(names) == 1:
        _plot_densities(axes, x[~np.isnan(x[:, 0]), 0], weights[occupied], mu[:, 0], Sigma[:, 0, 0], occupied)
        axes.set(xlabel=names[0], ylabel="density")
    else:
        within = np.einsum("k,kdd->d", weights[occupied], Sigma)
        i, j = np.sort(np.argsort(-np.nanvar(x, axis=0) / within)[:2])
        axes.scatter(x[:, i], x[:, j], s=9, color="0.35", alpha=0.5, linewidths=0, label="data", zorder=1)
        for k, centre, covariance in zip(occupied, mu, Sigma, strict=True):
            colour = COLOURS[k % len(COLOURS)]
            for mass in MASS:
                axes.add_patch(_ellipse(centre[[i, j]], covariance[np.ix_([i, j], [i, j])], mass, colour))
            axes.plot(*centre[[i, j]], "+", color=colour, ms=9, mew=2, label=f"component {k}: {weights[k]:.2f}")
        axes.set(xlabel=names[i], ylabel=names[j])
    axes.set_title("Posterior mean components" + (" (50 % and 90 % ellipses)" if len(names) > 1 else ""))
    axes.legend(frameon=False, fontsize="small")


def plot_chains(axes: Axes, tree: xr.DataTree) -> None:
    """Plot log p(x, theta) of each draw, one line per NUTS chain."""
    lp = tree["sample_stats"].to_dataset()["lp"]
    for chain in range(lp.sizes["chain"]):
        axes.plot(lp[chain], lw=0.6, color=COLOURS[chain % len(COLOURS)], label=f"chain {chain + 1}")
    axes.set(xlabel="draw", ylabel="log p(x, θ) (nats)", title="NUTS chains")
    axes.legend(frameon=False, fontsize="small", loc="lower right")


def plot_training(axes: Axes, fit: FittedPair, tree: xr.DataTree) -> None:
    """Plot the ELBO over steps, or the log density of each NUTS chain."""
    plot_chains(axes, tree) if fit.chains is not None else plot_elbo(axes, fit)


def plot_elbo(axes: Axes, fit: FittedPair) -> None:
    """Plot the ELBO of each step, its moving average with two standard errors, and the final value."""
    history = fit.best.history
    if fit.chains is not None:
        raise InputError("a fit by method='nuts' has no ELBO; plot_chains shows its chains")
    steps = np.arange(1, len(history) + 1)
    axes.plot(steps, history, color="0.75", lw=0.6, label="each step")
    width = min(WINDOW, len(history))
    windows = np.lib.stride_tricks.sliding_window_view(history, width)
    smooth, noise = windows.mean(axis=1), 2 * windows.std(axis=1) / np.sqrt(width)
    ends = steps[width - 1 :]
    axes.fill_between(ends, smooth - noise, smooth + noise, color=COLOURS[0], alpha=0.3, lw=0)
    axes.plot(ends, smooth, color=COLOURS[0], label=f"mean of {width} ± 2 s.e.")
    axes.axhline(fit.elbo, color=COLOURS[1], lw=1, ls="--", label=f"final {fit.elbo:.2f} ± {fit.best.elbo_error:.2f}")
    # the first steps may lie far below; show where the curve levels off
    low, high = np.quantile(history, [0.02, 1.0])
    axes.set_ylim(low - 0.1 * (high - low + 1e-9), high + 0.1 * (high - low + 1e-9))
    axes.set(xlabel="step", ylabel="ELBO (nats)", title=f"Stopped: {fit.stop.name.lower().replace('_', ' ')}")
    axes.legend(frameon=False, fontsize="small", loc="lower right")


def save_figure(figure: Figure, path: Path) -> None:
    """Save a figure as PNG, 150 dots per inch."""
    figure.savefig(path, dpi=150, format="png")


def _ellipse(mean: np.ndarray, covariance: np.ndarray, mass: float, colour: str) -> Ellipse:
    """Return the ellipse that contains probability ``mass`` of a bivariate Gaussian."""
    values, vectors = np.linalg.eigh(covariance)
    # -2 log(1 - mass) is the quantile of the chi-squared distribution with two degrees of freedom
    width, height = 2 * np.sqrt(-2 * np.log(1 - mass) * values)
    angle = np.degrees(np.arctan2(vectors[1, 0], vectors[0, 0]))
    return Ellipse(tuple(mean), width, height, angle=angle, facecolor=(colour, 0.12), edgecolor=colour, lw=1.4)


def _covariances(mean: xr.Dataset) -> np.ndarray:
    """Return each component's covariance, shape ``(K, D, D)``, for any kind of covariance."""
    K, D = mean["mu"].shape
    if "Sigma" in mean:
        return np.broadcast_to(mean["Sigma"].values, (K, D, D))
    sigma = np.broadcast_to(mean["sigma"].values.reshape(K, -1), (K, D))
    return np.eye(D) * sigma[:, None, :] ** 2


def _plot_densities(
    axes: Axes, x: np.ndarray, weights: np.ndarray, mu: np.ndarray, variance: np.ndarray, labels: np.ndarray
) -> None:
    """Plot a histogram of one feature with each weighted component's density and their sum."""
    axes.hist(x, bins="auto", density=True, color="0.85", label="data")
    grid = np.linspace(x.min(), x.max(), 400)[:, None]
    parts = weights * np.exp(-0.5 * (grid - mu) ** 2 / variance) / np.sqrt(2 * np.pi * variance)
    for k, weight, part in zip(labels, weights, parts.T, strict=True):
        axes.plot(grid, part, color=COLOURS[k % len(COLOURS)], label=f"component {k}: {weight:.2f}")
    axes.plot(grid, parts.sum(axis=1), color="0.2", lw=1, ls="--", label="mixture")
