"""Comparative timing: contenders take turns in one process; medians of repeats, ratios to the best."""

from __future__ import annotations

import datetime
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "RESULTS.md"


def compare(title: str, contenders: dict[str, Callable[[], int]], repeats: int = 15) -> dict[str, float]:
    """Time contenders in turns and write the table.

    Parameters
    ----------
    title
        Title of the section.
    contenders
        Functions that take some steps and return their number; already warmed up.
    repeats
        Number of turns of each.

    Returns
    -------
    dict
        Median milliseconds per step of each.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, run in contenders.items():
            started = time.perf_counter()
            steps = run()
            times[name].append((time.perf_counter() - started) / steps * 1e3)
    medians = {name: statistics.median(values) for name, values in times.items()}
    best = min(medians.values())
    ranked = sorted(medians.items(), key=lambda item: item[1])
    rows = {name: (f"{value:.3g}", f"{value / best:.2f}") for name, value in ranked}
    report(title, ("ms per step", "ratio to the best"), rows, medians, note=f"medians of {repeats}")
    return medians


def report(title: str, columns: tuple[str, ...], rows: Mapping[str, tuple[str, ...]], raw: Any, note: str = "") -> None:
    """Write a table into the results and print the raw figures as a line of JSON.

    Parameters
    ----------
    title
        Title of the section.
    columns
        Column names after ``contender``.
    rows
        Values of the columns by contender.
    raw
        Raw figures, JSON-serialisable.
    note
        How the figures were obtained.
    """
    machine = (
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    lines = [f"## {title}", "", "; ".join(filter(None, (str(datetime.date.today()), machine, note))) + ".", ""]
    lines += [f"| {' | '.join(('contender', *columns))} |", "|---" * (1 + len(columns)) + "|"]
    lines += [f"| {' | '.join((name, *values))} |" for name, values in rows.items()]
    _replace_section(title, "\n".join(lines))
    print(json.dumps({"title": title, "figures": raw, "torch": torch.__version__}))


def _replace_section(title: str, text: str) -> None:
    """Append a section to the results, replacing an older one with the same title."""
    old = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else "# Results\n"
    head, *sections = old.split("\n## ")
    others = [section for section in sections if section.partition("\n")[0] != title]
    body = [head.rstrip(), *(f"## {section.rstrip()}" for section in others), text]
    RESULTS.write_text("\n\n".join(body) + "\n", encoding="utf-8")
