"""Operators that change a model, which is then fitted: its scales, terms, likelihood and link."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoMultivariateNormal
from pyro.poutine.messenger import Messenger
from torch import Tensor

from mutants.guide_operators import moved
from mutants.pair_under_test import DoesNotApply, Handled, Rearranged, Subject

__all__ = ["MODEL_OPERATORS", "frozen_weights"]


class Scaled(Messenger):
    """Multiplies the log densities of observations, and of latents, by constants."""

    def __init__(self, observed: float, latent: float) -> None:
        super().__init__()
        self.observed, self.latent = observed, latent

    def _pyro_sample(self, msg: Any) -> None:
        if msg["fn"].__class__.__name__ != "_Subsample":
            msg["scale"] = msg["scale"] * (self.observed if msg["is_observed"] else self.latent)


class ChangedObservation(Messenger):
    """Replaces the distribution of observations."""

    def __init__(self, change: Callable[[Any], Any]) -> None:
        super().__init__()
        self.change = change

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["infer"].get("was_observed"):
            msg["fn"] = self.change(msg["fn"])


def another_family(fn: Any) -> Any:
    """Return a distribution of another family with the same mean, and variance where it has one to choose."""
    if isinstance(fn, dist.Independent):
        return dist.Independent(another_family(fn.base_dist), fn.reinterpreted_batch_ndims)
    if isinstance(fn, dist.NegativeBinomial):
        return dist.Poisson(fn.mean)
    if isinstance(fn, dist.Poisson):
        return dist.Geometric(1 / (1 + fn.rate))
    if isinstance(fn, dist.StudentT):
        return dist.Normal(fn.loc, fn.scale)
    if isinstance(fn, dist.Exponential):
        return dist.HalfNormal(fn.mean * (torch.pi / 2) ** 0.5)
    if isinstance(fn, dist.LogNormal):
        return dist.Exponential(1 / fn.mean)
    if isinstance(fn, dist.Normal):
        return dist.StudentT(1.5, fn.loc, fn.scale)
    raise DoesNotApply(type(fn).__name__)


def _scaled(observed: float = 1.0, latent: float = 1.0) -> Callable[[Subject], Subject]:
    def operator(subject: Subject) -> Subject:
        if subject.is_story:
            raise DoesNotApply("a story scales its rows itself")
        return subject.with_model(Handled(subject.model, lambda: Scaled(observed, latent)))

    return operator


def _observed(change: Callable[[Any], Any]) -> Callable[[Subject], Subject]:
    def operator(subject: Subject) -> Subject:
        if subject.is_story:
            raise DoesNotApply("a story chooses its likelihood by an option")
        return subject.with_model(Handled(subject.model, lambda: ChangedObservation(change)))

    return operator


def _width_of_noise(factor: float) -> Callable[[Subject], Subject]:
    widen = _observed(lambda fn: moved(fn, torch.tensor(factor), torch.tensor(0.0)))

    def operator(subject: Subject) -> Subject:
        if not subject.fixed_noise:
            raise DoesNotApply("the scale of the noise is not fixed")
        return widen(subject)

    return operator


def frozen_weights(subject: Subject) -> Subject:
    """Return the same with terms of latents, in model and guide, of weight .1, which never rises."""
    if subject.is_story:
        raise DoesNotApply("stories have warm_up")

    def handler() -> Scaled:
        return Scaled(1.0, 0.1)

    guide = subject.guide if callable(subject.guide) and not subject.closed else AutoMultivariateNormal(subject.model)
    return replace(subject.with_model(Handled(subject.model, handler)), guide=Handled(guide, handler))


def _rearranged(change: Callable[[Tensor], Tensor]) -> Callable[[Subject], Subject]:
    def operator(subject: Subject) -> Subject:
        if subject.covariates is None:
            raise DoesNotApply("there are no covariates")
        model, guide = (
            Rearranged(part, subject.covariates, change) if callable(part) else part
            for part in (subject.model, subject.guide)
        )
        return replace(subject, model=model, guide=guide)

    return operator


def _without_first(x: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(x[:, :1]), x[:, 1:]], dim=1)


MODEL_OPERATORS: dict[str, Callable[[Subject], Subject]] = {
    "likelihood counted twice": _scaled(observed=2.0),
    "plate of half the size": _scaled(observed=0.5),
    "KL weight frozen at .1": frozen_weights,
    "prior dropped": _scaled(latent=0.0),
    "noise half as wide": _width_of_noise(0.5),
    "noise twice as wide": _width_of_noise(2.0),
    "another likelihood family": _observed(another_family),
    "a covariate dropped": _rearranged(_without_first),
    "covariates of the row before": _rearranged(lambda x: x.roll(1, 0)),
}
