"""Condition a model on labels of rows (values of a discrete latent) and on row weights."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.uncondition_messenger import UnconditionMessenger
from torch import Tensor

from pplgen.errors import InputError
from pplgen.story.isolation import Wrapped
from pplgen.story.structure import Structure

__all__ = ["ConditionedRows", "PartlyObserved", "RowScale", "labelled_site", "unconditioned"]

UNKNOWN = -1
"""Label of a row whose latent is unknown."""


class RowScale(Messenger):
    """Scale the log density of every site inside the row plate.

    A scalar rescales a minibatch to all rows; a tensor of shape ``(num_rows,)`` weights the rows.
    """

    def __init__(self, plate: str, scale: float | Tensor) -> None:
        super().__init__()
        self.plate, self.scale = plate, scale

    def _pyro_sample(self, msg: Any) -> None:
        for frame in msg["cond_indep_stack"]:
            if frame.name == self.plate:
                msg["scale"] = msg["scale"] * _along(self.scale, frame.dim)


class _Unconditioned(UnconditionMessenger):
    """Draw observed sites; deterministic ones, which Pyro observes too, keep their value and its shape."""

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["infer"].get("_deterministic"):
            super()._pyro_sample(msg)


def unconditioned(model: Callable[..., Any]) -> Callable[..., Any]:
    """Return a model that draws its observed sites, like ``pyro.poutine.uncondition``."""
    drawn: Callable[..., Any] = _Unconditioned()(model)
    return drawn


class PartlyObserved(dist.TorchDistribution):
    """A discrete distribution with some values observed; an observed value keeps its probability.

    Parameters
    ----------
    base
        The distribution.
    labels
        Observed values, ``UNKNOWN`` for others; broadcast with the batch shape of ``base``.
    """

    arg_constraints: dict = {}  # noqa: RUF012
    has_enumerate_support = True

    def __init__(self, base: Any, labels: Tensor) -> None:
        self.base, self.labels = base, labels
        shape = torch.broadcast_shapes(base.batch_shape, labels.shape)
        super().__init__(shape, base.event_shape, validate_args=False)

    def expand(self, batch_shape: torch.Size, _instance: None = None) -> PartlyObserved:
        """Expand to a batch shape."""
        return PartlyObserved(self.base.expand(batch_shape), self.labels.expand(batch_shape))

    @property
    def support(self) -> Any:
        """Support of the base distribution."""
        return self.base.support

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability in nats, minus infinity where another value is observed."""
        impossible = (self.labels != UNKNOWN) & (self.labels != value)
        log_prob: Tensor = self.base.log_prob(value).masked_fill(impossible, -math.inf)
        return log_prob

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw unknown values; return observed ones."""
        drawn = self.base.expand(self.batch_shape).sample(sample_shape)
        return torch.where(self.labels == UNKNOWN, drawn, self.labels.to(drawn.dtype))

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """Return all values of the base distribution."""
        base = self.base.expand(self.batch_shape) if expand else self.base
        values: Tensor = base.enumerate_support(expand)
        return values


class ConditionedRows(Wrapped):
    """A model or guide, or any function of the same arguments, that also takes labels and weights of rows.

    Parameters
    ----------
    function
        Function of ``num_arguments`` arguments.
    num_arguments
        Its number of arguments.
    row_plate
        Name of the row plate.
    site
        Discrete latent in the row plate that is conditioned on labels; ``None`` if the function takes ``labels``.
    """

    def __init__(self, function: Callable[..., Any], num_arguments: int, row_plate: str, site: str | None) -> None:
        super().__init__(function)
        self.num_arguments, self.row_plate, self.site = num_arguments, row_plate, site

    def __call__(self, *data: Any) -> Any:
        """Call the function, conditioned on labels and weights where given."""
        if len(data) == self.num_arguments:
            return self.function(*data)
        *arguments, labels, weights = data
        function = self.function
        if labels is not None and self.site is None:
            function = functools.partial(function, labels=labels)
        elif labels is not None:
            function = _ConditionedSite(str(self.site), self.row_plate, labels)(function)
        if weights is not None:
            function = RowScale(self.row_plate, weights)(function)
        return function(*arguments)


def labelled_site(model: Callable[..., Any], structure: Structure, data: tuple[Any, ...], labels: Tensor) -> str:
    """Return the discrete latent that labels observe: the only enumerated one in the row plate.

    Raises
    ------
    InputError
        If there is none or more than one, or a label is not among its values.
    """
    sites = [name for name in structure.enumerated if name in structure.per_row]
    if len(sites) != 1:
        names = ", ".join(sites) or "none"
        raise InputError(f"labels require exactly one enumerated discrete latent per row; this model has {names}")
    with poutine.block(), torch.no_grad():
        node = poutine.trace(model).get_trace(*data).nodes[sites[0]]
    values = node["fn"].enumerate_support(expand=False).reshape(-1)
    wrong = torch.argwhere((labels != UNKNOWN) & ~torch.isin(labels, values.to(labels.dtype)))
    if len(wrong):
        row = int(wrong[0])
        valid = f"{values.min().item():g} to {values.max().item():g}"
        raise InputError(f"labels, row {row + 1}: {labels[row].item()}: expected one of {valid}, or nothing")
    return sites[0]


class _ConditionedSite(Messenger):
    """Condition one site on labels."""

    def __init__(self, site: str, row_plate: str, labels: Tensor) -> None:
        super().__init__()
        self.site, self.row_plate, self.labels = site, row_plate, labels

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == self.site:
            dim = next(frame.dim for frame in msg["cond_indep_stack"] if frame.name == self.row_plate)
            msg["fn"] = PartlyObserved(msg["fn"], _along(self.labels, dim))


def _along(values: Any, dim: int) -> Any:
    """Reshape one value per row to vary along batch dimension ``dim``, counted from the right."""
    return values.reshape(-1, *[1] * (-dim - 1)) if isinstance(values, Tensor) and values.ndim else values
