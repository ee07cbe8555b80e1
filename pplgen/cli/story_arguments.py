"""A command for each story, whose options are those that all of them share and the story's own; and their group."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pplgen.errors import InputError, near_names
from pplgen.story.signature import Option, parse_value

__all__ = ["StoryGroup", "entry_named", "story_command"]


def entry_named(name: str, collection: Iterable[Any]) -> Any:
    """Return the entry of a collection by its name on the command line, or raise ``InputError`` with those near it."""
    known = {entry.name: entry for entry in collection}
    if name not in known:
        raise InputError(f"story {name!r}: expected one of {', '.join(known)}{near_names(name, known)}")
    return known[name]


class StoryGroup(TyperGroup):
    """Commands that go by the names of stories; of a user's own story it says what to do in Python."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command of a story."""
        file, _, name = args[0].partition(":")
        if file.endswith(".py"):
            name = name or "CLASS"
            then = "pplgen.calibrate(story)"
            if ctx.info_name == "fit":
                told = f"predict, report and others then take --story {file}:{name}"
                then = f"pplgen.fit(story, 'data.csv').save('runs/own'); {told}"
            given = f"{args[0]!r}: expected a story of the collection"
            raise InputError(f"{given}; with your own this is done in Python: story = {name}(...), {then}")
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
        The story's own.
    shared
        Its signature holds the shared ones; it is never called.
    """

    def command(**given: Any) -> None:
        run({option.name: parse_value(option, given.pop(option.name)) for option in options}, **given)

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
    common = list(inspect.signature(shared, eval_str=True).parameters.values())
    command.__signature__ = inspect.Signature([common[0], *own, *common[1:]])  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *common]}
    return command
