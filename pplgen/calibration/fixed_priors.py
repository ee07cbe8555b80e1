"""Stories whose priors are settled before they see any rows, as simulating from the prior needs."""

from __future__ import annotations

from typing import Any

from pplgen.inference.arguments import read_rows
from pplgen.story.base import Story
from pplgen.story.isolation import copy_pair, seeded
from pplgen.story.state_space import StateSpaceStory

__all__ = ["with_fixed_priors"]


def with_fixed_priors(story: Story, data: Any = None) -> Story:
    """Return a story that takes no prior from the rows that it is fitted to.

    Its priors are those that ``data`` suggest, or that it has before it sees any.
    """
    copied: Story = copy_pair(story, None)[0]
    x = None if data is None else read_rows(story, data).values
    if x is not None:
        with seeded(0):
            copied.to(x.dtype)
            copied.initialise(x)
    left = {name: value for name, value in copied.constants.items() if story.config.get(name, value) is None}
    if left:
        copied = type(story)(**{**story.config, **{name: value.tolist() for name, value in left.items()}})
    if x is not None and isinstance(copied, StateSpaceStory):
        copied.num_steps.fill_(x.shape[1])
    return copied
