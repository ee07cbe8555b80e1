"""Operators that change a guide after it has been fitted: its widths, its location, its correlations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from mutants.pair_under_test import DoesNotApply, Subject

__all__ = ["GUIDE_OPERATORS", "moved_guide"]


class ChangedSites(Messenger):
    """Replaces the distributions of sampled sites; of the first alone with ``first``."""

    def __init__(self, change: Callable[[Any], Any], first: bool = False) -> None:
        super().__init__()
        self.change, self.first, self.seen = change, first, False

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or isinstance(msg["fn"], dist.Delta) or type(msg).__name__ == "_Subsample":
            return
        if msg["fn"].__class__.__name__ == "_Subsample" or (self.first and self.seen):
            return
        self.seen = True
        msg["fn"] = self.change(msg["fn"])


def moved(fn: Any, width: Tensor, shift: Tensor) -> Any:
    """Return a distribution ``width`` times as wide, and moved by ``shift`` of its standard deviations."""
    if isinstance(fn, dist.Independent):
        return dist.Independent(moved(fn.base_dist, width, shift), fn.reinterpreted_batch_ndims)
    if isinstance(fn, dist.Normal):
        width, shift = one_or_all(width, fn.loc), one_or_all(shift, fn.loc)
        return dist.Normal(fn.loc + shift * fn.scale, width * fn.scale)
    if isinstance(fn, dist.LogNormal):
        normal = moved(fn.base_dist, width, shift)
        return dist.LogNormal(normal.loc, normal.scale)
    if isinstance(fn, dist.MultivariateNormal):
        width, shift = one_or_all(width, fn.loc), one_or_all(shift, fn.loc)
        return dist.MultivariateNormal(fn.loc + shift * fn.stddev, scale_tril=width[..., None] * fn.scale_tril)
    if isinstance(fn, dist.Gamma):
        width, shift = one_or_all(width, fn.mean), one_or_all(shift, fn.mean)
        mean, variance = fn.mean + shift * fn.stddev, (width * fn.stddev).square()
        return dist.Gamma(mean.square() / variance, mean / variance)
    if isinstance(fn, dist.Beta):
        width, shift = one_or_all(width, fn.mean), one_or_all(shift, fn.mean)
        mean, variance = fn.mean + shift * fn.stddev, (width * fn.stddev).square()
        total = mean * (1 - mean) / variance - 1
        return dist.Beta(mean * total, (1 - mean) * total)
    if isinstance(fn, dist.Dirichlet) and not shift.any() and width.ndim == 0:
        return dist.Dirichlet(fn.concentration / width.square())
    if isinstance(fn, dist.TransformedDistribution):
        return dist.TransformedDistribution(moved(fn.base_dist, width, shift), fn.transforms)
    raise DoesNotApply(type(fn).__name__)


def one_or_all(value: Tensor, like: Tensor) -> Tensor:
    """Return a value for every entry; a pair ``(a, b)`` is a for the first entry and b for the others."""
    if value.ndim == 0:
        return value.expand(like.shape)
    flat = value[1].expand(like.shape).clone().reshape(-1)
    flat[0] = value[0]
    return flat.reshape(like.shape)


def negated(fn: Any) -> Any:
    """Return a distribution whose location has the other sign."""
    if isinstance(fn, dist.Independent):
        return dist.Independent(negated(fn.base_dist), fn.reinterpreted_batch_ndims)
    if isinstance(fn, dist.Normal | dist.MultivariateNormal) and bool((fn.loc.abs() > 3 * fn.stddev).any()):
        return moved(fn, torch.tensor(1.0), -2 * fn.loc / fn.stddev) if fn.loc.ndim == 0 else _located(fn, -fn.loc)
    raise DoesNotApply(type(fn).__name__)


def swapped(fn: Any) -> Any:
    """Return a distribution whose first two locations are exchanged."""
    if isinstance(fn, dist.Independent):
        return dist.Independent(swapped(fn.base_dist), fn.reinterpreted_batch_ndims)
    if isinstance(fn, dist.Normal | dist.MultivariateNormal) and fn.loc.ndim and fn.loc.shape[-1] > 1:
        order = torch.tensor([1, 0, *range(2, fn.loc.shape[-1])])
        if bool(((fn.loc[..., 0] - fn.loc[..., 1]).abs() > 3 * fn.stddev[..., 0]).any()):
            return _located(fn, fn.loc[..., order])
    raise DoesNotApply(type(fn).__name__)


def without_correlations(fn: Any) -> Any:
    """Return the mean field that minimises the Kullback-Leibler divergence to a correlated normal distribution."""
    if not isinstance(fn, dist.MultivariateNormal):
        raise DoesNotApply(type(fn).__name__)
    sd = fn.precision_matrix.diagonal(dim1=-2, dim2=-1).rsqrt()
    if float((sd / fn.stddev).min()) > 0.9:
        raise DoesNotApply("hardly correlated")
    return dist.Normal(fn.loc, sd).to_event(1)


def frozen(fn: Any) -> Any:
    """Return a distribution whose first entry is where an optimiser starts, 0 with a standard deviation of .1."""
    if isinstance(fn, dist.Independent):
        return dist.Independent(frozen(fn.base_dist), fn.reinterpreted_batch_ndims)
    if isinstance(fn, dist.Normal):
        only = one_or_all(torch.tensor([1.0, 0.0]), fn.loc).bool()
        return dist.Normal(fn.loc.where(~only, 0.0), fn.scale.where(~only, 0.1))
    if isinstance(fn, dist.MultivariateNormal):
        only = one_or_all(torch.tensor([1.0, 0.0]), fn.loc).bool()
        width = torch.where(only, 0.1 / fn.stddev, 1.0)
        return dist.MultivariateNormal(fn.loc.where(~only, 0.0), scale_tril=width[..., None] * fn.scale_tril)
    raise DoesNotApply(type(fn).__name__)


def _located(fn: Any, loc: Tensor) -> Any:
    if isinstance(fn, dist.Normal):
        return dist.Normal(loc, fn.scale)
    return dist.MultivariateNormal(loc, scale_tril=fn.scale_tril)


def _changed(change: Callable[[Any], Any], first: bool = False) -> Callable[[Subject], Subject]:
    def operator(subject: Subject) -> Subject:
        if subject.is_story:
            raise DoesNotApply("the guide of a story is fitted")
        return replace(subject, guide_handlers=(*subject.guide_handlers, lambda: ChangedSites(change, first)))

    return operator


def moved_guide(width: float = 1.0, shift: float = 0.0, one: bool = False) -> Callable[[Subject], Subject]:
    """Return an operator that changes widths and locations, in standard deviations; with ``one`` of the first entry."""
    if one:
        widths, shifts = torch.tensor([width, 1.0]), torch.tensor([shift, 0.0])
    else:
        widths, shifts = torch.tensor(width), torch.tensor(shift)
    return _changed(lambda fn: moved(fn, widths, shifts), first=one)


def prior_as_guide(subject: Subject) -> Subject:
    """Return the same with the prior as guide."""
    if not subject.closed:
        raise DoesNotApply("the guide is fitted")
    model = subject.model
    return replace(subject, guide=lambda *data: poutine.block(model, hide_fn=lambda msg: msg["is_observed"])(*data))


GUIDE_OPERATORS: dict[str, Callable[[Subject], Subject]] = {
    "guide narrowed to .5": moved_guide(0.5),
    "guide narrowed to .75": moved_guide(0.75),
    "guide widened to 1.33": moved_guide(1.33),
    "guide widened to 2": moved_guide(2.0),
    "guide narrowed to .6 in one entry": moved_guide(0.6, one=True),
    "guide widened to 1.6 in one entry": moved_guide(1.6, one=True),
    "guide shifted by 1 sd": moved_guide(shift=1.0),
    "guide shifted by 1.5 sd in one entry": moved_guide(shift=1.5, one=True),
    "guide with the wrong sign": _changed(negated, first=True),
    "guide with two entries swapped": _changed(swapped, first=True),
    "guide without correlations": _changed(without_correlations, first=True),
    "one entry frozen at its start": _changed(frozen, first=True),
    "guide = prior": prior_as_guide,
}
