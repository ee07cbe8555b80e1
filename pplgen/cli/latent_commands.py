"""Commands for what people do with codes; torch is imported once one of them runs."""

from __future__ import annotations

from typing import Annotated

import typer

from pplgen.cli.options import DataArgument, OutFileOption, RunArgument, SeedOption, StoryOption

__all__ = ["add_commands"]

StepsOption = Annotated[int, typer.Option("-n", "--num", min=2, help="How many steps.")]


def encode(
    run: RunArgument,
    data: DataArgument,
    seed: SeedOption = 0,
    story: StoryOption = None,
    out: OutFileOption = None,
) -> None:
    """Encode rows, new or old, as CSV: mean and standard deviation of each entry of their codes."""
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
    """Decode the mean code of each row, as CSV with the data's columns; missing entries are filled in."""
    from pplgen.cli import latent_tables, tables
    from pplgen.fitting.load import load

    tables.write_csv(latent_tables.reconstructed(load(run, story=story), data, seed), out)


def impute(
    run: RunArgument,
    data: DataArgument,
    num_draws: Annotated[int, typer.Option("-n", "--num-draws", min=1, help="How many draws of the table.")] = 1,
    seed: SeedOption = 0,
    story: StoryOption = None,
    out: OutFileOption = None,
) -> None:
    """Draw the missing entries of rows given the others, as CSV; what is there stays as it is.

    Several draws come below one another, with their number in a column 'draw'.
    """
    from pplgen.cli import latent_tables, tables
    from pplgen.fitting.load import load

    tables.write_csv(latent_tables.imputed(load(run, story=story), data, num_draws, seed), out, digits=7)


def anomaly(
    run: RunArgument,
    data: DataArgument,
    held_out: Annotated[
        str, typer.Option("--held-out", metavar="DATA", help="Normal rows that the fit has not seen, as for DATA.")
    ],
    rate: Annotated[float, typer.Option(help="Share of normal rows that may be flagged.")] = 0.01,
    draws: Annotated[int, typer.Option(min=1, help="Codes of each row that are weighed.")] = 200,
    seed: SeedOption = 0,
    story: StoryOption = None,
    out: OutFileOption = None,
) -> None:
    """Score how unlike normal rows each row is, as CSV: score in nats, conformal p-value, and whether it is flagged."""
    from pplgen.cli import latent_tables, tables
    from pplgen.fitting.load import load

    found = latent_tables.anomalies(load(run, story=story), data, held_out, rate=rate, draws=draws, seed=seed)
    tables.write_csv(found, out)


def interpolate(
    run: RunArgument,
    data: DataArgument,
    first: Annotated[int, typer.Option("--from", min=1, help="Row to start from, counted from 1.")] = 1,
    last: Annotated[int, typer.Option("--to", min=1, help="Row to end at.")] = 2,
    num: StepsOption = 9,
    seed: SeedOption = 0,
    story: StoryOption = None,
    out: OutFileOption = None,
) -> None:
    """Walk from one row to another on a straight line between their codes, as CSV, a row for each step."""
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
    """Move one entry of a code at a time over quantiles of its prior, as CSV, a row for each step."""
    from pplgen.cli import latent_tables, tables
    from pplgen.fitting.load import load

    tables.write_csv(latent_tables.traversed(load(run, story=story), num, seed), out)


def add_commands(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (encode, reconstruct, impute, anomaly, interpolate, traverse):
        app.command()(command)
