"""The command line; the only file that looks stories up by name."""

from __future__ import annotations

import sys
from functools import partial
from typing import Annotated, Any

import typer

import pplgen
from pplgen import models
from pplgen.cli import check_commands, latent_commands, predict_commands
from pplgen.cli import show as show_command
from pplgen.cli import verify as verify_command
from pplgen.cli.calibrate import calibrate_app, calibration_options, report_calibration
from pplgen.cli.fit import fit_app, fit_options, fit_story
from pplgen.cli.shared_options import (
    DataArgument,
    DtypeOption,
    HeaderOption,
    IgnoreOption,
    OnlyOption,
    OutFileOption,
    SeedOption,
    SeriesOption,
    column_arguments,
)
from pplgen.cli.story_arguments import find_entry, story_command
from pplgen.cli.warning_log import WARNINGS, is_first_process
from pplgen.distributed.heartbeat import RankLost
from pplgen.errors import InputError, Interrupted, printable
from pplgen.story.signature import constructor_options, parse_options

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Fit generative models, written as Pyro model/guide pairs, and read their posteriors in ArviZ.",
)
app.add_typer(fit_app, name="fit")
for _commands in (predict_commands, latent_commands, check_commands, verify_command):
    _commands.add_commands(app)
show_command.add_commands(app, models)
app.add_typer(calibrate_app, name="calibrate")


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(pplgen.__version__)
        raise typer.Exit


@app.command("list")
def list_stories() -> None:
    """List the stories, one line each."""
    entries = models.collection()
    width = max(len(entry.name) for entry in entries)
    for entry in entries:
        typer.echo(f"{entry.name:<{width}}  {entry.summary}")


@app.command()
def compare(
    data: DataArgument,
    candidates: Annotated[
        list[str],
        typer.Argument(
            metavar="CANDIDATE...", help="Stories with their options, such as 'gaussian-mixture:components=3'."
        ),
    ],
    seed: SeedOption = 0,
    restarts: Annotated[int, typer.Option(help="Restarts per candidate; the best is kept.")] = 1,
    method: Annotated[
        str, typer.Option(help="loo, k-fold or leave-future-out; auto: whichever is right for all candidates.")
    ] = "auto",
    bic: Annotated[bool, typer.Option("--bic", help="Add the Bayesian information criterion (BIC).")] = False,
    series: SeriesOption = None,
    only: OnlyOption = None,
    ignore: IgnoreOption = None,
    header: HeaderOption = None,
    dtype: DtypeOption = None,
    out: OutFileOption = None,
) -> None:
    """Fit several stories and rank them by cross-validated predictive density, best first."""
    from pplgen.cli import tables

    columns = column_arguments(only, ignore) | {"header": header, "dtype": dtype}
    table = pplgen.load_data(data, **columns) if series is None else pplgen.load_series(data, by=series, **columns)
    stories = {text: _build_story(text, len(table.columns)) for text in candidates}
    ranked = pplgen.compare(stories, table, method=method, seed=seed, restarts=restarts, with_bic=bic)  # type: ignore[arg-type]
    if out is not None:
        tables.write_csv(ranked.rename_axis("candidate"), out, index=True)
    else:
        from pplgen.report.console import print_table

        numbers = ranked[[name for name in ("elpd", "elpd_diff", "dse", "p", "bic") if name in ranked]].astype(float)
        unreliable = [str(name) for name in ranked.index[ranked["warning"].astype(bool)]]
        method = ranked.attrs["method"]
        problem = "some folds have not converged" if method == "k-fold" else "some rows have a high Pareto k"
        notes = [f"{name}: {problem}; elpd is unreliable" for name in unreliable]
        title = f"{len(stories)} candidates on {table.name}, {len(table)} rows, scored by {SCORES[method]}"
        print_table(title, numbers, *notes, label="candidate", digits=6)


SCORES = {"loo": "PSIS-LOO", "k-fold": "ten-fold cross-validation", "leave-future-out": "one-step-ahead predictions"}


def _build_story(text: str, num_features: int) -> Any:
    """Build a story from its name and options, ``gaussian-mixture:components=3;covariance=tied``."""
    name, _, rest = text.partition(":")
    entry = find_entry(name, models.collection())
    options = parse_options(rest, constructor_options(entry.definition, entry.base))
    return getattr(models, entry.class_name)(**options, num_features=num_features)


def main() -> None:
    """Run the command line; a user's mistake is one sentence and exit code 2."""
    with WARNINGS.captured():
        try:
            code = app(standalone_mode=False)
        except InputError as error:
            message = str(error) if is_first_process() else ""
            _fail(message, code=130 if isinstance(error, Interrupted) else 2)
        except RankLost as error:
            _fail(str(error), code=1)
        except typer.Abort:
            _fail("interrupted; nothing was written", code=130)
        except Exception as error:
            # typer's usage errors format themselves; anything else is a bug and shows its traceback
            if not hasattr(error, "format_message"):
                raise
            if type(error).__name__ == "NoArgsIsHelpError":
                typer.echo(error.format_message(), err=True)
                sys.exit(2)
            _fail(error.format_message())
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int = 2) -> None:
    """Print the message, if there is one, and exit."""
    if message:
        typer.echo(f"pplgen: {printable(' '.join(message.split()))}", err=True)
    sys.exit(code)


def _fit(entry: models.Entry, config: dict[str, Any], **options: Any) -> None:
    """Fit a story."""
    fit_story(entry.name, getattr(models, entry.class_name), config, **options)


def _calibrate(entry: models.Entry, config: dict[str, Any], **options: Any) -> None:
    """Calibrate a story."""
    report_calibration(getattr(models, entry.class_name), config, **options)


for _entry in models.collection():
    _options = [
        option for option in constructor_options(_entry.definition, _entry.base) if option.name != "num_features"
    ]
    for _app, _common, _run in ((fit_app, fit_options, _fit), (calibrate_app, calibration_options, _calibrate)):
        _app.command(_entry.name, help=_entry.summary)(story_command(partial(_run, _entry), _options, _common))
