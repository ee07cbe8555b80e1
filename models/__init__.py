"""The collection: one generative story per file, each importable from here by its class name.

Files are found, and their classes and docstrings read, without running them, so that listing the collection does not
import torch. A file whose name starts with an underscore holds a piece that stories share.
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

BASES = {"LatentStory", "LinearStory", "NetworkStory", "StateSpaceStory", "Story"}
"""What a story derives from, by one name."""


@dataclass(frozen=True)
class Entry:
    """One story of the collection, as read from its file."""

    name: str
    """The name on the command line: the file's, with hyphens."""
    class_name: str
    """The name in Python."""
    summary: str
    """First line of the class's docstring."""
    definition: ast.ClassDef
    """The class, unexecuted: its constructor's signature and its docstring."""
    equations: str
    """The file's docstring: the generative process, the guide, and where both come from."""


@dataclass(frozen=True)
class Card:
    """What is to be known of a story before it is used, and is not in its equations."""

    title: str
    """The story's name in words."""
    rows: str
    """What kind of rows it is for."""
    use: str
    """When to take it."""
    avoid: str
    """When not to, and what instead."""
    held_against: str
    """What the tests hold it against."""


@cache
def collection() -> tuple[Entry, ...]:
    """Return every story of the collection, by name."""
    return tuple(_entry(path) for path in sorted(Path(__file__).parent.glob("*.py")) if not path.name.startswith("_"))


@cache
def cards() -> dict[str, Card]:
    """Return what ``cards.toml`` says of each story, by its name on the command line."""
    with Path(__file__).with_name("cards.toml").open("rb") as file:
        return {name: Card(**facts) for name, facts in tomllib.load(file).items()}


@cache
def calibrations() -> dict[str, dict[str, Any]]:
    """Return what was recorded when stories were calibrated, or why one cannot be, by name."""
    recorded: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("calibrations.json").read_text("utf-8"))
    return recorded


def _entry(path: Path) -> Entry:
    """Read the one story of a file."""
    file = ast.parse(path.read_text(encoding="utf-8"))
    for node in file.body:
        if isinstance(node, ast.ClassDef) and {b.id for b in node.bases if isinstance(b, ast.Name)} & BASES:
            summary = (ast.get_docstring(node) or "").partition("\n")[0]
            return Entry(path.stem.replace("_", "-"), node.name, summary, node, ast.get_docstring(file) or "")
    raise ImportError(f"{path.name} holds no class derived from {' or '.join(sorted(BASES))}")


def __getattr__(name: str) -> Any:
    """Import a story from its file when it is first asked for."""
    for entry in collection():
        if entry.class_name == name:
            return getattr(importlib.import_module(f"{__name__}.{entry.name.replace('-', '_')}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Names of the stories."""
    return [*globals(), *(entry.class_name for entry in collection())]
