"""Users' model code: import paths, source, digests, and stories loaded from a file."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
from pathlib import Path
from typing import Any

from pplgen.errors import InputError, first_line, near_names
from pplgen.story.base import Story

__all__ = ["COLLECTION", "code_digest", "import_path", "qualified_name", "source_code", "story_in_file", "user_story"]

COLLECTION = "pplgen.models."
"""Package of the stories that come with the toolkit; all others are users' code."""
LIBRARIES = ("pplgen.", "pyro.", "torch.")
"""Packages that are identified by version instead of source code."""


def import_path(kind: type) -> str:
    """Return module and name of a class, ``"mymodel:MyStory"``."""
    return f"{kind.__module__}:{kind.__name__}"


def qualified_name(part: Any) -> str:
    """Return module and name of a model or guide: of the function, or of the object's class."""
    function = inspect.unwrap(part)
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    return f"{getattr(function, '__module__', None) or type(function).__module__}:{name}"


def source_code(what: Any) -> str | None:
    """Return the source code of a function or class, ``None`` where it is not available."""
    try:
        return inspect.cleandoc("\n" + inspect.getsource(what))
    except (OSError, TypeError):
        return None


def code_digest(*parts: Any) -> str | None:
    """Return the SHA-256 of the source code of functions and classes, including base classes.

    Libraries are excluded; other objects are represented by their class. ``None`` where no source is available.
    """
    kinds: list[Any] = []
    for part in map(inspect.unwrap, parts):
        definition = part if inspect.isroutine(part) or isinstance(part, type) else type(part)
        kinds += definition.__mro__ if isinstance(definition, type) else [definition]
    user_kinds = [kind for kind in kinds if not f"{kind.__module__}.".startswith((*LIBRARIES, "builtins."))]
    sources = [source for source in map(source_code, user_kinds) if source is not None]
    return hashlib.sha256("\0".join(sources).encode()).hexdigest() if sources else None


def user_story(recorded: str, source: Any) -> type[Story] | Story:
    """Return the user's story for loading a run: from a class, an untrained story, or ``"FILE.py:CLASS"``.

    Raises
    ------
    InputError
        Where ``source`` is none of these, or its name differs from the recorded one.
    """
    story = story_in_file(source) if isinstance(source, str) else source
    kind = story if isinstance(story, type) else type(story)
    if not issubclass(kind, Story):
        raise InputError(f"story={source!r}: expected a subclass of Story, an instance of one, or FILE.py:CLASS")
    name = recorded.rpartition(":")[2]
    if kind.__name__ != name:
        raise InputError(f"story {kind.__name__!r} was given, but the run is of {name!r}")
    return story


def story_in_file(reference: str) -> type[Story]:
    """Execute a user's file and return one of its stories.

    Parameters
    ----------
    reference
        ``"FILE.py:CLASS"``.

    Raises
    ------
    InputError
        Where the file or story does not exist, or the file cannot be executed.
    """
    path, colon, name = reference.rpartition(":")
    file = Path(path)
    if not colon or file.suffix != ".py" or not name.isidentifier():
        raise InputError(f"story {reference!r}: expected FILE.py:CLASS, such as mymodel.py:MyStory")
    if not file.is_file():
        raise InputError(f"story {reference!r}: there is no file {path!r}")
    # registered under the file name, which shadows no module of the same stem
    spec = importlib.util.spec_from_file_location(file.name, file)
    assert spec is not None and spec.loader is not None, "a file that ends in .py has a loader"  # noqa: PT018
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(f"{path!r} cannot be executed: {type(error).__name__}: {first_line(error)}") from error
    stories = {key: kind for key, kind in vars(module).items() if _is_story(kind)}
    if name not in stories:
        own = [key for key, kind in stories.items() if kind.__module__ == file.name]
        raise InputError(f"{path!r} has no story {name!r}; it has {', '.join(own) or 'none'}{near_names(name, own)}")
    return stories[name]


def _is_story(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Story) and kind is not Story
