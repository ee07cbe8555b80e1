"""First-order optimisers: update rules, learning rates by parameter, schedules; or the user's own."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro.optim import PyroOptim
from pyro.params.param_store import normalize_param_name
from torch import Tensor

from pplgen.errors import InputError
from pplgen.inference.convergence import WINDOW
from pplgen.story.base import check_choice, check_positive

__all__ = ["LearningRate", "Optimiser", "Rule", "Schedule", "ScheduledOptim", "read_optimiser"]

LearningRate = float | Mapping[str, float] | Callable[[str], float]
"""Initial learning rate; or rates by parameter name, as a mapping or a function."""
Schedule = Callable[[int], float]
"""Factor on the learning rates of a step, counted from 1."""
DEFAULT_RATE = 0.02
RULES: dict[str, dict[str, Any]] = {
    "adam": {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0},
    "adamw": {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01},
    "sgd": {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0},
}
"""Options of each update rule and their defaults, those of torch."""
CONSTRUCTORS: dict[str, Any] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}


@dataclass(frozen=True)
class Rule:
    """An update rule: Adam (Kingma and Ba 2015), AdamW (Loshchilov and Hutter 2019), or SGD, as in torch."""

    name: str = "adam"
    options: Mapping[str, Any] = field(default_factory=lambda: RULES["adam"])

    @classmethod
    def of(cls, given: str | Mapping[str, Any]) -> Rule:
        """Read a name, or a mapping with the key ``name`` and options of the rule.

        Raises
        ------
        InputError
            If the name or an option is unknown or out of range.
        """
        options = dict(given) if isinstance(given, Mapping) else {"name": given}
        name = check_choice("optimiser's name", options.pop("name", None), RULES)
        if unknown := options.keys() - RULES[name].keys():
            raise InputError(f"optimiser: {name} has no option {min(unknown)!r}; expected among {list(RULES[name])}")
        rule = cls(name, {**RULES[name], **options})
        try:  # torch checks the ranges
            CONSTRUCTORS[name]([torch.zeros(1)], lr=1.0, **rule.options)
        except (TypeError, ValueError) as error:
            raise InputError(f"optimiser: {name} with {options}: {error}") from error
        return rule

    def moved(
        self, vectors: Tensor, gradients: Tensor, rates: Tensor, moments: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return updated vectors, first and second moments of the gradient, shape ``(R, P)`` each.

        Parameters
        ----------
        vectors, gradients
            Parameters, and gradients of the loss, shape ``(R, P)``.
        rates
            Learning rates, of a shape that broadcasts to ``(R, P)``.
        moments
            First and second moment, and the number of steps over which they were taken, this one included.
        """
        mean, square, since = moments
        decay = self.options["weight_decay"]
        if decay and self.name != "adamw":
            gradients = gradients + decay * vectors
        first, second = self.options.get("betas", (0.9, 0.999))
        square = second * square + (1 - second) * gradients * gradients
        if self.name == "sgd":
            mean = self.options["momentum"] * mean + gradients
            direction = gradients + self.options["momentum"] * mean if self.options["nesterov"] else mean
        else:
            mean = first * mean + (1 - first) * gradients
            direction = mean / (1 - first**since) / ((square / (1 - second**since)).sqrt() + self.options["eps"])
        if decay and self.name == "adamw":
            direction = direction + decay * vectors
        return vectors - rates * direction, mean, square


@dataclass(frozen=True)
class Optimiser:
    """A first-order optimiser with gradient clipping and a schedule of learning rates."""

    learning_rate: LearningRate = DEFAULT_RATE
    """Initial learning rate; parameters that a mapping does not name have the default one."""
    clip: float | None = None
    """Clip gradient entries at this absolute value; ``None``: off."""
    decay: float | Schedule = 1.0
    """Factor on the learning rates per step, or a schedule."""
    patience: int = WINDOW
    """Steps per average of the ELBO when plateaus are detected."""
    rule: Rule = field(default_factory=Rule)
    alone: bool = False
    """Whether L-BFGS over fixed draws does not follow where it applies."""
    own: PyroOptim | None = None
    """The user's optimiser, used instead of all above but ``patience``."""

    @property
    def base_rate(self) -> float:
        """Learning rate that is reported, and of parameters without one of their own."""
        return self.learning_rate if isinstance(self.learning_rate, float | int) else DEFAULT_RATE

    def relative_rate(self, name: str) -> float:
        """Return the learning rate of a parameter relative to ``base_rate``."""
        if isinstance(self.learning_rate, float | int):
            return 1.0
        name = normalize_param_name(name)
        mapped = isinstance(self.learning_rate, Mapping)
        rate: Any = self.learning_rate.get(name, DEFAULT_RATE) if mapped else self.learning_rate(name)  # type: ignore[union-attr, operator]
        return _number(f"learning_rate of {name!r}", rate) / DEFAULT_RATE

    def factor(self, step: int) -> float:
        """Return the factor on the learning rates of a step, counted from 1.

        Raises
        ------
        InputError
            If the schedule returns anything but a finite number of at least 0.
        """
        if not callable(self.decay):
            return float(self.decay**step)
        return _number(f"decay: at step {step} the schedule", self.decay(step))

    def check_names(self, names: Sequence[str]) -> None:
        """Raise ``InputError`` if a learning rate is of no parameter, or not a finite number of at least 0."""
        names = [normalize_param_name(name) for name in names]
        if isinstance(self.learning_rate, Mapping) and (unknown := self.learning_rate.keys() - set(names)):
            raise InputError(f"learning_rate: {min(unknown)!r} is not a parameter; expected among {sorted(names)}")
        for name in names:
            self.relative_rate(name)

    def facts(self, names: Sequence[str]) -> dict[str, Any]:
        """Return what identifies the optimiser of some parameters; a schedule by its values at some steps."""
        schedule = [self.factor(step) for step in (1, 10, 100, 1000, 10_000)]
        rates = [self.base_rate * self.relative_rate(name) for name in names]
        return {**vars(self), "rule": vars(self.rule), "decay": schedule, "learning_rate": rates}

    def for_pyro(self) -> PyroOptim:
        """Return a new Pyro optimiser."""
        if self.own is not None:
            return copy.deepcopy(self.own)
        return ScheduledOptim(self)


class ScheduledOptim(PyroOptim):
    """An ``Optimiser`` for ``pyro.infer.SVI``."""

    def __init__(self, optimiser: Optimiser) -> None:
        self.optimiser = optimiser
        self.taken = 0
        """Steps taken."""
        self.stage = 1.0
        """Factor on all learning rates in addition to the schedule's."""
        clip = {} if optimiser.clip is None else {"clip_value": optimiser.clip}
        options = dict(optimiser.rule.options)
        super().__init__(CONSTRUCTORS[optimiser.rule.name], lambda _: {**options, "lr": 0.0}, clip)

    def __call__(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Take a step for each parameter."""
        params, store = list(params), pyro.get_param_store()
        self.taken += 1
        for parameter in params:
            if parameter not in self.optim_objs:
                self.optim_objs[parameter] = self._get_optim(parameter)
                self.grad_clip[parameter] = self._get_grad_clip(parameter)
            relative = self.optimiser.relative_rate(store.param_name(parameter))
            for group in self.optim_objs[parameter].param_groups:
                group["lr"] = self.rate * self.optimiser.factor(self.taken) * relative
        super().__call__(params, *args, **kwargs)

    @property
    def rate(self) -> float:
        """Current learning rate, without the schedule's factor."""
        return self.optimiser.base_rate * self.stage


def read_optimiser(call: Mapping[str, Any]) -> str | Mapping[str, Any] | PyroOptim:
    """Validate the options ``optimiser``, ``learning_rate``, ``clip`` and ``decay`` of a call.

    Returns
    -------
    str, mapping or PyroOptim
        ``"auto"``, an update rule with options, or a copy of the user's optimiser, of torch or Pyro.

    Raises
    ------
    InputError
        If an option is invalid, or does not apply to the user's optimiser.
    """
    given, rate, clip, decay = (call[name] for name in ("optimiser", "learning_rate", "clip", "decay"))
    if isinstance(given, PyroOptim | torch.optim.Optimizer):
        other = {"learning_rate": rate != DEFAULT_RATE, "clip": clip is not None, "decay": decay != 1.0}
        if changed := [name for name, value in other.items() if value]:
            raise InputError(f"{changed[0]}: optimiser is an object with options; set it in the object")
        return _users_optimiser(given)
    if isinstance(given, Mapping):
        Rule.of(given)
    else:
        _check_name(given)
    if not (isinstance(rate, Mapping) or callable(rate)):
        check_positive("learning_rate", rate)
    if clip is not None:
        check_positive("clip", clip)
    if not callable(decay) and check_positive("decay", decay) > 1:
        raise InputError(f"decay={decay!r}: expected a number above 0 and at most 1, or a function of the step")
    return given if isinstance(given, str) else dict(given)


def _check_name(given: Any) -> None:
    """Raise ``InputError`` unless an optimiser is named."""
    if isinstance(given, str):
        check_choice("optimiser", given, ("auto", *RULES))
        return
    raise InputError(
        f"optimiser: expected a name, a mapping with the name and options, or an object of pyro.optim or torch.optim "
        f"with its options, not {given!r}"
    )


def _number(what: str, value: Any) -> float:
    """Return a finite number of at least 0, or raise ``InputError``."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number < math.inf:
        raise InputError(f"{what} is {value!r}; expected a finite number of at least 0")
    return number


def _users_optimiser(given: PyroOptim | torch.optim.Optimizer) -> PyroOptim:
    """Return a Pyro optimiser like the user's.

    Raises
    ------
    InputError
        If it has several groups of parameters, or evaluates the loss itself.
    """
    constructor = getattr(given, "pt_optim_constructor", type(given))
    if isinstance(constructor, type) and issubclass(constructor, torch.optim.LBFGS):
        raise InputError("optimiser: L-BFGS needs a loss without noise; optimiser='auto' runs it over fixed draws")
    if isinstance(given, PyroOptim):
        return copy.deepcopy(given)
    if len(given.param_groups) > 1:
        raise InputError(
            f"optimiser: {type(given).__name__} has {len(given.param_groups)} groups of parameters, which are not "
            "those of the fit; expected a pyro.optim object, whose options may be a function of the parameter's name"
        )
    options = {name: value for name, value in given.param_groups[0].items() if name != "params"}
    parameters = inspect.signature(type(given)).parameters
    if not any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        options = {name: value for name, value in options.items() if name in parameters}
    return PyroOptim(type(given), options)
