"""The ``check``, ``evidence`` and ``report`` commands; torch is imported when one runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pplgen.cli.shared_options import DATA_HELP, RunArgument, SeriesOption, StoryOption

__all__ = ["add_commands"]

TrainingDataArgument = Annotated[
    str | None,
    typer.Argument(metavar="[DATA]", help=f"Training data, if not saved with the run. {DATA_HELP}"),
]
LabelsOption = Annotated[str | None, typer.Option(metavar="COLUMN", help="Column of labels, as for the fit.")]
WeightsOption = Annotated[str | None, typer.Option(metavar="COLUMN", help="Column of weights, as for the fit.")]
CheckSeedOption = Annotated[int | None, typer.Option(min=0, help="Random seed of the checks.  [default: the fit's]")]


def check(
    run: RunArgument,
    data: TrainingDataArgument = None,
    labels: LabelsOption = None,
    weights: WeightsOption = None,
    series: SeriesOption = None,
    story: StoryOption = None,
    seed: CheckSeedOption = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="nuts|RUN", help="Compare means and standard deviations with those of NUTS, or of another run."
        ),
    ] = None,
) -> None:
    """Run the diagnostic checks of a run: values, thresholds, verdicts and remedies. Writes nothing.

    Exit code 1 if a check fails, 0 otherwise.
    """
    from pplgen.checks.registry import Checks, Verdict
    from pplgen.fitting import posterior_comparison
    from pplgen.fitting.load import load_with_draws
    from pplgen.report.console import print_checks

    fit, _ = load_with_draws(run, data, labels=labels, weights=weights, by=series, story=story)
    checks = fit.diagnose(seed=seed)
    print_checks(fit.name, checks)
    if against is not None:
        other = (
            posterior_comparison.by_nuts(fit) if against == "nuts" else load_with_draws(Path(against), story=story)[0]
        )
        comparison = posterior_comparison.against(fit, other)
        print_checks(f"{fit.name} against {against}", comparison)
        checks = Checks((*checks, *comparison))
    if any(each.verdict is Verdict.FAIL for each in checks):
        raise typer.Exit(1)


def evidence(
    run: RunArgument,
    data: TrainingDataArgument = None,
    labels: LabelsOption = None,
    weights: WeightsOption = None,
    series: SeriesOption = None,
    story: StoryOption = None,
    method: Annotated[
        str, typer.Option(help="importance, bridge or annealed; auto: importance, or bridge for a run of NUTS.")
    ] = "auto",
    draws: Annotated[int | None, typer.Option(min=2, help="Number of draws.  [default: by method]")] = None,
    seed: CheckSeedOption = None,
) -> None:
    """Print the log evidence of a run's training data, with its standard error. Writes nothing."""
    from pplgen.fitting.load import load_with_draws

    fit, _ = load_with_draws(run, data, labels=labels, weights=weights, by=series, story=story)
    typer.echo(str(fit.log_evidence(method, draws=draws, seed=seed)))  # type: ignore[arg-type]


def report(
    run: RunArgument,
    data: TrainingDataArgument = None,
    labels: LabelsOption = None,
    weights: WeightsOption = None,
    series: SeriesOption = None,
    story: StoryOption = None,
    seed: CheckSeedOption = None,
) -> None:
    """Write a run's report.html, a self-contained page, and report.json: checks, figures, model and data.

    Prints the verdict and the checks that failed; the exit code is 0 either way.
    """
    from pplgen.checks.registry import Verdict
    from pplgen.fitting.load import load_with_draws

    fit, tree = load_with_draws(run, data, labels=labels, weights=weights, by=series, story=story)
    page = fit.report(run, tree=tree, seed=seed)
    typer.echo(f"Written to {run}: {page.name}, {page.with_suffix('.json').name}")
    record = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
    counts = ", ".join(f"{record['counts'][verdict]} {verdict}" for verdict in Verdict if verdict in record["counts"])
    typer.echo(f"Overall {record['verdict']}: {counts}")
    for each in record["checks"]:
        if each["verdict"] == Verdict.FAIL:
            typer.echo(f"failed: {each['name']}")


def add_commands(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (check, evidence, report):
        app.command()(command)
