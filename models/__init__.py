"""The collection: one generative story per file, each importable from here by its class name.

Files are parsed, not imported, for their classes and docstrings, so that listing the collection does not import torch.
Files and folders whose names start with an underscore hold code shared by stories.
"""

from __future__ import annotations

import ast
import importlib
import json
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

BASES = {
    *("ColumnScales", "ComponentRows", "GaussianRows", "LatentStory", "LinearStory", "NetworkStory"),
    *("RegimeStory", "SeriesStory", "StateSpaceStory", "Story"),
}
"""Names of base classes of stories."""


@dataclass(frozen=True)
class Entry:
    """One story of the collection, as parsed from its file."""

    name: str
    """Name on the command line: the file's, with hyphens."""
    class_name: str
    """Name of the class."""
    summary: str
    """First line of the class's docstring."""
    definition: ast.ClassDef
    """The parsed class definition: its constructor's signature and its docstring."""
    equations: str
    """The file's docstring: generative process, guide and references."""
    base: ast.ClassDef | None = None
    """The shared base class to whose constructor this one passes its ``**`` arguments, if it has any."""


@dataclass(frozen=True)
class Card:
    """Guidance on when to use a story."""

    title: str
    """Title of the story."""
    rows: str
    """Kind of data it describes."""
    use: str
    """When to use it."""
    avoid: str
    """When not to use it, and alternatives."""
    validated_against: str
    """References that the tests compare it with."""


@cache
def collection() -> tuple[Entry, ...]:
    """Return all stories of the collection, sorted by name."""
    return tuple(_entry(path) for path in sorted(Path(__file__).parent.glob("*.py")) if not path.name.startswith("_"))


@cache
def cards() -> dict[str, Card]:
    """Return the cards in ``cards.toml``, by the story's name on the command line."""
    with Path(__file__).with_name("cards.toml").open("rb") as file:
        return {name: Card(**fields) for name, fields in tomllib.load(file).items()}


@cache
def calibrations() -> dict[str, dict[str, Any]]:
    """Return the recorded calibration of each story, or why it cannot be calibrated, by name."""
    recorded: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("calibrations.json").read_text("utf-8"))
    return recorded


def _entry(path: Path) -> Entry:
    """Parse a file for its story."""
    file = ast.parse(path.read_text(encoding="utf-8"))
    for node in file.body:
        if isinstance(node, ast.ClassDef) and {b.id for b in node.bases if isinstance(b, ast.Name)} & BASES:
            name, equations = path.stem.replace("_", "-"), ast.get_docstring(file) or ""
            summary = (ast.get_docstring(node) or "").partition("\n")[0]
            return Entry(name, node.name, summary, node, equations, _shared_base(file, node))
    raise ImportError(f"{path.name}: no class derived from {' or '.join(sorted(BASES))}")


def _shared_base(file: ast.Module, definition: ast.ClassDef) -> ast.ClassDef | None:
    """Parse the base class of a story that passes ``**`` arguments to it, from the private file it is imported from."""
    constructors = [n for n in definition.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
    if not constructors or constructors[0].args.kwarg is None:
        return None
    bases = {base.id for base in definition.bases if isinstance(base, ast.Name)}
    for node in file.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{__name__}._"):
            shared = Path(__file__).parent / f"{(node.module or '').removeprefix(f'{__name__}.')}.py"
            if bases & {alias.name for alias in node.names}:
                classes = [n for n in ast.parse(shared.read_text("utf-8")).body if isinstance(n, ast.ClassDef)]
                return next(each for each in classes if each.name in bases)
    return None


def __getattr__(name: str) -> Any:
    """Import a story from its file on first access."""
    for entry in collection():
        if entry.class_name == name:
            return getattr(importlib.import_module(f"{__name__}.{entry.name.replace('-', '_')}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return module attributes and the stories' names."""
    return [*globals(), *(entry.class_name for entry in collection())]
