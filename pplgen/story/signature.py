"""A story's constructor arguments as options: names, types, defaults and help, parsed from its source."""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Iterator, Sequence
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
    """Type that the command line parses; ``str`` for values that ``parse_value`` parses, such as several numbers."""
    default: Any
    help: str
    is_mapping: bool = False
    """Whether the value is a mapping, given as JSON."""
    is_counts: bool = False
    """Whether the value is a sequence of integers, of any length."""

    @property
    def typed_default(self) -> Any:
        """The default in command-line syntax."""
        return ",".join(map(str, self.default)) if self.is_counts else self.default

    @property
    def metavar(self) -> str | None:
        """Placeholder for the value in the help, ``None`` to derive it from the type."""
        if self.is_mapping:
            return "JSON"
        return "NUMBERS" if self.kind is str and not isinstance(self.default, str) else None

    @property
    def flags(self) -> tuple[str, ...]:
        """Flags, the short one first: ``--components``, ``--num-components``."""
        long = "--" + self.name.replace("_", "-")
        return (long.replace("--num-", "--"), long) if self.name.startswith("num_") else (long,)


def constructor_options(definition: ast.ClassDef, base: ast.ClassDef | None = None) -> tuple[Option, ...]:
    """Return the constructor's keyword arguments, with their help from the class's numpydoc docstring.

    Arguments that are modules are omitted. Those of ``base``, to whose constructor ``**`` passes, follow: its
    keyword-only arguments that the constructor itself does not have.
    """
    constructor = _constructor(definition)
    positional = constructor.args[1:]
    defaults = [*constructor.defaults, *constructor.kw_defaults]
    own = _options(definition, [*positional, *constructor.kwonlyargs], defaults)
    if base is None:
        return own
    shared, names = _constructor(base), {argument.arg for argument in [*positional, *constructor.kwonlyargs]}
    passed = _options(base, shared.kwonlyargs, shared.kw_defaults)
    return (*own, *(option for option in passed if option.name not in names))


def _constructor(definition: ast.ClassDef) -> ast.arguments:
    """Return the arguments of a class's constructor."""
    return next(n for n in definition.body if isinstance(n, ast.FunctionDef) and n.name == "__init__").args


def _options(
    definition: ast.ClassDef, arguments: Sequence[ast.arg], defaults: Sequence[ast.expr | None]
) -> tuple[Option, ...]:
    """Return arguments as options, with their help from the class's docstring."""
    help_texts = dict(_documented_parameters(ast.get_docstring(definition) or ""))
    return tuple(
        Option(
            name=argument.arg,
            kind=_PLAIN_TYPES.get(_annotation(argument).removesuffix(" | None"), str),
            default=None if default is None else ast.literal_eval(default),
            help=help_texts.get(argument.arg, ""),
            is_mapping="Mapping[" in _annotation(argument),
            is_counts=_annotation(argument) == "Sequence[int]",
        )
        for argument, default in zip(arguments, defaults, strict=True)
        if "Module" not in _annotation(argument)  # which has no text form
    )


def parse_value(option: Option, value: Any) -> Any:
    """Parse a mapping or comma-separated numbers; return other values unchanged."""
    if option.is_mapping and isinstance(value, str):
        return _mapping(option, value)
    if option.kind is not str or not isinstance(value, str) or isinstance(option.default, str):
        return value
    if option.is_counts:
        return _counts(option, value)
    try:
        numbers = [float(part) for part in value.split(",")]
    except ValueError:
        raise InputError(f"{option.flags[0]} {value}: expected a number, or several separated by commas") from None
    return numbers[0] if len(numbers) == 1 else numbers


def parse_options(text: str, options: tuple[Option, ...]) -> dict[str, Any]:
    """Parse ``name=value`` pairs separated by semicolons; names as in the flags, without leading hyphens."""
    values: dict[str, Any] = {}
    for part in filter(None, text.split(";")):
        name, _, value = part.partition("=")
        matching = [option for option in options if f"--{name.strip().replace('_', '-')}" in option.flags]
        if not matching:
            names = ", ".join(option.flags[0].removeprefix("--") for option in options)
            raise InputError(f"option {name.strip()!r}: expected name=value with one of {names}")
        (option,) = matching
        try:
            values[option.name] = parse_value(option, option.kind(value.strip()))
        except ValueError:
            raise InputError(f"{part.strip()}: expected a value of type {option.kind.__name__}") from None
    return values


def _annotation(argument: ast.arg) -> str:
    """Return the source of an argument's annotation, empty without one."""
    return ast.unparse(argument.annotation) if argument.annotation else ""


def _counts(option: Option, text: str) -> list[int]:
    """Parse comma-separated integers; empty text gives none."""
    try:
        return [int(part) for part in text.split(",")] if text.strip() else []
    except ValueError:
        raise InputError(f"{option.flags[0]} {text}: expected whole numbers separated by commas") from None


def _mapping(option: Option, text: str) -> dict[str, Any]:
    """Parse a mapping from JSON."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise InputError(f"{option.flags[0]} {text}: expected a JSON object, such as '{{\"a\": [1, 2]}}'")
    return value


def _documented_parameters(docstring: str) -> Iterator[tuple[str, str]]:
    """Yield names and descriptions from a numpydoc Parameters section, without backquotes."""
    section = re.search(r"^Parameters\n-+\n(.*?)(?:^\w[^\n]*\n-+\n|\Z)", inspect.cleandoc(docstring), re.S | re.M)
    if section:
        for match in re.finditer(r"^(\w[\w, ]*)[^\n]*\n((?:[ \t]+[^\n]*\n?|\n)+)", section[1] + "\n", re.M):
            for name in match[1].split(","):
                yield name.strip(), " ".join(match[2].replace("``", "").split())
