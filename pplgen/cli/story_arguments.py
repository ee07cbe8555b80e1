"""One command per story, with the shared options and the story's own; and their group."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pplgen.errors import InputError, near_names
from pplgen.story.signature import Option, parse_value

__all__ = ["StoryGroup", "find_entry", "story_command"]


def find_entry(name: str, collection: Iterable[Any]) -> Any:
    """Return a story's entry by its name on the command line; an ``InputError`` suggests similar names."""
    entries = {entry.name: entry for entry in collection}
    if name not in entries:
        raise InputError(f"story {name!r}: expected one of {', '.join(entries)}{near_names(name, entries)}")
    return entries[name]


class StoryGroup(TyperGroup):
    """Commands named after stories; for a user's own story, the error shows the Python call."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command of a story."""
        file, _, name = args[0].partition(":")
        if file.endswith(".py"):
            name = name or "CLASS"
            call = "pplgen.calibrate(story)"
            if ctx.info_name == "fit":
                then = f"predict, report and others then accept --story {file}:{name}"
                call = f"pplgen.fit(story, 'data.csv').save('runs/own'); {then}"
            message = f"{args[0]!r}: expected the name of a story that pplgen ships"
            raise InputError(f"{message}; for your own, use Python: story = {name}(...), {call}")
        return super().resolve_command(ctx, args)


def story_command(
    run: Callable[..., None], options: Sequence[Option], shared: Callable[..., None]
) -> Callable[..., None]:
    """Build one story's command.

    Parameters
    ----------
    run
        Called with the story's own options as one mapping, and the shared ones by name.
    options
        Options of the story.
    shared
        Function whose signature declares the shared options; never called. An option of the story replaces a shared
        one of the same name.
    """

    def command(**values: Any) -> None:
        run({option.name: parse_value(option, values.pop(option.name)) for option in options}, **values)

    own = [
        inspect.Parameter(
            option.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=option.typed_default,
            annotation=Annotated[
                option.kind | None if option.default is None else option.kind,
                typer.Option(*option.flags, help=option.help, metavar=option.metavar),
            ],
        )
        for option in options
    ]
    taken = {option.name for option in options}
    common = [each for each in inspect.signature(shared, eval_str=True).parameters.values() if each.name not in taken]
    command.__signature__ = inspect.Signature([common[0], *own, *common[1:]])  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *common]}
    return command
