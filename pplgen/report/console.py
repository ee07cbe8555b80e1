"""Terminal output of a fit: a progress bar, and tables."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pandas as pd
import xarray as xr
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from pplgen.checks.check import Check
from pplgen.errors import printable
from pplgen.inference.training_result import Progress as Update
from pplgen.inference.training_result import ProgressCallback
from pplgen.posterior.datatree import printed_table
from pplgen.posterior.evidence import prior_note
from pplgen.posterior.fitted_pair import AGREEMENT, FittedPair
from pplgen.story.isolation import kept_generators

__all__ = ["print_checks", "print_summary", "print_table", "reporting"]

DIFFERENT = 0.1
"""Relative difference of two standard deviations from which both are printed."""
TABLE_ROWS = 60
"""Maximum number of rows of a printed table."""


@contextlib.contextmanager
def reporting(progress: bool | ProgressCallback) -> Iterator[ProgressCallback | None]:
    """Yield a callback: a progress bar on standard error for ``True``, ``None`` for ``False``, else ``progress``."""
    if not isinstance(progress, bool):

        def call(update: Update) -> None:
            with kept_generators():  # what the callback draws does not change the fit
                progress(update)

        yield call
        return
    console = Console(stderr=True)
    if not (progress and (console.is_terminal or console.is_jupyter)):
        yield None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("step {task.completed:,}  ELBO {task.fields[elbo]:,.2f}  {task.fields[rate]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("fitting", total=None, elbo=float("nan"), rate="")

        def show(update: Update) -> None:
            batched = update.restart == update.restarts
            which = f"{update.restarts} restarts" if batched else f"restart {update.restart} of {update.restarts}"
            label = update.doing if update.restarts == 1 else f"{which}, {update.doing}"
            bar.update(
                task,
                description=label,
                total=update.steps,
                completed=update.step,
                elbo=update.elbo,
                rate=f"{update.steps_per_second:.0f} steps/s  {update.rows_per_second:,.0f} rows/s",
            )

        yield show


def print_table(title: str, table: pd.DataFrame, *lines: str, label: str = "parameter", digits: int = 4) -> None:
    """Print a table of numbers and text, cut to ``TABLE_ROWS`` rows, and lines below it.

    For an empty table, print only the title.
    """
    console = Console()
    title = _plain(title)
    rows = Table(title=title, title_justify="left")
    rows.add_column(label, overflow="fold", ratio=2)
    for column, values in table.items():
        if all(isinstance(value, str) for value in values):  # text columns shrink, not numbers
            rows.add_column(_plain(str(column)), overflow="fold", min_width=8)
        else:
            rows.add_column(_plain(str(column)), justify="right", no_wrap=True)
    for name, values in table.head(TABLE_ROWS).iterrows():
        rows.add_row(_plain(str(name)), *(_plain(v) if isinstance(v, str) else f"{v:.{digits}g}" for v in values))
    console.print(rows if len(table) else title)
    if len(table) > TABLE_ROWS:
        console.print(f"and {len(table) - TABLE_ROWS:,} more: arviz_stats.summary(fit.to_datatree())", highlight=False)
    for line in lines:
        console.print(_plain(line), highlight=False)


def print_summary(fit: FittedPair, tree: xr.DataTree, response_sds: pd.Series | None = None) -> None:
    """Print mean, sd and interval of every parameter, the ELBO, the path and why training stopped.

    Linear-response standard deviations are printed if one differs from the guide's by more than a tenth.
    """
    best, data = fit.best, fit.data_facts
    shared, left_out = printed_table(tree, fit.readable_sites(tree))
    if response_sds is not None:
        shared, left_out = _with_response_sds(shared, response_sds, left_out)
    each = f", {best.elbo / data['num_rows']:.2f} a row" if data and not len(shared) else ""
    agreeing = f"{fit.num_agreeing} of them within {AGREEMENT:g} nat, all within {fit.spread:.2f}"
    restarts = f"; best of {len(fit.runs)} restarts, {agreeing}" if len(fit.runs) > 1 else ""
    failed = f"; {fit.num_failed} restarts broke down" if fit.num_failed else ""
    rows = "series" if fit.of_series else "rows"
    print_table(
        f"{fit.name} on {data['name']}, {data['num_rows']:,} {rows}" if data else fit.name,
        shared,
        f"ELBO {best.elbo:.2f} +- {best.elbo_error:.2f} nats{each}{restarts}{failed}",
        f"{len(best.history):,} steps of {fit.path}: {best.how}",
        *best.faults,
        *filter(None, [prior_note(fit.pair, "ELBO")]),
        *left_out,
    )


def _with_response_sds(
    table: pd.DataFrame, response_sds: pd.Series, notes: list[str]
) -> tuple[pd.DataFrame, list[str]]:
    """Insert linear-response standard deviations after those of the guide where they differ, with a note."""
    sds = response_sds.reindex(table.index)
    if not ((sds / table["sd"] - 1).abs() > DIFFERENT).any():
        return table, notes
    table = table.copy()
    table.insert(2, "response sd", sds)
    note = "response sd: linear-response standard deviation; where it differs from sd, the guide's is wrong"
    return table, [*notes, note]


def print_checks(name: str, checks: tuple[Check, ...]) -> None:
    """Print the applicable checks as a table, and remedies below it."""
    applied = [check for check in checks if check.applies]
    table = pd.DataFrame(
        {
            "verdict": [str(check.verdict) for check in applied],
            "value": [check.value for check in applied],
            "threshold": [check.threshold for check in applied],
            "source": [check.source for check in applied],
        },
        index=[check.name for check in applied],
        dtype=object,
    )
    lines = [f"{check.name}: {check.remedy}" for check in applied if check.remedy]
    not_applicable = [f"{check.name}: not applicable, {check.remedy}" for check in checks if not check.applies]
    print_table(f"Checks of {name}", table, *lines, *not_applicable, label="check")


def _plain(text: str) -> str:
    """Return text with markup and control characters escaped."""
    return escape(printable(text))
