"""Figures of a report that depend on the kind of story or of fit."""

from __future__ import annotations

from pplgen.errors import InputError
from pplgen.plots import fit as plots
from pplgen.plots.latent import plot_latent_map, plot_reconstructions
from pplgen.plots.series import plot_autocorrelations, plot_residuals
from pplgen.posterior.datatree import group_of
from pplgen.report.figure_inputs import CaptionedFigure, FigureInputs, new_figure
from pplgen.report.observed import NO_ROWS

__all__ = ["components", "history", "latent_map", "reconstructions", "residuals", "smoothed_series"]


def components(inputs: FigureInputs) -> CaptionedFigure:
    """Plot a Gaussian mixture's components over the rows."""
    figure = new_figure(5.5, 4.2)
    plots.plot_mixture(figure.subplots(), inputs.tree)
    weights = group_of(inputs.tree, "posterior")["weights"].mean(("chain", "draw")).values
    listed = ", ".join(f"{weight:.2f}" for weight in weights[:12])
    return figure, (
        f"Rows, and components at their posterior means. The weights of the {len(weights)} components are {listed}"
        + (", ..." if len(weights) > 12 else "")
        + ". With more than two columns, the two that differ most between components are shown."
    )


def smoothed_series(inputs: FigureInputs) -> CaptionedFigure:
    """Plot the first series, smoothed."""
    if not inputs.fit.has_rows:
        raise InputError(NO_ROWS)
    panels = min(plots.MAX_PANELS, inputs.fit.pair.data[0].shape[-1])
    figure = new_figure(5.5, 2.4 + 1.3 * panels)
    plots.plot_smoothed(figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0], inputs.fit)
    return figure, (
        "The first series, smoothed: each step given the whole series, with 90 % intervals. Shaded backgrounds, if "
        "any, are regimes, their colours mixed by their probabilities."
    )


def residuals(inputs: FigureInputs) -> CaptionedFigure:
    """Plot one-step-ahead residuals of the first series, and the autocorrelations of all series' residuals."""
    if not inputs.fit.has_rows:
        raise InputError(NO_ROWS)
    found = inputs.fit.residuals()
    panels = min(plots.MAX_PANELS, found.sizes["feature"])
    figure = new_figure(6.5, 1.2 + 1.6 * panels)
    for feature, (left, right) in enumerate(figure.subplots(panels, 2, squeeze=False, width_ratios=(1.8, 1))):
        plot_residuals(left, found, feature=feature)
        plot_autocorrelations(right, found, feature=feature)
    return figure, (
        "Left: one-step-ahead residuals of the first series, each the standard normal quantile of the step's value "
        "given the steps before it. Right: autocorrelations of the residuals, pooled over series. If the model is "
        "right, 95 % lie in the shaded bands; a peak at a lag is a season or a dependence that the model lacks."
    )


def latent_map(inputs: FigureInputs) -> CaptionedFigure:
    """Plot the latent means of rows."""
    if not inputs.fit.has_rows:
        raise InputError(NO_ROWS)
    encoded, labels = plots.encoded_rows(inputs.fit)
    figure = new_figure(5.5, 4.2)
    plot_latent_map(figure.subplots(), encoded, labels)
    coloured = " Colours are the classes of rows." if labels is not None else ""
    return (
        figure,
        f"Latent means of {encoded.sizes['row']:,} rows, in the dimensions of largest variance.{coloured}",
    )


def reconstructions(inputs: FigureInputs) -> CaptionedFigure:
    """Plot some rows above their reconstructions."""
    if not inputs.fit.has_rows:
        raise InputError(NO_ROWS)
    examples = plots.example_rows(inputs.fit)
    figure = new_figure(5.5, 4.2)
    plot_reconstructions(figure.subplots(), examples, inputs.fit.reconstruct(inputs.fit.named(examples)))
    return figure, "Rows in the upper lines; below each, its reconstruction from the latent mean."


def history(inputs: FigureInputs) -> CaptionedFigure:
    """Plot the ELBO over steps, or the log density of each NUTS chain."""
    fit = inputs.fit
    if fit.chains is not None:
        if "lp" not in group_of(inputs.tree, "sample_stats"):
            raise InputError(NO_ROWS)
        figure = new_figure(5.5, 4.2)
        plots.plot_chains(figure.subplots(), inputs.tree)
        return figure, "Log density of each chain's draws. Chains that have mixed look like the same noise."
    if not len(fit.best.history):
        raise InputError("The run has no history of the ELBO.")
    figure = new_figure(5.5, 4.2)
    plots.plot_elbo(figure.subplots(), fit)
    return figure, (
        f"The ELBO over {len(fit.best.history):,} steps, with the noise of its moving average; the final value is "
        f"{fit.elbo:.2f} ± {fit.best.elbo_error:.2f} nats. A curve that still rises has not converged."
    )
