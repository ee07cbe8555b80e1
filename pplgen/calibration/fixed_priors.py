"""Stories with fixed, data-independent priors, from which data sets can be simulated."""

from __future__ import annotations

from typing import Any

from pplgen.inference.model_arguments import read_rows
from pplgen.story.base import Story
from pplgen.story.isolation import copy_pair, seeded
from pplgen.story.state_space import StateSpaceStory

__all__ = ["fix_priors"]


def fix_priors(story: Story, data: Any = None) -> Story:
    """Return a copy of a story whose priors do not depend on the rows that it is fitted to.

    They are taken from ``data``, or are the defaults before ``initialise``.
    """
    copied: Story = copy_pair(story, None)[0]
    x = None if data is None else read_rows(story, data).values
    if x is not None:
        with seeded(0):
            copied.to(x.dtype)
            copied.initialise(x)
    if unset := {name: copied.constants[name].tolist() for name in story.priors_from_data}:
        copied = type(story)(**{**story.config, **unset})
    if x is not None and isinstance(copied, StateSpaceStory):
        copied.num_steps.fill_(x.shape[1])
    return copied
