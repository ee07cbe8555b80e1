"""The ``sample``, ``predict`` and ``forecast`` commands; torch is imported when one runs."""

from __future__ import annotations

from typing import Annotated

import typer

from pplgen.cli.shared_options import DataArgument, OutFileOption, RunArgument, SeedOption, SeriesOption, StoryOption

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
    story: StoryOption = None,
    out: OutFileOption = None,
) -> None:
    """Score rows, as CSV: log density in nats, and the posterior of each row's latent variables.

    For series, each step is scored given those before it; states, regimes and observations are smoothed.
    """
    from pplgen.cli import tables
    from pplgen.fitting.load import load

    tables.write_csv(tables.predicted(load(run, story=story), data, series), out)


def forecast(
    run: RunArgument,
    data: DataArgument,
    horizon: Annotated[int, typer.Option(min=1, help="Number of steps.")] = 10,
    series: SeriesOption = None,
    draws: Annotated[int, typer.Option(min=2, help="Number of simulated trajectories.")] = 500,
    states: Annotated[bool, typer.Option("--states", help="Include the latent states.")] = False,
    seed: SeedOption = 0,
    story: StoryOption = None,
    out: OutFileOption = None,
) -> None:
    """Forecast series, as CSV: mean, standard deviation and 90 % interval of each observation."""
    from pplgen.cli import tables
    from pplgen.fitting.load import load

    fit = load(run, story=story)
    frame = tables.forecast(fit, data, series, horizon=horizon, draws=draws, seed=seed, with_states=states)
    tables.write_csv(frame, out)


def add_commands(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (sample, predict, forecast):
        app.command()(command)
