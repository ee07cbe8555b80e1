"""What operators change: a model, a guide, data, and how they are fitted."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

import pplgen
from pplgen.checks.inputs import CheckInputs
from pplgen.inference.training_result import best_first
from pplgen.story.base import Story
from pplgen.story.conditioning import unconditioned
from pplgen.story.isolation import Wrapped, seeded
from pplgen.story.pair import Pair
from pplgen.timeseries.one_step import one_step_pit

__all__ = ["DoesNotApply", "Handled", "Rearranged", "Subject"]


class DoesNotApply(Exception):
    """An operator, or a scorer, does not apply to a pair."""


class Handled(Wrapped):
    """A model or guide under a Pyro handler."""

    def __init__(self, function: Callable[..., Any], handler: Callable[[], Messenger]) -> None:
        super().__init__(function)
        self.handler = handler

    def __call__(self, *data: Any) -> Any:
        """Call the function."""
        with self.handler():
            return self.function(*data)


class Rearranged(Wrapped):
    """A model or guide that sees one of its arguments changed."""

    def __init__(self, function: Callable[..., Any], place: int, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__(function)
        self.place, self.change = place, change

    def __call__(self, *data: Any) -> Any:
        """Call the function."""
        arguments = list(data)
        arguments[self.place] = self.change(arguments[self.place])
        return self.function(*arguments)


@dataclass(frozen=True)
class Subject:
    """A pair with a data set, healthy as it is made.

    Attributes
    ----------
    name
        Name of the pair.
    model
        A story, or a bare model of ``*data``.
    data
        Arguments of the model; ``observed`` and ``covariates`` are the places of the observations and of the matrix of
        covariates among them.
    kind
        ``"real"``, ``"positive"``, ``"counts"``, ``"binary"`` or ``"category"``: what the observations are.
    guide
        The posterior as a guide in closed form, a guide to fit, or the name of one; ``None`` for a story's own.
    closed
        Whether the guide is the posterior in closed form, which needs no fit.
    ordered
        Whether rows are steps of time.
    describes
        What the model describes, so that data with it are no mutants: ``"shape"`` of the distribution, ``"order"``.
    fixed_noise
        Whether the scale of the noise is a constant of the model.
    variants
        Other models of the same data that are wrong, by what is wrong.
    options
        Options of ``fit``.
    after, guide_handlers
        What changes the pair, and the guide, after the fit.
    """

    name: str
    model: Any
    data: tuple[Any, ...]
    kind: str
    guide: Callable[..., Any] | str | None = None
    closed: bool = False
    observed: int = -1
    covariates: int | None = None
    ordered: bool = False
    describes: frozenset[str] = frozenset()
    fixed_noise: bool = False
    variants: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    after: tuple[Callable[[Pair], None], ...] = ()
    guide_handlers: tuple[Callable[[], Messenger], ...] = ()

    @property
    def is_story(self) -> bool:
        """Whether it is of a story."""
        return isinstance(self.model, Story)

    @property
    def y(self) -> Tensor:
        """The observations."""
        return self.data[self.observed]

    def with_data(self, place: int, value: Tensor) -> Subject:
        """Return the same with another argument."""
        arguments = list(self.data)
        arguments[place] = value
        return replace(self, data=tuple(arguments))

    def with_y(self, y: Tensor) -> Subject:
        """Return the same with other observations."""
        return self.with_data(self.observed, y)

    def with_model(self, model: Any) -> Subject:
        """Return another model, whose posterior has to be fitted."""
        return replace(self, model=model, guide="full-rank" if self.closed else self.guide, closed=False)

    def trained(self, seed: int) -> CheckInputs:
        """Fit, or take the guide as it is, and return the inputs of checks."""
        if self.closed:
            pair, runs = Pair(self.model, self.guide, self.data), ()
        else:
            options = {"compile": "graph", "progress": False, "seed": seed, **self.options}
            guide = {} if self.is_story else {"guide": self.guide}
            fit = pplgen.fit(self.model, self.data[0] if self.is_story else self.data, **guide, **options)
            pair, runs = fit.pair, tuple(best_first(fit.runs))
        if self.guide_handlers or self.after:
            pair, runs = copy.copy(pair), ()
            for change in self.after:
                change(pair)
            for handler in self.guide_handlers:
                pair.guide = Handled(pair.guide, handler)
            with seeded(seed), pair.isolated(), torch.no_grad():
                pair.guide(*pair.data)  # a handler that does not apply says so
        return CheckInputs(pair, runs=runs, one_step_pit=one_step_pit)

    def simulated(self, seed: int) -> tuple[Subject, dict[str, Tensor]]:
        """Return the same with observations from its own prior and model, and the latents that they are drawn with."""
        with seeded(seed), torch.no_grad():
            trace = poutine.util.prune_subsample_sites(poutine.trace(unconditioned(self.model)).get_trace(*self.data))
            names = trace.stochastic_nodes
            observed = [name for name in names if trace.nodes[name]["infer"].get("was_observed")]
            if len(observed) != 1:
                raise DoesNotApply("the observations are not one site")
            values = {name: trace.nodes[name]["value"] for name in names if name not in observed}
            return self.with_y(trace.nodes[observed[0]]["value"]), values
