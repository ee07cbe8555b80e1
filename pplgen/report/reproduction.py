"""What a fit was, in words and in code: the story's own mathematics, and what runs the fit again."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pplgen.data.datasets import NAMED_DATA_SETS
from pplgen.posterior.fitted_pair import FittedPair
from pplgen.storage.user_code import COLLECTION, source_code
from pplgen.story.base import Story

__all__ = ["Block", "blocks_of", "python_lines", "sources", "story_text"]

UNDERLINE = re.compile(r"-{3,}")
"""Of a heading."""


class Block(NamedTuple):
    """A part of a docstring."""

    kind: str
    """``text``, ``code`` or ``heading``."""
    text: str


def story_text(fit: FittedPair) -> list[Block]:
    """Return what a story's file says, of stories outside the collection the class, and of a bare pair the model."""
    if fit.story is None:
        return blocks_of(inspect.getdoc(fit.pair.model) if inspect.isroutine(fit.pair.model) else None)
    kind = type(fit.story)
    file = sys.modules[kind.__module__].__doc__ if kind.__module__.startswith(COLLECTION) else None
    return blocks_of(inspect.cleandoc(file) if file else inspect.cleandoc(kind.__doc__ or ""))


def blocks_of(docstring: str | None) -> list[Block]:
    """Split a docstring into paragraphs, headings and indented code."""
    blocks: list[Block] = []
    for part in re.split(r"\n\s*\n", (docstring or "").strip("\n")):
        lines = part.split("\n")
        if len(lines) > 1 and UNDERLINE.fullmatch(lines[1].strip()):
            blocks.append(Block("heading", lines[0].strip()))
            lines = lines[2:]
        if not any(line.strip() for line in lines):
            continue
        if lines[0].startswith("    "):
            text = inspect.cleandoc("\n".join(["", *lines]))
            if blocks and blocks[-1].kind == "code":
                blocks[-1] = Block("code", f"{blocks[-1].text}\n\n{text}")
            else:
                blocks.append(Block("code", text))
        else:
            # each line of a list of references is one
            listed = any(block == Block("heading", "References") for block in blocks)
            blocks.append(Block("text", ("\n" if listed else " ").join(map(str.strip, lines)).replace("::", ":")))
    return blocks


def sources(fit: FittedPair) -> dict[str, str]:
    """Return the code of a user's own pair or story, as far as it is to be had, by name; empty for the collection's."""
    if fit.story is not None:
        own = type(fit.story)
        return {} if own.__module__.startswith(COLLECTION) else _source(own.__name__, own)
    return _source("model", fit.pair.model) | _source("guide", fit.pair.guide)


def _source(name: str, what: Callable[..., Any]) -> dict[str, str]:
    """Return the code of a function or class, or what kind of object it is."""
    return {name: source_code(what) or f"{type(what).__module__}.{type(what).__qualname__}"}


def python_lines(fit: FittedPair, facts: Mapping[str, Any]) -> str:
    """Return the lines that fit again, with ``...`` for what has no short form."""
    options = {"seed": fit.seed, **facts.get("options", {})}
    if len(fit.runs) + fit.num_failed > 1:  # of a sampler there are none
        options["restarts"] = len(fit.runs) + fit.num_failed
    told = "".join(f", {name}={'...' if value is None else repr(value)}" for name, value in options.items())
    story = fit.story
    if story is None:
        return f"import pplgen\n\nfit = pplgen.fit(model, data, guide{told})"
    data = facts.get("data", {})
    name = str(data.get("name"))
    rows = repr(name) if name in NAMED_DATA_SETS else "x"
    lines = ["import pplgen", f"from {_home(story)} import {type(story).__name__}", ""]
    if rows == "x":
        columns = ", ".join(map(repr, fit.columns[:6])) + (", ..." if len(fit.columns) > 6 else "")
        unit = "series" if story.takes_series else "rows"
        known = "".join(f" and their {what}" for what in data.get("known", []))
        lines.append(f"x = ...  # {name!r}: {data.get('num_rows')} {unit} of {columns}{known}")
    arguments = ", ".join(f"{key}={value!r}" for key, value in _chosen(story).items())
    lines += [f"story = {type(story).__name__}({arguments})", f"fit = pplgen.fit(story, {rows}{told})"]
    return "\n".join(lines)


def _home(story: Story) -> str:
    """Return the module that a story is imported from."""
    module = type(story).__module__
    return COLLECTION.rstrip(".") if module.startswith(COLLECTION) else module


def _chosen(story: Story) -> dict[str, Any]:
    """Return the sizes among the arguments of a story's constructor, and those that are not its defaults."""
    defaults = {name: each.default for name, each in inspect.signature(type(story)).parameters.items()}
    return {
        name: value
        for name, value in story.config.items()
        if name.startswith("num_") or name not in defaults or value != defaults[name]
    }
