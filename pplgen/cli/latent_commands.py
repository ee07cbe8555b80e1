"""Commands of latent-variable stories; torch is imported when one runs."""

from __future__ import annotations

from typing import Annotated

import typer

from pplgen.cli.shared_options import DataArgument, OutFileOption, RunArgument, SeedOption, StoryOption

__all__ = ["add_commands"]

StepsOption = Annotated[int, typer.Option("-n", "--num", min=2, help="Number of steps.")]


def encode(
    run: RunArgument,
    data: DataArgument,
    seed: SeedOption = 0,
    story: StoryOption = None,
    out: OutFileOption = None,
) -> None:
    """Encode rows, as CSV: posterior mean and standard deviation of each latent dimension."""
    from pplgen.cli import latent_tables, tables
    from pplgen.fitting.load import load

    tables.write_csv(latent_tables.encoded(load(run, story=story), data, seed), out)


def reconstruct(
    run: RunArgument,
    data: DataArgument,
    seed: SeedOption = 0,
    story: StoryOption = None,
    out: OutFileOption = None,
) -> None:
    """Reconstruct rows from their latent means, as CSV with the data's columns; missing entries are imputed."""
    from pplgen.cli import latent_tables, tables
    from pplgen.fitting.load import load

    tables.write_csv(latent_tables.reconstructed(load(run, story=story), data, seed), out)


def impute(
    run: RunArgument,
    data: DataArgument,
    num_draws: Annotated[int, typer.Option("-n", "--num-draws", min=1, help="Number of imputed tables.")] = 1,
    seed: SeedOption = 0,
    story: StoryOption = None,
    out: OutFileOption = None,
) -> None:
    """Draw missing entries given the observed ones, as CSV; observed entries are unchanged.

    Several draws are stacked, numbered in a column 'draw'.
    """
    from pplgen.cli import latent_tables, tables
    from pplgen.fitting.load import load

    tables.write_csv(latent_tables.imputed(load(run, story=story), data, num_draws, seed), out, digits=7)


def anomaly(
    run: RunArgument,
    data: DataArgument,
    held_out: Annotated[
        str, typer.Option("--held-out", metavar="DATA", help="Normal rows not used in the fit, given like DATA.")
    ],
    rate: Annotated[float, typer.Option(help="False-alarm rate: fraction of normal rows flagged.")] = 0.01,
    draws: Annotated[int, typer.Option(min=1, help="Importance samples per row.")] = 200,
    seed: SeedOption = 0,
    story: StoryOption = None,
    out: OutFileOption = None,
) -> None:
    """Score how anomalous each row is, as CSV: score in nats, conformal p-value, and whether it is flagged."""
    from pplgen.cli import latent_tables, tables
    from pplgen.fitting.load import load

    scores = latent_tables.anomalies(load(run, story=story), data, held_out, rate=rate, draws=draws, seed=seed)
    tables.write_csv(scores, out)


def interpolate(
    run: RunArgument,
    data: DataArgument,
    first: Annotated[int, typer.Option("--from", min=1, help="First row, counted from 1.")] = 1,
    last: Annotated[int, typer.Option("--to", min=1, help="Last row, counted from 1.")] = 2,
    num: StepsOption = 9,
    seed: SeedOption = 0,
    story: StoryOption = None,
    out: OutFileOption = None,
) -> None:
    """Interpolate linearly between the latent means of two rows, as CSV, one decoded row per step."""
    from pplgen.cli import latent_tables, tables
    from pplgen.fitting.load import load

    tables.write_csv(latent_tables.interpolated(load(run, story=story), data, first, last, num, seed), out)


def traverse(
    run: RunArgument,
    num: StepsOption = 9,
    seed: SeedOption = 0,
    story: StoryOption = None,
    out: OutFileOption = None,
) -> None:
    """Vary one latent dimension at a time over quantiles of its prior, as CSV, one decoded row per step."""
    from pplgen.cli import latent_tables, tables
    from pplgen.fitting.load import load

    tables.write_csv(latent_tables.traversed(load(run, story=story), num, seed), out)


def add_commands(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (encode, reconstruct, impute, anomaly, interpolate, traverse):
        app.command()(command)
