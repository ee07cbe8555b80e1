"""Commands that ask something of a run, and answer in CSV; torch is imported once one of them runs."""

from __future__ import annotations

from typing import Annotated

import typer

from pplgen.cli.options import DataArgument, OutFileOption, RunArgument, SeedOption, SeriesOption, StoryOption

__all__ = ["add_commands"]


def sample(
    run: RunArgument,
    num_rows: Annotated[int, typer.Option("-n", "--num-rows", min=1, help="How many rows.")] = 10,
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
    """Score rows, new or old, as CSV: log density in nats, and the posterior of each row's latents.

    Of series each step is scored from those before it, and states, regimes and what was seen are smoothed.
    """
    from pplgen.cli import tables
    from pplgen.fitting.load import load

    tables.write_csv(tables.predicted(load(run, story=story), data, series), out)


def forecast(
    run: RunArgument,
    data: DataArgument,
    horizon: Annotated[int, typer.Option(min=1, help="How many steps.")] = 10,
    series: SeriesOption = None,
    draws: Annotated[int, typer.Option(min=2, help="How many futures are simulated.")] = 500,
    states: Annotated[bool, typer.Option("--states", help="Add the states that stand behind what is seen.")] = False,
    seed: SeedOption = 0,
    story: StoryOption = None,
    out: OutFileOption = None,
) -> None:
    """Forecast series, new or old, as CSV: mean, deviation and 90 % interval of what is to be seen."""
    from pplgen.cli import tables
    from pplgen.fitting.load import load

    fit = load(run, story=story)
    found = tables.forecast(fit, data, series, horizon=horizon, draws=draws, seed=seed, with_states=states)
    tables.write_csv(found, out)


def add_commands(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (sample, predict, forecast):
        app.command()(command)
