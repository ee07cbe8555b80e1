"""Operators that stop or mistune the optimiser, and those for stories of the collection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from pplgen.models import (
    GaussianHMM,
    GaussianMixture,
    MarkovSwitchingAR,
    MixedMixture,
    SwitchingLDS,
)

from mutants.model_operators import frozen_weights
from mutants.pair_under_test import DoesNotApply, Subject
from pplgen.story.latent import LatentStory
from pplgen.story.pair import Pair

__all__ = ["FIT_OPERATORS", "STORY_OPERATORS"]


def _options(**options: Any) -> Callable[[Subject], Subject]:
    """Fit a guide with all correlations, or a story, with other options."""

    def operator(subject: Subject) -> Subject:
        if "restarts" in subject.options or subject.kind == "category":
            raise DoesNotApply("see the other pairs")
        if subject.is_story:
            return replace(subject, options={**subject.options, **options})
        return replace(subject.with_model(subject.model), options={**subject.options, **options})

    return operator


FIT_OPERATORS: dict[str, Callable[[Subject], Subject]] = {
    "optimiser stopped after 40 steps": _options(optimiser="adam", steps=40),
    "learning rate too large": _options(optimiser="adam", learning_rate=3.0, steps=300),
    "learning rate too small": _options(optimiser="adam", learning_rate=1e-4, steps=1000),
}


def _one_component(subject: Subject) -> Subject:
    """Return the same with one component or regime."""
    story = subject.model
    fewer = {
        GaussianMixture: lambda: GaussianMixture(1, 2),
        MixedMixture: lambda: MixedMixture(1, 5, columns="binary"),
        GaussianHMM: lambda: GaussianHMM(1, 1),
        MarkovSwitchingAR: lambda: MarkovSwitchingAR(1, 0),
        SwitchingLDS: lambda: SwitchingLDS(1, 1, 2),
    }
    if type(story) not in fewer:
        raise DoesNotApply("the story has no components")
    return replace(subject, model=fewer[type(story)]())


def _collapsed(subject: Subject) -> Subject:
    """Return the same with an encoder that says nothing of the row."""
    if not isinstance(subject.model, LatentStory):
        raise DoesNotApply("there is no encoder")

    def collapse(pair: Pair) -> None:
        zeroed = {
            name: torch.zeros_like(value) if "encoder" in name and "decoder" not in name else value
            for name, value in pair.snapshot().items()
        }
        if all(torch.equal(zeroed[name], value) for name, value in pair.snapshot().items()):
            raise DoesNotApply("the encoder has no parameters")
        pair.restore(zeroed)

    return replace(subject, after=(*subject.after, collapse))


def _frozen_weight(subject: Subject) -> Subject:
    """Return the autoencoder with a weight of its KL term of .1, which never rises."""
    if not isinstance(subject.model, LatentStory) or type(subject.model).__name__ != "VAE":
        raise DoesNotApply("see VAE")
    story = subject.model
    return replace(frozen_weights(replace(subject, model=story.model, guide=story.guide)), options={"steps": 3000})


STORY_OPERATORS: dict[str, Callable[[Subject], Subject]] = {
    "one component": _one_component,
    "collapsed encoder": _collapsed,
    "KL weight frozen at .1 (autoencoder)": _frozen_weight,
}
