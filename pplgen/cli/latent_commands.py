"""Commands of latent-variable stories; torch is imported when one runs."""

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
    StoryOption,
)

__all__ = ["add_commands"]

StepsOption = Annotated[int, typer.Option("-n", "--num", min=2, help="Number of steps.")]


def encode(
    run: RunArgument,
    data: DataArgument,
    identifiers: IdOption = None,
    header: HeaderOption = None,
    seed: SeedOption = 0,
    story: StoryOption = None,
    out: OutFileOption = None,
) -> None:
    """Encode rows, as CSV: posterior mean and standard deviation of each latent dimension."""
    from pplgen.cli import latent_tables, tables
    from pplgen.fitting.load import load

    fit = load(run, story=story)
    table = tables.read_rows(fit, data, identifiers=identifiers, header=header)
    tables.write_csv(latent_tables.encoded(fit, table, seed), out)


def reconstruct(
    run: RunArgument,
    data: DataArgument,
    identifiers: IdOption = None,
    header: HeaderOption = None,
    seed: SeedOption = 0,
    story: StoryOption = None,
    out: OutFileOption = None,
) -> None:
    """Reconstruct rows from their latent means, as CSV with the data's columns; missing entries are imputed."""
    from pplgen.cli import latent_tables, tables
    from pplgen.fitting.load import load

    fit = load(run, story=story)
    table = tables.read_rows(fit, data, identifiers=identifiers, header=header)
    tables.write_csv(latent_tables.reconstructed(fit, table, seed), out)


def impute(
    run: RunArgument,
    data: DataArgument,
    num_draws: Annotated[int, typer.Option("-n", "--num-draws", min=1, help="Number of imputed tables.")] = 1,
    header: HeaderOption = None,
    seed: SeedOption = 0,
    story: StoryOption = None,
    out: OutFileOption = None,
) -> None:
    """Draw missing entries given the observed ones, as CSV: the whole table, whose other cells are unchanged.

    Several draws are stacked, numbered in a column 'draw'.
    """
    from pplgen.cli import latent_tables, tables
    from pplgen.fitting.load import load

    fit = load(run, story=story)
    table = tables.read_rows(fit, data, header=header, carry_all=True)
    tables.write_csv(latent_tables.imputed(fit, table, num_draws, seed), out, digits=7)


def interpolate(
    run: RunArgument,
    data: DataArgument,
    first: Annotated[int, typer.Option("--from", min=1, help="First row, counted from 1.")] = 1,
    last: Annotated[int, typer.Option("--to", min=1, help="Last row, counted from 1.")] = 2,
    num: StepsOption = 9,
    header: HeaderOption = None,
    seed: SeedOption = 0,
    story: StoryOption = None,
    out: OutFileOption = None,
) -> None:
    """Interpolate linearly between the latent means of two rows, as CSV, one decoded row per step."""
    from pplgen.cli import latent_tables, tables
    from pplgen.fitting.load import load

    fit = load(run, story=story)
    table = tables.read_rows(fit, data, header=header)
    tables.write_csv(latent_tables.interpolated(fit, table, first, last, num, seed), out)


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
    for command in (encode, reconstruct, impute, interpolate, traverse):
        app.command()(command)
