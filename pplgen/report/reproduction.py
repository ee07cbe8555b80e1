"""A fit in words and code: the story's docstring and source, and the code that reproduces the fit."""

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
"""Underline of a heading."""


class Block(NamedTuple):
    """A part of a docstring."""

    kind: str
    """``text``, ``code`` or ``heading``."""
    text: str


def story_text(fit: FittedPair) -> list[Block]:
    """Return the docstring of a story's file, of a user's story class, or of a bare pair's model."""
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
            # each line under References is one reference
            listed = any(block == Block("heading", "References") for block in blocks)
            blocks.append(Block("text", ("\n" if listed else " ").join(map(str.strip, lines)).replace("::", ":")))
    return blocks


def sources(fit: FittedPair) -> dict[str, str]:
    """Return the available source of a user's pair or story, by name; empty for stories that pplgen ships."""
    if fit.story is not None:
        own = type(fit.story)
        return {} if own.__module__.startswith(COLLECTION) else _source(own.__name__, own)
    return _source("model", fit.pair.model) | _source("guide", fit.pair.guide)


def _source(name: str, definition: Callable[..., Any]) -> dict[str, str]:
    """Return the source of a function or class, else the type of the object."""
    return {name: source_code(definition) or f"{type(definition).__module__}.{type(definition).__qualname__}"}


def python_lines(fit: FittedPair, facts: Mapping[str, Any]) -> str:
    """Return the Python code that reproduces the fit, with ``...`` for values without a short form."""
    options = {"seed": fit.seed, **facts.get("options", {})}
    if len(fit.runs) + fit.num_failed > 1:  # a sampler has no restarts
        options["restarts"] = len(fit.runs) + fit.num_failed
    keywords = "".join(f", {name}={'...' if value is None else repr(value)}" for name, value in options.items())
    story, guide = fit.story, None if "method" in options else facts.get("guide")
    if story is None:
        return f"import pplgen\n\nfit = pplgen.fit(model, data, {'guide' if guide is None else repr(guide)}{keywords})"
    keywords = keywords if guide is None else f", {guide!r}{keywords}"
    data = facts.get("data", {})
    name = str(data.get("name"))
    rows = repr(name) if name in NAMED_DATA_SETS else "x"
    lines = ["import pplgen", f"from {_public_module(story)} import {type(story).__name__}", ""]
    if rows == "x":
        columns = ", ".join(map(repr, fit.columns[:6])) + (", ..." if len(fit.columns) > 6 else "")
        unit = "series" if story.takes_series else "rows"
        known = "".join(f" and their {column}" for column in data.get("known", []))
        lines.append(f"x = ...  # {name!r}: {data.get('num_rows')} {unit} of {columns}{known}")
    arguments = ", ".join(f"{key}={value!r}" for key, value in _explicit_arguments(story).items())
    lines += [f"story = {type(story).__name__}({arguments})", f"fit = pplgen.fit(story, {rows}{keywords})"]
    return "\n".join(lines)


def _public_module(story: Story) -> str:
    """Return the module from which a story is imported."""
    module = type(story).__module__
    return COLLECTION.rstrip(".") if module.startswith(COLLECTION) else module


def _explicit_arguments(story: Story) -> dict[str, Any]:
    """Return the constructor arguments that are sizes or differ from their defaults."""
    defaults = {name: each.default for name, each in inspect.signature(type(story)).parameters.items()}
    return {
        name: value
        for name, value in story.config.items()
        if name.startswith("num_") or name not in defaults or value != defaults[name]
    }
