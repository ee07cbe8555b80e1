"""The contract of a story: a generative model with its guide, named dimensions, prior simulation."""

from __future__ import annotations

import inspect
import json
import math
import operator
import warnings
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from pyro.nn import PyroModule, pyro_method
from torch import Tensor

from pplgen.errors import DataWarning, InputError
from pplgen.story.isolation import copy_pair, kept_generators

__all__ = [
    "DataWarning",
    "InputError",
    "Story",
    "check_choice",
    "check_count",
    "check_per_feature",
    "check_positive",
    "copy_story",
    "pyro_method",
]


class _KeepsGenerators(type(PyroModule)):  # type: ignore[misc]
    """Metaclass of stories: initial values of networks are random, but the caller's generators are not advanced."""

    def __call__(cls, *args: Any, **options: Any) -> Any:
        """Construct a story."""
        with kept_generators():
            return super().__call__(*args, **options)

    @property
    def __signature__(cls) -> inspect.Signature:
        """The constructor's, for ``help``, editors and documentation."""
        own = inspect.signature(cls.__init__)  # type: ignore[misc]
        return own.replace(parameters=list(own.parameters.values())[1:], return_annotation=inspect.Signature.empty)


class Story(PyroModule, metaclass=_KeepsGenerators):
    """A generative model and its guide, as one ``PyroModule``.

    A subclass writes ``model`` and ``guide`` as plain Pyro, each decorated with ``pyro_method``, so that
    ``pyro.infer.SVI(story.model, story.guide, optimiser, loss)`` trains it without any help from this package.

    - ``model(x=None, num_rows=1)``: rows live in ``pyro.plate("data", ...)``; ``None`` in place of the data simulates
      ``num_rows`` rows. Discrete latents carry ``infer={"enumerate": "parallel"}``.
    - ``guide(x=None, num_rows=1)``: the same arguments; every continuous latent of the model, no enumerated one. Where
      no site depends on the rows, ``guide(None)`` draws the globals.
    - The constructor takes sizes and priors as keyword arguments, validates them with the ``check_`` functions of this
      module and passes them to ``super().__init__``, which stores them as ``config``. ``num_features``, where a story
      has it, is the number of data columns; the command line sets it from the data.

    Parameters
    ----------
    **config
        The constructor's arguments, JSON-serialisable: ``type(story)(**story.config)`` is an untrained copy.
    """

    dims: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    """Names of the axes of every sample site and deterministic, by site name. An enumerated site lists its plates and
    then the axis of its categories: ``{"z": ("row", "component")}``."""

    auxiliary: frozenset[str] = frozenset()
    """Sites that are internal coordinates rather than quantities of interest; summary tables omit them."""

    takes_series: ClassVar[bool] = False
    """Whether rows are series of steps, and the data of shape ``(num_series, num_steps, num_features)``."""

    accepts_missing: ClassVar[bool] = False
    """Whether ``model`` marginalises (or masks) NaN in the data."""

    warm_up_weight: Tensor | None = None
    """A scalar buffer of the story that a fit lets rise from zero to one over its first steps; one at other times."""

    takes_labels: ClassVar[bool] = False
    """Whether ``model``, ``guide`` and ``complete`` take an argument ``labels``, -1 for unknown, and condition on it;
    otherwise the toolkit conditions the enumerated latent. Minibatches are then stratified into labelled and unlabelled
    rows."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        _accept_notice(cls)

    def __init__(self, **config: Any) -> None:
        super().__init__()
        try:
            self.config: dict[str, Any] = json.loads(json.dumps(config, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise InputError(f"{type(self).__name__}: options must be plain, finite values: {error}") from None

    def model(self, x: Tensor | None = None, num_rows: int = 1) -> Any:
        """Sample from the generative model, conditioned on ``x`` where given; see the class."""
        raise NotImplementedError(f"{type(self).__name__} has no model")

    def guide(self, x: Tensor | None = None, num_rows: int = 1) -> Any:
        """Sample from the approximate posterior; see the class."""
        raise NotImplementedError(f"{type(self).__name__} has no guide")

    @property
    def constants(self) -> Mapping[str, Tensor]:
        """Constants of the model, such as prior parameters set from the data, by their names in ``dims``."""
        return {}

    @property
    def priors_from_data(self) -> tuple[str, ...]:
        """Options of priors that were not given, so that ``initialise`` takes their constants from the data."""
        return tuple(name for name in self.constants if self.config.get(name, ...) is None)

    def labels(self, columns: Sequence[str]) -> dict[str, list[str]]:
        """Coordinate labels by axis name; by default the columns for each axis of ``dims`` that ends in ``feature``."""
        names = {axis for axes in self.dims.values() for axis in axes}
        return {axis: list(columns) for axis in names if axis.endswith("feature")}

    def check_data(self, x: Tensor) -> None:
        """Raise ``InputError`` if ``x``, shape ``(num_rows, num_features)``, is not valid data for this story.

        Called for training data and for new rows.
        """

    def check_training_data(self, x: Tensor) -> None:
        """Raise ``InputError`` if ``x``, shape ``(num_rows, num_features)``, is insufficient for training."""

    def check_labels(self, labels: Tensor) -> None:
        """Raise ``InputError`` if ``labels``, -1 for unknown, are not valid values of the rows' discrete latent."""
        raise InputError(f"labels: {type(self).__name__} does not accept labels")

    def observe_missing(self, x: Tensor) -> None:
        """Record properties of the rows on which ``model`` depends, such as whether entries are missing.

        Called with all training rows, and with new rows before they are scored.
        """

    def complete(self, x: Tensor) -> Tensor:
        """Draw the missing entries of rows given the observed ones; called with latents conditioned on a draw."""
        raise InputError(f"{type(self).__name__} does not impute missing entries")

    def generated(self, x: Tensor) -> dict[str, Tensor]:
        """Compute or draw generated quantities from latents and rows; called with latents conditioned on a draw.

        They are added to the ``posterior`` group of the ``DataTree`` and to summary tables; ``dims`` names their axes.
        """
        return {}

    def initialise(self, x: Tensor, labels: Tensor | None = None, weights: Tensor | None = None) -> None:
        """Set data-dependent priors and initialise the guide near ``x``, at random from torch's generator.

        ``labels`` holds the values of the rows' discrete latent, -1 for unknown, and ``weights`` their weights, shape
        ``(num_rows,)`` each; ``model`` and ``guide`` need not take either.
        """

    def simulate(self, num_rows: int) -> Tensor:
        """Draw ``num_rows`` rows from the prior predictive distribution, shape ``(num_rows, num_features)``."""
        with torch.no_grad():
            x: Tensor = self.model(None, num_rows=num_rows)
        return x


def _accept_notice(cls: type[Story]) -> None:
    """Let a class that overrides ``observe_missing`` by its former name ``notice`` work, with a ``FutureWarning``."""
    defining = next(base for base in cls.__mro__ if {"notice", "observe_missing"} & vars(base).keys())
    if "observe_missing" in vars(defining):
        return
    warnings.warn(
        f"{cls.__name__}.notice: Story.notice is renamed to observe_missing, and support for the former name will be "
        "removed",
        FutureWarning,
        stacklevel=3,
    )
    setattr(cls, "observe_missing", vars(defining)["notice"])  # noqa: B010
    for base in cls.__mro__[1:]:  # for calls of super().notice(x)
        if "observe_missing" in vars(base) and "notice" not in vars(base):
            setattr(base, "notice", vars(base)["observe_missing"])  # noqa: B010


def copy_story(story: Story, x: Tensor) -> Story:
    """Copy a story to the device and dtype of the rows, and let it record which are missing."""
    copy: Story = copy_pair(story, None)[0]
    copy.to(device=x.device, dtype=x.dtype)
    copy.observe_missing(x)
    return copy


def check_count(name: str, value: Any, minimum: int = 1) -> int:
    """Return ``value`` as an ``int`` of at least ``minimum``, or raise ``InputError`` naming the argument."""
    try:
        count = operator.index(value)
    except TypeError:
        count = minimum - 1
    if isinstance(value, bool) or count < minimum:
        raise InputError(f"{name}={value!r}: expected a whole number of at least {minimum}")
    return count


def check_positive(name: str, value: Any) -> float:
    """Return ``value`` as a positive finite ``float``, or raise ``InputError`` naming the argument."""
    number = _number(value)
    if number is None or number <= 0:
        raise InputError(f"{name}={value!r}: expected a positive, finite number")
    return number


def check_choice(name: str, value: Any, choices: Iterable[str]) -> str:
    """Return ``value`` if it is one of the choices, or raise ``InputError`` listing them."""
    options = list(choices)
    if value not in options:
        raise InputError(f"{name}={value!r}: expected one of {', '.join(options)}")
    return str(value)


def check_per_feature(name: str, value: Any, num_features: int, *, positive: bool = False) -> list[float] | None:
    """Return one finite number per feature from a number or a sequence; ``None`` stays ``None``.

    Raises
    ------
    InputError
        If an entry is not a finite (``positive``: positive) number, or their number is not ``num_features``.
    """
    if value is None:
        return None
    value = value.tolist() if hasattr(value, "tolist") else value
    entries = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value] * num_features
    numbers = [_number(entry) for entry in entries]
    kind = "positive, finite" if positive else "finite"
    if any(number is None or (positive and number <= 0) for number in numbers):
        raise InputError(f"{name}={value!r}: expected one {kind} number, or one per feature")
    if len(numbers) != num_features:
        raise InputError(f"{name}={value!r}: expected one number, or one for each of {num_features} features")
    return [number for number in numbers if number is not None]


def _number(value: Any) -> float | None:
    """Return ``value`` as a finite float, or ``None`` if it is not one."""
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)
