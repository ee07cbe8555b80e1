"""Who may import whom, and how long a file may be."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FLOORS = {
    "errors": 0,
    "entries": 0,
    "story": 0,
    "cells": 0,
    "choosing": 0,
    "delimited": 0,
    "row_columns": 0,
    "readers": 0,
    "downloads": 0,
    "mnist": 0,
    "digits": 0,
    "named": 0,
    "transforms": 0,
    "data": 0,
    "blocks": 0,
    "moments": 0,
    "streams": 0,
    "dynamics": 0,
    "latent": 0,
    "codes": 1,
    "state_space": 0,
    "series": 0,
    "exact": 0,
    "signature": 0,
    "isolation": 0,
    "structure": 0,
    "arguments": 1,
    "marginal": 0,
    "estimators": 0,
    "row_facts": 0,
    "pair": 1,
    "durable": 0,
    "headers": 1,
    "own_code": 1,
    "store": 1,
    "tracing": 0,
    "recording": 0,
    "known": 0,
    "cheaper": 0,
    "reductions": 0,
    "simplify": 1,
    "rewrite": 1,
    "mapped": 2,
    "graph": 2,
    "batches": 2,
    "defaults": 3,
    "bounds": 2,
    "checkpoint": 1,
    "iterates": 0,
    "plateaus": 0,
    "backward": 0,
    "faults": 2,
    "steps": 2,
    "training": 2,
    "engine": 3,
    "batched": 4,
    "standing": 4,
    "replay": 4,
    "terminal": 3,
    "heartbeat": 0,
    "distributed": 1,
    "sharding": 2,
    "restarts": 3,
    "fit_command": 7,
    "uniformity": 0,
    "joint": 2,
    "stored": 2,
    "relabelling": 2,
    "draws": 3,
    "generating": 4,
    "posterior": 4,
    "mixtures": 0,
    "described": 3,
    "paths": 4,
    "states": 4,
    "forecasting": 4,
    "scores": 4,
    "series_verbs": 5,
    "latent_verbs": 5,
    "weighing": 4,
    "checks": 5,
    "diagnostics": 5,
    "sampling": 4,
    "ensemble": 5,
    "trust_verbs": 5,
    "fitted": 5,
    "sampled": 5,
    "preparing": 5,
    "settling": 1,
    "trials": 6,
    "amortised": 6,
    "calibration_plots": 6,
    "calibration": 6,
    "calibrating": 6,
    "story_commands": 2,
    "show_command": 3,
    "second_opinion": 6,
    "kept_draws": 6,
    "keeping": 4,
    "loading": 6,
    "nuts_fit": 5,
    "fitting": 6,
    "comparing": 7,
    "series_plots": 6,
    "latent_plots": 6,
    "plots": 6,
    "posterior_plots": 4,
    "svg": 0,
    "replicates": 6,
    "report_pictures": 7,
    "reproduction": 6,
    "report": 7,
    "tables": 6,
    "latent_tables": 7,
    "command_options": 1,
    "latent_commands": 8,
    "trust_commands": 8,
    "run_commands": 8,
    "calibrate_command": 8,
    "verification": 8,
    "verify_command": 8,
    "cli": 8,
    "warning_log": 1,
    "palette": 0,
    "sklearn": 8,
    "__main__": 9,
    "__init__": 9,
}
"""A module imports only from its own floor or below; the collection, only the contracts and its own pieces."""

CALLED_LATE = {("trust_verbs.py", "pplgen.report.page")}
"""Imports inside a method of ``Fit`` that reaches upward once it is called."""

STORY_MAY_IMPORT = {
    "__future__",
    "collections",
    "contextlib",
    "itertools",
    "math",
    "pplgen.story.dynamics",
    "pplgen.story.latent",
    "pplgen.models",
    "pplgen.story.state_space",
    "pplgen.story.base",
    "pyro",
    "torch",
    "typing",
    "warnings",
}
TOOLKIT = sorted((ROOT / "pplgen").rglob("*.py"))
COLLECTION = sorted(path for path in (ROOT / "models").glob("*.py") if path.name != "__init__.py")
STORIES = [path for path in COLLECTION if not path.name.startswith("_")]


def imported_modules(path):
    """Every module that a file imports, wherever in the file, as dotted names."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            if node.module == "pplgen":
                yield from (f"pplgen.{alias.name}" for alias in node.names)
            else:
                yield node.module


def floor_of(path):
    return FLOORS[path.relative_to(ROOT / "pplgen").with_suffix("").parts[0]]


@pytest.mark.parametrize("path", TOOLKIT, ids=lambda path: str(path.relative_to(ROOT)))
def test_toolkit_imports_only_downward(path):
    for module in imported_modules(path):
        parts = module.split(".")
        if parts[0] != "pplgen" or (path.name, module) in CALLED_LATE:
            continue
        if len(parts) == 1:
            assert path.name in ("cli.py", "__main__.py"), f"{path.name} reaches every floor through the package"
            continue
        if parts[1] == "models":
            looks_up = path.name in ("cli.py", "sklearn.py") or path.parent.name == "verification"
            assert looks_up, "only the outermost floor looks the collection up"
        else:
            assert FLOORS[parts[1]] <= floor_of(path), f"{path.name} may not import {module}"


def test_exact_references_know_no_pyro():
    for path in (ROOT / "pplgen" / "exact").glob("*.py"):
        assert not any(module.startswith("pyro") for module in imported_modules(path))


@pytest.mark.parametrize("path", COLLECTION, ids=lambda path: path.name)
def test_stories_import_little(path):
    for module in imported_modules(path):
        allowed = module in STORY_MAY_IMPORT or module.split(".")[0] in STORY_MAY_IMPORT
        assert allowed or module.startswith("pplgen.models._"), f"{path.name} may not import {module}"


@pytest.mark.parametrize("path", TOOLKIT + COLLECTION, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_stay_short(path):
    limit = 210 if path in COLLECTION else 310
    assert len(path.read_text(encoding="utf-8").splitlines()) <= limit


def test_every_story_has_a_test_of_its_own():
    for path in STORIES:
        assert (ROOT / "tests" / "models" / f"test_{path.name}").is_file(), f"{path.name} is not covered"
