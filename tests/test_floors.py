"""Rooms import only from rooms below; files and functions stay short."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

ROOMS = {
    "data": {"errors"},
    "story": {"errors"},
    "distributions": {"story"},
    "exact": {"errors", "story"},
    "storage": {"errors", "story"},
    "compiler": {"errors", "story"},
    "distributed": {"errors", "data", "story", "storage", "compiler"},
    "inference": {"errors", "data", "story", "storage", "compiler", "distributed"},
    "posterior": {"errors", "data", "story", "compiler", "inference"},
    "timeseries": {"errors", "story", "exact", "compiler", "inference", "posterior"},
    "checks": {"errors", "story", "compiler", "inference", "posterior"},
    "plots": {"errors", "story", "inference", "posterior"},
    "report": {"errors", "data", "story", "storage", "inference", "posterior", "checks", "plots"},
    "calibration": {
        *("errors", "data", "story", "compiler", "distributed", "inference"),
        *("posterior", "checks", "plots", "report"),
    },
    "fitting": {
        *("errors", "data", "story", "storage", "distributed", "inference"),
        *("posterior", "timeseries", "checks", "report"),
    },
    "verification": {
        *("errors", "data", "story", "exact", "storage", "compiler", "inference"),
        *("posterior", "checks", "calibration", "fitting", "models"),
    },
    "cli": {
        *("errors", "data", "story", "storage", "distributed", "timeseries"),
        *("checks", "plots", "report", "calibration", "fitting", "verification", "models"),
    },
}
"""Every room, from the ground up, and what it may import besides itself."""
LOOSE = {"__init__", "__main__", "errors", "sklearn"}
"""Modules at the top of the toolkit."""
COLLECTION_MAY_IMPORT = {
    "__future__",
    "collections",
    "contextlib",
    "functools",
    "itertools",
    "math",
    "pplgen.distributions",
    "pplgen.models",
    "pplgen.story",
    "pyro",
    "torch",
    "typing",
    "warnings",
}
LONGEST_FILE, LONGEST_STORY, LONGEST_FUNCTION, MEDIAN_FILE, MEDIAN_STORY = 300, 180, 80, 200, 120
"""Lines at most; those of a function without its docstring."""
MOST_LEVELS = 10
"""Length of the longest chain of rooms that import each other."""

TOOLKIT = sorted((ROOT / "pplgen").rglob("*.py"))
TOOLKIT = [path for path in TOOLKIT if "models" not in path.relative_to(ROOT / "pplgen").parts]
COLLECTION = sorted(path for path in (ROOT / "models").rglob("*.py") if path.name != "__init__.py")
STORIES = [path for path in COLLECTION if path.parent.name == "models" and not path.name.startswith("_")]
PARSED = {path: ast.parse(path.read_text(encoding="utf-8")) for path in TOOLKIT + COLLECTION}


def named(path):
    return str(path.relative_to(ROOT))


def imported_modules(path):
    """Every module that a file imports, wherever in the file, for types too, as dotted names."""
    for node in ast.walk(PARSED[path]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{named(path)}: relative import"
            if node.module == "pplgen":
                yield from (f"pplgen.{alias.name}" for alias in node.names)
            else:
                yield node.module


def room_of(path):
    """The room of a file, or the name of a module at the top."""
    parts = path.relative_to(ROOT / "pplgen").with_suffix("").parts
    return parts[0]


def rooms_imported(path):
    parts = [module.split(".") for module in imported_modules(path)]
    return {each[1] for each in parts if each[0] == "pplgen" and len(each) > 1}


def test_no_module_stands_loose():
    assert {path.stem for path in TOOLKIT if path.parent == ROOT / "pplgen"} == LOOSE
    assert {path.name for path in (ROOT / "pplgen").iterdir() if path.is_dir()} - {"__pycache__", "models"} == set(
        ROOMS
    )
    assert len(ROOMS) <= 17


def test_rooms_import_from_rooms_below_them():
    places = {"errors": -1, "models": -1} | {room: place for place, room in enumerate(ROOMS)}
    for room, below in ROOMS.items():
        assert all(places[other] < places[room] for other in below), room


@pytest.mark.parametrize("path", TOOLKIT, ids=named)
def test_toolkit_imports_only_downward(path):
    room = room_of(path)
    if room in ("__init__", "__main__", "sklearn"):
        return
    for other in rooms_imported(path) - {room}:
        if other not in ROOMS and other not in LOOSE | {"models"}:
            assert path.parent.name == "cli", f"{named(path)} reaches every room through the package"
            continue
        allowed = ROOMS.get(room, set())
        assert other in allowed, f"{named(path)} may not import pplgen.{other}"


def test_every_permission_is_used():
    used = {room: set() for room in ROOMS}
    for path in TOOLKIT:
        if room_of(path) in ROOMS:
            used[room_of(path)] |= rooms_imported(path)
    unused = {room: below - used[room] for room, below in ROOMS.items() if below - used[room]}
    assert not unused, f"may be taken away: {unused}"


def test_files_of_a_room_import_each_other_in_no_circle():
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in TOOLKIT}
    graph = {}
    for name, path in modules.items():
        graph[name] = set()
        for node in ast.walk(PARSED[path]):
            if isinstance(node, ast.ImportFrom) and node.module:
                inner = {f"{node.module}.{alias.name}" for alias in node.names} & set(modules)
                graph[name] |= inner or ({node.module} & set(modules))
    done, open_ = set(), []

    def visit(name):
        assert name not in open_, f"circle: {' -> '.join([*open_[open_.index(name) :], name])}"
        if name in done:
            return
        open_.append(name)
        for other in graph[name]:
            visit(other)
        open_.pop()
        done.add(name)

    for name in graph:
        visit(name)


def test_levels_of_rooms_are_few():
    levels = {"errors": 0, "models": 0}
    for room, below in ROOMS.items():
        levels[room] = 1 + max(levels[other] for other in below)
    assert max(levels.values()) <= MOST_LEVELS, levels


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_says_what_it_does(room):
    docstring = ast.get_docstring(ast.parse((ROOT / "pplgen" / room / "__init__.py").read_text(encoding="utf-8")))
    assert "May import" in docstring
    start = docstring.partition("Start reading at")[2]
    files = re.findall(r"`(\w+\.py)`", start)
    assert files
    assert all((ROOT / "pplgen" / room / name).is_file() for name in files), start


def test_exact_references_know_no_pyro():
    for path in (ROOT / "pplgen" / "exact").glob("*.py"):
        assert not any(module.startswith("pyro") for module in imported_modules(path))


@pytest.mark.parametrize("path", COLLECTION, ids=named)
def test_stories_import_little(path):
    for module in imported_modules(path):
        parts = module.split(".")
        allowed = {parts[0], ".".join(parts[:2])} & COLLECTION_MAY_IMPORT
        assert allowed, f"{named(path)} may not import {module}"
        story = parts[:2] == ["pplgen", "models"] and len(parts) > 2 and not parts[2].startswith("_")
        assert not story or path in STORIES, f"{named(path)} may not import a story"


@pytest.mark.parametrize("path", TOOLKIT + COLLECTION, ids=named)
def test_files_stay_short(path):
    limit = LONGEST_STORY if path in STORIES else LONGEST_FILE
    assert len(path.read_text(encoding="utf-8").splitlines()) <= limit


@pytest.mark.parametrize(("paths", "limit"), [(TOOLKIT + COLLECTION, MEDIAN_FILE), (STORIES, MEDIAN_STORY)])
def test_most_files_are_shorter(paths, limit):
    lengths = sorted(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)
    assert lengths[len(lengths) // 2] < limit


@pytest.mark.parametrize("path", TOOLKIT + COLLECTION, ids=named)
def test_functions_stay_short(path):
    for node in ast.walk(PARSED[path]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
            docstring = first.end_lineno - first.lineno + 1 if documented else 0
            assert node.end_lineno - node.lineno + 1 - docstring <= LONGEST_FUNCTION, f"{named(path)}: {node.name}"


def test_every_story_has_a_test_of_its_own():
    for path in STORIES:
        assert (ROOT / "tests" / "models" / f"test_{path.name}").is_file(), f"{path.name} is not covered"
