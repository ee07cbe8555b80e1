"""A story's constructor as options: names, types, defaults and help, read from its source without running it."""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pplgen.errors import InputError

__all__ = ["Option", "constructor_options", "parse_options", "parse_value"]

_PLAIN_TYPES = {"int": int, "float": float, "str": str, "bool": bool}


@dataclass(frozen=True)
class Option:
    """One keyword argument of a constructor."""

    name: str
    kind: type
    """What the command line parses; ``str`` for what ``parse_value`` reads, such as several numbers."""
    default: Any
    help: str
    is_mapping: bool = False
    """Whether the value is a mapping, given as JSON."""
    is_counts: bool = False
    """Whether the value is a sequence of whole numbers, of any length."""

    @property
    def typed_default(self) -> Any:
        """The default as it would be typed."""
        return ",".join(map(str, self.default)) if self.is_counts else self.default

    @property
    def metavar(self) -> str | None:
        """What stands for the value in the help, where its type does not say it."""
        if self.is_mapping:
            return "JSON"
        return "NUMBERS" if self.kind is str and not isinstance(self.default, str) else None

    @property
    def flags(self) -> tuple[str, ...]:
        """Flags, the short one first: ``--components``, ``--num-components``."""
        long = "--" + self.name.replace("_", "-")
        return (long.replace("--num-", "--"), long) if self.name.startswith("num_") else (long,)


def constructor_options(definition: ast.ClassDef) -> tuple[Option, ...]:
    """Return the constructor's keyword arguments, with their help from the class's numpydoc docstring.

    Modules, which nobody can type, are left out.
    """
    help_texts = dict(_documented_parameters(ast.get_docstring(definition) or ""))
    constructor = next(
        node for node in definition.body if isinstance(node, ast.FunctionDef) and node.name == "__init__"
    ).args
    positional = constructor.args[1:]
    defaults = [*constructor.defaults, *constructor.kw_defaults]
    return tuple(
        Option(
            name=argument.arg,
            kind=_PLAIN_TYPES.get(_annotation(argument).removesuffix(" | None"), str),
            default=None if default is None else ast.literal_eval(default),
            help=help_texts.get(argument.arg, ""),
            is_mapping="Mapping[" in _annotation(argument),
            is_counts=_annotation(argument) == "Sequence[int]",
        )
        for argument, default in zip([*positional, *constructor.kwonlyargs], defaults, strict=True)
        if "Module" not in _annotation(argument)  # which no text describes
    )


def parse_value(option: Option, value: Any) -> Any:
    """Read a value that may be a mapping, or numbers with commas between them; other text stays as it is."""
    if option.is_mapping and isinstance(value, str):
        return _mapping(option, value)
    if option.kind is not str or not isinstance(value, str) or isinstance(option.default, str):
        return value
    if option.is_counts:
        return _counts(option, value)
    try:
        numbers = [float(part) for part in value.split(",")]
    except ValueError:
        raise InputError(f"{option.flags[0]} {value}: expected a number, or several with commas between") from None
    return numbers[0] if len(numbers) == 1 else numbers


def parse_options(text: str, options: tuple[Option, ...]) -> dict[str, Any]:
    """Read ``name=value`` pairs with semicolons between them; names as in the flags, without the hyphens."""
    given: dict[str, Any] = {}
    for part in filter(None, text.split(";")):
        name, _, value = part.partition("=")
        matching = [option for option in options if f"--{name.strip().replace('_', '-')}" in option.flags]
        if not matching:
            known = ", ".join(option.flags[0].removeprefix("--") for option in options)
            raise InputError(f"option {name.strip()!r}: expected name=value with one of {known}")
        (option,) = matching
        try:
            given[option.name] = parse_value(option, option.kind(value.strip()))
        except ValueError:
            raise InputError(f"{part.strip()}: expected a value of type {option.kind.__name__}") from None
    return given


def _annotation(argument: ast.arg) -> str:
    """Return an argument's type as it is written, empty where it has none."""
    return ast.unparse(argument.annotation) if argument.annotation else ""


def _counts(option: Option, text: str) -> list[int]:
    """Read whole numbers with commas between them; none from empty text."""
    try:
        return [int(part) for part in text.split(",")] if text.strip() else []
    except ValueError:
        raise InputError(f"{option.flags[0]} {text}: expected whole numbers with commas between") from None


def _mapping(option: Option, text: str) -> dict[str, Any]:
    """Read a mapping from JSON."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise InputError(f"{option.flags[0]} {text}: expected names and values as JSON, such as '{{\"a\": [1, 2]}}'")
    return value


def _documented_parameters(docstring: str) -> Iterator[tuple[str, str]]:
    """Yield name and description from the Parameters section of a numpydoc docstring, without its marks of code."""
    section = re.search(r"^Parameters\n-+\n(.*?)(?:^\w[^\n]*\n-+\n|\Z)", inspect.cleandoc(docstring), re.S | re.M)
    if section:
        for match in re.finditer(r"^(\w[\w, ]*)[^\n]*\n((?:[ \t]+[^\n]*\n?|\n)+)", section[1] + "\n", re.M):
            for name in match[1].split(","):
                yield name.strip(), " ".join(match[2].replace("``", "").split())
