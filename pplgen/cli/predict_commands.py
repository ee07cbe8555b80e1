"""The ``sample``, ``predict``, ``forecast`` and ``anomaly`` commands; torch is imported when one runs."""

from __future__ import annotations

from typing import Annotated

import typer

from pplgen.cli.shared_options import (
    DataArgument,
    HeaderOption,
    IdOption,
    OutFileOption,
    RunArgument,
    SeedOption,
    SeriesOption,
    StoryOption,
)

__all__ = ["add_commands"]


def sample(
    run: RunArgument,
    num_rows: Annotated[int, typer.Option("-n", "--num-rows", min=1, help="Number of rows.")] = 10,
    seed: SeedOption = 0,
    story: StoryOption = None,
    out: OutFileOption = None,
) -> None:
    """Draw new rows, or whole series, from a run's posterior predictive distribution, as CSV."""
    from pplgen.cli import tables
    from pplgen.fitting.load import load

    tables.write_csv(tables.sampled(load(run, story=story), num_rows, seed), out)


def predict(
    run: RunArgument,
    data: DataArgument,
    series: SeriesOption = None,
    identifiers: IdOption = None,
    header: HeaderOption = None,
    story: StoryOption = None,
    out: OutFileOption = None,
) -> None:
    """Score rows, as CSV: log density in nats, and the posterior of each row's latent variables.

    For series, each step is scored given those before it; states, regimes and observations are smoothed.
    """
    from pplgen.cli import tables
    from pplgen.fitting.load import load

    fit = load(run, story=story)
    table = tables.read_rows(fit, data, by=series, identifiers=identifiers, header=header)
    tables.write_csv(tables.predicted(fit, table), out)


def forecast(
    run: RunArgument,
    data: DataArgument,
    horizon: Annotated[int, typer.Option(min=1, help="Number of steps.")] = 10,
    series: SeriesOption = None,
    header: HeaderOption = None,
    draws: Annotated[int, typer.Option(min=2, help="Number of simulated trajectories.")] = 500,
    states: Annotated[bool, typer.Option("--states", help="Include the latent states.")] = False,
    seed: SeedOption = 0,
    story: StoryOption = None,
    out: OutFileOption = None,
) -> None:
    """Forecast series, as CSV: mean, standard deviation and 90 % interval of each observation."""
    from pplgen.cli import tables
    from pplgen.fitting.load import load
    from pplgen.timeseries.parameter_draws import series_story

    fit = load(run, story=story)
    series_story(fit.pair, "forecast")
    table = tables.read_rows(fit, data, by=series, header=header)
    frame = tables.forecast(fit, table, horizon=horizon, draws=draws, seed=seed, with_states=states)
    tables.write_csv(frame, out)


def anomaly(
    run: RunArgument,
    data: DataArgument,
    held_out: Annotated[
        str, typer.Option("--held-out", metavar="DATA", help="Normal rows not used in the fit, given like DATA.")
    ],
    rate: Annotated[float, typer.Option(help="False-alarm rate: fraction of normal rows flagged.")] = 0.01,
    draws: Annotated[int, typer.Option(min=1, help="Draws from the guide; importance samples per row.")] = 200,
    series: SeriesOption = None,
    identifiers: IdOption = None,
    header: HeaderOption = None,
    seed: SeedOption = 0,
    story: StoryOption = None,
    out: OutFileOption = None,
) -> None:
    """Score how anomalous each row or series is, as CSV: score in nats, conformal p-value, and whether it is flagged.

    The distribution of the held-out rows' scores is printed to the standard error.
    """
    from pplgen.cli import tables
    from pplgen.fitting.load import load

    fit = load(run, story=story)
    rows, normal = (
        tables.read_rows(fit, each, by=series, identifiers=identifiers, header=header) for each in (data, held_out)
    )
    scores, message = tables.anomalies(fit, rows, normal, rate=rate, draws=draws, seed=seed)
    typer.echo(message, err=True)
    tables.write_csv(scores, out)


def add_commands(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (sample, predict, forecast, anomaly):
        app.command()(command)
