"""The first run of a model and a guide: its checks, and the sites and plates found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pplgen.errors import InputError, first_line
from pplgen.story.automatic_guide import with_automatic_guide
from pplgen.story.read_only import ReadOnly
from pplgen.story.site_checks import checked_traces
from pplgen.story.structure import Structure, inspect_traces
from pplgen.story.trial_runs import with_row_axes

__all__ = ["inspect_pair"]


def inspect_pair(
    model: Callable[..., Any], guide: Callable[..., Any] | None, data: tuple[Any, ...], rows: str | None
) -> tuple[Callable[..., Any], Callable[..., Any], Structure]:
    """Run guide and model on the data, and return them with their structure.

    Parameters
    ----------
    model, guide
        The pair; without a guide, it gets an automatic one, and the model's discrete latents are enumerated.
    data
        Arguments of both.
    rows
        Name of the row plate; see ``pplgen.story.rows`` for the default.

    Raises
    ------
    InputError
        If a site is invalid, or the data are written to.
    """
    try:
        if guide is None:
            model, guide = with_automatic_guide(model, data)
        with ReadOnly(data):
            guide_trace, model_trace = checked_traces(model, guide, data)
    except InputError as error:  # to which Pyro appends a table of shapes
        raise InputError(first_line(error)) from error
    structure = inspect_traces(guide_trace, model_trace, data, rows)
    return model, guide, with_row_axes(structure, model, model_trace, data)
