"""What a terminal shows while a fit runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from pplgen.training import Progress as Update

__all__ = ["ProgressCallback", "reporting"]

ProgressCallback = Callable[[Update], None]


@contextlib.contextmanager
def reporting(progress: bool | ProgressCallback) -> Iterator[ProgressCallback | None]:
    """Yield the callback for a fit: a bar on standard error for ``True``, nothing for ``False``, else ``progress``."""
    if not isinstance(progress, bool):
        yield progress
        return
    console = Console(stderr=True)
    if not (progress and (console.is_terminal or console.is_jupyter)):
        yield None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("step {task.completed:,}  ELBO {task.fields[elbo]:,.2f}  {task.fields[rate]:.0f} steps/s"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("fitting", total=None, elbo=float("nan"), rate=0.0)

        def show(update: Update) -> None:
            label = f"restart {update.restart} of {update.restarts}" if update.restarts > 1 else "fitting"
            bar.update(
                task,
                description=label,
                total=update.steps,
                completed=update.step,
                elbo=update.elbo,
                rate=update.steps_per_second,
            )

        yield show
