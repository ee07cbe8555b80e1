"""The ``fit`` command: its options, its data and its run directory; torch is imported when data are read."""

from __future__ import annotations

import shlex
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

import pplgen
from pplgen.cli.shared_options import (
    DataArgument,
    DtypeOption,
    HeaderOption,
    IdOption,
    IgnoreOption,
    OnlyOption,
    SeedOption,
    SeriesOption,
    column_arguments,
    split_names,
)
from pplgen.cli.story_arguments import StoryGroup
from pplgen.cli.warning_log import WARNINGS
from pplgen.errors import DataWarning, InputError, Interrupted

__all__ = ["fit_app", "fit_options", "fit_story"]

fit_app = typer.Typer(
    cls=StoryGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Fit a story to data: pplgen fit STORY DATA. Options differ between stories; see pplgen fit STORY --help.",
)
NOT_REPRODUCED = ("--accept-partial", "--force", "--resume")
"""Options left out of the recorded command, which reproduces the fit."""


def fit_options(
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
    id: IdOption = None,  # noqa: A002
    header: HeaderOption = None,
    dtype: DtypeOption = None,
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
    accept_partial: Annotated[
        bool, typer.Option("--accept-partial", help="Write the fit up to then if it is interrupted.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run of the same command.")] = False,
    checkpoint_every: Annotated[
        float, typer.Option(metavar="SECONDS", help="Time between checkpoints, for --resume.")
    ] = 10.0,
) -> None:
    """Declare the options shared by every story's ``fit``; never called."""


def fit_story(
    name: str,
    story_class: Any,
    config: dict[str, Any],
    *,
    data: str,
    out: Path | None,
    force: bool,
    draws: int,
    accept_partial: bool,
    resume: bool,
    stream: bool,
    series: str | None,
    **options: Any,
) -> None:
    """Fit a story; the first process writes the run directory and prints the summary.

    An interrupted fit is written only with ``accept_partial``; its checkpoint is kept either way.
    """
    from pplgen.data.blocks import stream_name
    from pplgen.distributed.ranks import process_group
    from pplgen.plots import fit as plots
    from pplgen.storage import atomic, checkpoint, run_folder

    directory = out or Path("runs") / f"{name}-{stream_name(data)}"
    with process_group(options["device"]) as ranks, ranks.monitored():
        has_checkpoint = ranks.on_first_rank(lambda: _check_run_directory(directory, force=force, resume=resume))
        force = force or (resume and has_checkpoint)  # a run was being replaced there, or had just been written
        rows = ranks.first_rank_first(lambda: _read_data(story_class, data, stream, series, options))
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
        if fit.interrupted and not accept_partial:
            atomic.remove_empty(created)
            raise Interrupted(f"interrupted; nothing was written{_how_to_resume(directory)}")
        fit.origin["command"] = shlex.join(["pplgen", *(word for word in sys.argv[1:] if word not in NOT_REPRODUCED)])
        tree = fit.to_datatree(draws)
        try:
            with run_folder.staged(directory, force=force) as folder:
                fit.write(folder)
                tree.to_netcdf(folder / "posterior.nc", engine="h5netcdf")
                plots.save_figure(plots.plot_fit(fit, tree), folder / "fit.png")
                if WARNINGS.lines:
                    (folder / "warnings.log").write_text("\n".join(WARNINGS.lines) + "\n", encoding="utf-8")
        except InputError as error:
            raise InputError(f"{error}{_how_to_resume(directory)}") from error
        if not fit.interrupted:
            checkpoint.remove(directory)
    fit.summary(tree=tree)
    typer.echo(f"Written to {directory}: parameters.safetensors, header.json, posterior.nc, fit.png")
    if fit.interrupted:
        raise Interrupted(f"interrupted; the fit up to then was written{_how_to_resume(directory)}")


def _how_to_resume(directory: Path) -> str:
    """Return the end of a message about an unfinished fit: whether it can be resumed."""
    from pplgen.storage import checkpoint

    return "; a checkpoint remains, for --resume" if checkpoint.exists(directory) else ""


def _check_run_directory(directory: Path, *, force: bool, resume: bool) -> bool:
    """Refuse a directory that holds a run unless ``force`` or ``resume``; return whether it holds a checkpoint."""
    from pplgen.storage import checkpoint, run_folder

    has_checkpoint = checkpoint.exists(directory)
    run_folder.check_vacant(directory, force=force or (resume and has_checkpoint))
    if resume and not has_checkpoint:
        message = f"{str(directory)!r} holds no checkpoint yet, so the fit starts from the beginning"
        warnings.warn(message, DataWarning, stacklevel=2)
    if has_checkpoint and not (resume or force):
        raise InputError(
            f"{str(directory)!r} holds an interrupted run; continue it with --resume, or start over with --force"
        )
    return has_checkpoint


def _read_data(story_class: Any, data: str, stream: bool, series: str | None, options: dict[str, Any]) -> Any:
    """Read the training data; options used here are removed from ``options``."""
    from pplgen.data.series import load_series
    from pplgen.data.streams import stream_data
    from pplgen.data.table import load_data

    columns = column_arguments(options.pop("only"), options.pop("ignore"))
    identifiers, header, dtype = split_names(options.pop("id")), options.pop("header"), options["dtype"]
    if story_class.takes_series:
        requested = {"stream": stream, "labels": options.pop("labels"), "weights": options.pop("weights")}
        requested |= {"id": identifiers}
        if unsupported := [f"--{name}" for name, value in requested.items() if value]:
            message = f"{unsupported[0]}: {story_class.__name__} is a story for series and does not accept this option"
            raise InputError(message)
        return load_series(data, by=series, **columns, header=header, dtype=dtype)
    if series is not None:
        raise InputError(f"--series {series}: {story_class.__name__} is not a story for series")
    if stream:
        selected = columns | {"id": identifiers, "header": header is not None}
        if unsupported := [f"--{name}" for name, value in selected.items() if value]:
            raise InputError(f"{unsupported[0]}: a stream reads all columns; write a file with only those to be fitted")
        return stream_data(data, dtype=dtype)
    annotations = {"labels": options.pop("labels"), "weights": options.pop("weights")}
    return load_data(data, **columns, **annotations, id=identifiers, header=header, dtype=dtype)
