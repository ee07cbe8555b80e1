"""The command line; the only file that looks stories up by name."""

from __future__ import annotations

import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

import pplgen
from pplgen import models
from pplgen.cli import check_commands, latent_commands, predict_commands
from pplgen.cli import show as show_command
from pplgen.cli import verify as verify_command
from pplgen.cli.calibrate import calibrate_app, calibration_options, report_calibration
from pplgen.cli.fit import check_run_directory, read_data
from pplgen.cli.shared_options import (
    DataArgument,
    IgnoreOption,
    OnlyOption,
    OutFileOption,
    SeedOption,
    SeriesOption,
    column_arguments,
)
from pplgen.cli.story_arguments import StoryGroup, find_entry, story_command
from pplgen.cli.warning_log import WarningLog, is_first_process
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
fit_app = typer.Typer(
    cls=StoryGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Fit a story to data: pplgen fit STORY DATA. Options differ between stories; see pplgen fit STORY --help.",
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
    bic: Annotated[bool, typer.Option("--bic", help="Add the Bayesian information criterion (BIC).")] = False,
    series: SeriesOption = None,
    only: OnlyOption = None,
    ignore: IgnoreOption = None,
    out: OutFileOption = None,
) -> None:
    """Fit several stories and rank them by leave-one-out predictive density, best first."""
    from pplgen.cli import tables

    columns = column_arguments(only, ignore)
    table = pplgen.load_data(data, **columns) if series is None else pplgen.load_series(data, by=series, **columns)
    stories = {text: _build_story(text, len(table.columns)) for text in candidates}
    ranked = pplgen.compare(stories, table, seed=seed, restarts=restarts, with_bic=bic)
    if out is not None:
        tables.write_csv(ranked.rename_axis("candidate"), out, index=True)
    else:
        from pplgen.report.console import print_table

        numbers = ranked[[name for name in ("elpd", "elpd_diff", "dse", "p", "bic") if name in ranked]].astype(float)
        unreliable = [str(name) for name in ranked.index[ranked["warning"].astype(bool)]]
        notes = [f"{name}: some rows have a high Pareto k; elpd is unreliable" for name in unreliable]
        title = f"{len(stories)} candidates on {table.name}, {len(table)} rows"
        print_table(title, numbers, *notes, label="candidate", digits=6)


def _build_story(text: str, num_features: int) -> Any:
    """Build a story from its name and options, ``gaussian-mixture:components=3;covariance=tied``."""
    name, _, rest = text.partition(":")
    entry = find_entry(name, models.collection())
    options = parse_options(rest, constructor_options(entry.definition))
    return getattr(models, entry.class_name)(**options, num_features=num_features)


def main() -> None:
    """Run the command line; a user's mistake is one sentence and exit code 2."""
    with _WARNINGS.captured():
        try:
            code = app(standalone_mode=False)
        except InputError as error:
            _fail(str(error) if is_first_process() else "")
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


_WARNINGS = WarningLog()
NOT_REPRODUCED = ("--force", "--resume")
"""Options left out of the recorded command, which reproduces the fit."""


def _fit_options(
    *,
    data: DataArgument,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Run directory.  [default: runs/STORY-DATA]")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing run.")] = False,
    stream: Annotated[
        bool, typer.Option("--stream", help="Read minibatches from .npy or .parquet files while fitting.")
    ] = False,
    only: OnlyOption = None,
    ignore: IgnoreOption = None,
    labels: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Column of known classes (text or 0, 1, ...); 'target' of a data set."),
    ] = None,
    weights: Annotated[str | None, typer.Option(metavar="COLUMN", help="Column of row weights.")] = None,
    series: SeriesOption = None,
    guide: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Guide of the latents that rows share: mean-field, low-rank, full-rank, flow.  [default: the story's]",
        ),
    ] = None,
    seed: SeedOption = 0,
    method: Annotated[
        str, typer.Option(help="svi, laplace (normal approximation at a mode), or nuts (Pyro's NUTS sampler).")
    ] = "svi",
    steps: Annotated[
        int | None, typer.Option(help="Maximum number of steps; for NUTS, draws per chain.  [default: 10,000; 1,000]")
    ] = None,
    optimiser: Annotated[
        str, typer.Option(help="auto (Adam, then L-BFGS over fixed draws where that applies), adam, adamw or sgd.")
    ] = "auto",
    learning_rate: Annotated[float, typer.Option(help="Initial learning rate.")] = 0.02,
    clip: Annotated[
        float | None, typer.Option(help="Clip gradient entries at this absolute value.  [default: off]")
    ] = None,
    decay: Annotated[float, typer.Option(help="Learning-rate decay factor per step.")] = 1.0,
    restarts: Annotated[
        int | None, typer.Option(help="Restarts, of which the best is kept; for NUTS, chains.  [default: 1; 4]")
    ] = None,
    patience: Annotated[
        int | None, typer.Option(help="Steps over which the convergence test averages the ELBO.  [default: automatic]")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Rows per minibatch.  [default: all; fewer for large data]")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Device, such as cuda.  [default: cpu]")] = None,
    elbo: Annotated[
        str | None,
        typer.Option(help="ELBO: sampled, analytic, sticking-the-landing, score-function or importance."),
    ] = None,
    num_particles: Annotated[
        int, typer.Option("--particles", help="Draws from the guide per step (ELBO particles).")
    ] = 1,
    free_bits: Annotated[
        float | None, typer.Option(help="Free bits per latent dimension, in nats.  [default: off]")
    ] = None,
    warm_up: Annotated[int, typer.Option(help="Steps of KL warm-up.")] = 0,
    augment: Annotated[
        str | None, typer.Option(help="bernoulli: redraw binary pixels from grey values at each step.")
    ] = None,
    compile: Annotated[  # noqa: A002
        str,
        typer.Option(help="auto (compile if it pays off), inductor (compile), graph (trace only), off (plain Pyro)."),
    ] = "auto",
    shard: Annotated[str, typer.Option(help="What torchrun splits between processes: rows or restarts.")] = "rows",
    draws: Annotated[int, typer.Option(min=2, help="Posterior draws to save.")] = 1000,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run of the same command.")] = False,
    checkpoint_every: Annotated[
        float, typer.Option(metavar="SECONDS", help="Time between checkpoints, for --resume.")
    ] = 10.0,
) -> None:
    """Declare the options shared by every story's ``fit``; never called."""


def _fit(
    entry: models.Entry,
    config: dict[str, Any],
    *,
    data: str,
    out: Path | None,
    force: bool,
    draws: int,
    resume: bool,
    stream: bool,
    series: str | None,
    **options: Any,
) -> None:
    """Fit a story; the first process writes the run directory and prints the summary."""
    from pplgen.data.blocks import stream_name
    from pplgen.distributed.ranks import process_group
    from pplgen.plots import fit as plots
    from pplgen.storage import atomic, checkpoint, run_folder

    directory = out or Path("runs") / f"{entry.name}-{stream_name(data)}"
    story_class = getattr(models, entry.class_name)
    with process_group(options["device"]) as ranks, ranks.monitored():
        has_checkpoint = ranks.on_first_rank(lambda: check_run_directory(directory, force=force, resume=resume))
        force = force or (resume and has_checkpoint)  # a run was being replaced there, or had just been written
        rows = ranks.first_rank_first(lambda: read_data(story_class, data, stream, series, options))
        restarts_sharded = ranks.size > 1 and options["shard"] == "restarts"
        if options["compile"] != "off" and options["method"] == "svi" and not restarts_sharded:
            options["checkpoint"] = directory
            if not resume:
                ranks.on_first_rank(lambda: checkpoint.remove(directory))
        elif resume and has_checkpoint:
            raise InputError("--resume: no checkpoint is saved with these options; give those of the interrupted run")
        created = ranks.on_first_rank(lambda: atomic.missing_folders(directory))
        try:
            fit = pplgen.fit(story_class(**config, num_features=len(rows.columns)), rows, **options)
        except InputError as error:
            if ranks.first:
                # what cannot be fitted cannot be resumed
                if not resume and options.get("checkpoint") and not isinstance(error, Interrupted):
                    checkpoint.remove(directory)
                atomic.remove_empty(created)
            raise
        if not ranks.first:
            return
        fit.origin["command"] = shlex.join(["pplgen", *(word for word in sys.argv[1:] if word not in NOT_REPRODUCED)])
        tree = fit.to_datatree(draws)
        try:
            with run_folder.staged(directory, force=force) as folder:
                fit.write(folder)
                tree.to_netcdf(folder / "posterior.nc", engine="h5netcdf")
                plots.save_figure(plots.plot_fit(fit, tree), folder / "fit.png")
                if _WARNINGS.lines:
                    (folder / "warnings.log").write_text("\n".join(_WARNINGS.lines) + "\n", encoding="utf-8")
        except InputError as error:
            resumable = checkpoint.exists(directory)
            raise InputError(f"{error}{'; a checkpoint remains, for --resume' if resumable else ''}") from error
        checkpoint.remove(directory)
    fit.summary(tree=tree)
    typer.echo(f"Written to {directory}: parameters.safetensors, header.json, posterior.nc, fit.png")


def _calibrate(entry: models.Entry, config: dict[str, Any], **options: Any) -> None:
    """Build the story and calibrate it."""
    num_features = options.pop("num_features")
    report_calibration(getattr(models, entry.class_name)(**config, num_features=num_features), **options)


for _entry in models.collection():
    _options = [option for option in constructor_options(_entry.definition) if option.name != "num_features"]
    for _app, _common, _run in ((fit_app, _fit_options, _fit), (calibrate_app, calibration_options, _calibrate)):
        _app.command(_entry.name, help=_entry.summary)(story_command(partial(_run, _entry), _options, _common))
