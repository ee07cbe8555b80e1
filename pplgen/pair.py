"""A model and a guide, copied and kept apart from Pyro's global state, with what one run tells about them."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoGuide, AutoNormal
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pplgen.errors import InputError
from pplgen.story import Story

__all__ = ["Pair", "RowScale", "Structure", "seeded"]

ROW_PLATE = "data"


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run with torch, NumPy and Python seeded, and put their generators back afterwards."""
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng():
        pyro.set_rng_seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002


class RowScale(Messenger):
    """Multiply the log density of every site inside the row plate, so that a minibatch stands for all rows."""

    def __init__(self, plate: str, scale: float) -> None:
        super().__init__()
        self.plate, self.scale = plate, scale

    def _pyro_sample(self, msg: Any) -> None:
        if any(frame.name == self.plate for frame in msg["cond_indep_stack"]):
            msg["scale"] = msg["scale"] * self.scale


@dataclass(frozen=True)
class Structure:
    """What one run of a pair on its data shows."""

    plate_depth: int
    """Number of batch dimensions that plates take."""
    row_plate: str | None
    """The plate of the rows: the one called ``data``, else the only one as long as the data; None without either."""
    latent: tuple[str, ...]
    """Latent sites that the guide draws, in its order."""
    enumerated: tuple[str, ...]
    """Discrete latent sites of the model that the guide leaves out; they are summed out."""
    sums: bool
    """Whether any discrete site, of the model or the guide, is summed out."""
    deterministic: tuple[str, ...]
    """Deterministic sites of the model, but for those of single rows that may depend on what is summed out."""
    observed: tuple[str, ...]
    """Observed sites of the model."""
    per_row: frozenset[str]
    """Sites of the model inside the row plate."""


class Pair:
    """A model and a guide with parameters of their own.

    Modules and stories are deep-copied; parameters that live in Pyro's store, or in modules that a function closes
    over, are swapped in by ``isolated`` and out again after it, so that nothing that the caller owns changes. Inside
    it torch's default floating-point type is that of the data, as Pyro's sums over discrete latents need.

    Parameters
    ----------
    model
        A callable of ``*data`` with Pyro primitives.
    guide
        Likewise, over the model's continuous latents; ``None`` for ``AutoNormal``, the model's discrete latents then
        being summed out.
    data
        Arguments of both.
    device
        Where the copied modules go; ``None`` to leave them where they are.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any] | None,
        data: tuple[Any, ...],
        device: torch.device | None = None,
    ) -> None:
        self._store: dict[str, Any] = {"params": {}, "constraints": {}}
        self._borrowed: dict[nn.Parameter, Tensor] = {}
        self.data = data
        floating = (value.dtype for value in data if isinstance(value, Tensor) and value.is_floating_point())
        self._dtype = next(floating, torch.get_default_dtype())
        self.model, self.guide = _copied(model, guide)
        for module in _modules(self.model, self.guide):
            module.to(device)
        if self.guide is None:
            with self._own_store(), torch.no_grad():
                self.model, self.guide = _with_auto_normal(self.model, data)
        self.structure = self._first_run()

    @contextlib.contextmanager
    def isolated(self) -> Iterator[None]:
        """Give the pair its own parameter store, and its own values for the modules that it only borrows."""
        with self._own_store():
            lent = {parameter: parameter.detach().clone() for parameter in self._borrowed}
            _copy_into(self._borrowed)
            try:
                yield
            finally:
                self._borrowed = {parameter: parameter.detach().clone() for parameter in lent}
                _copy_into(lent)

    @property
    def story(self) -> Story | None:
        """The pair's own, trained copy of the story whose methods it runs, or ``None`` for a bare pair."""
        owner = getattr(self.model, "__self__", None)
        return owner if isinstance(owner, Story) else None

    def elbo(self) -> ELBO:
        """Return the bound that suits the pair: discrete latents summed out where there are any."""
        if self.structure.sums:
            return TraceEnum_ELBO(max_plate_nesting=self.structure.plate_depth)
        return Trace_ELBO(max_plate_nesting=self.structure.plate_depth)

    def snapshot(self) -> dict[str, Tensor]:
        """Copy the unconstrained parameters by name, on their device; call it inside ``isolated``."""
        return {name: value.detach().clone() for name, value in pyro.get_param_store().named_parameters()}

    def restore(self, values: dict[str, Tensor]) -> None:
        """Set the unconstrained parameters from a ``snapshot``; call it inside ``isolated``.

        Raises
        ------
        InputError
            Where names or shapes are not those of this pair.
        """
        parameters = dict(pyro.get_param_store().named_parameters())
        shapes = {name: tuple(value.shape) for name, value in parameters.items()}
        given = {name: tuple(value.shape) for name, value in values.items()}
        if shapes != given:
            name = min(set(shapes.items()) ^ set(given.items()))[0]
            raise InputError(
                f"parameter {name!r} has shape {given.get(name, 'none')}, where {shapes.get(name, 'none')} was expected"
            )
        for name, parameter in parameters.items():
            parameter.data.copy_(values[name])

    @contextlib.contextmanager
    def _own_store(self) -> Iterator[None]:
        """Swap in the pair's parameter store and floating-point type."""
        default = torch.get_default_dtype()
        with pyro.get_param_store().scope(self._store):
            torch.set_default_dtype(self._dtype)
            try:
                yield
            finally:
                torch.set_default_dtype(default)

    def _first_run(self) -> Structure:
        """Create lazy parameters, note the modules that are only borrowed, and look at the sites."""
        with self._own_store(), torch.no_grad():
            guide_trace = poutine.trace(self.guide).get_trace(*self.data)
            model_trace = poutine.trace(poutine.replay(self.model, guide_trace)).get_trace(*self.data)
            stored = [value for _, value in pyro.get_param_store().named_parameters()]
        modules = _modules(self.model, self.guide)
        owned = {id(parameter) for module in modules for parameter in module.parameters()}
        for parameter in stored:
            if isinstance(parameter, nn.Parameter) and id(parameter) not in owned:
                self._borrowed[parameter] = parameter.detach().clone()
        return _inspect(guide_trace, model_trace, self.data)


def _copied(model: Any, guide: Any) -> tuple[Any, Any]:
    """Copy a model and a guide together, for they may share modules."""
    automatic = [part for module in _modules(model, guide) for part in module.modules() if isinstance(part, AutoGuide)]
    held = [(part, part._model, part.master) for part in automatic]
    copies: dict[int, Any] = {}
    own_model, own_guide = copy.deepcopy(model, copies), copy.deepcopy(guide, copies)
    for part, wrapped, master in held:
        # being copied empties an AutoGuide of its model, and its copy with it
        part._model, part.master = wrapped, master
        copies[id(part)]._model = (copy.deepcopy(wrapped[0], copies),)
    return own_model, own_guide


def _modules(*parts: Any) -> list[nn.Module]:
    """Return the modules among callables, bound methods counting as the module that they are bound to."""
    owners = [getattr(part, "__self__", part) for part in parts]
    return [owner for owner in owners if isinstance(owner, nn.Module)]


def _copy_into(values: dict[nn.Parameter, Tensor]) -> None:
    """Overwrite parameters in place."""
    for parameter, value in values.items():
        parameter.data.copy_(value)


def _with_auto_normal(
    model: Callable[..., Any], data: tuple[Any, ...]
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Mark the model's discrete latents for enumeration and give it a mean-field normal guide over the others."""
    trace = poutine.trace(model).get_trace(*data)
    nodes = {name: trace.nodes[name] for name in trace.stochastic_nodes}
    latent = {name: node["fn"] for name, node in nodes.items() if not poutine.util.site_is_subsample(node)}
    discrete = [name for name, fn in latent.items() if not fn.has_rsample and fn.support.is_discrete]
    for name in discrete:
        if not latent[name].has_enumerate_support:
            kind = type(latent[name]).__name__
            raise InputError(f"latent site {name!r} is {kind}, which cannot be summed out; give a guide for it")
    if discrete:
        model = config_enumerate(model, default="parallel")
    if len(discrete) == len(latent):
        raise InputError("the model has no continuous latent site, so there is nothing to fit; give a guide")
    return model, AutoNormal(poutine.block(model, hide=discrete))


def _inspect(guide_trace: poutine.Trace, model_trace: poutine.Trace, data: tuple[Any, ...]) -> Structure:
    """Sort the sites of a run by their part in inference."""
    sites = {name: node for name, node in model_trace.nodes.items() if node["type"] == "sample"}
    sites = {name: node for name, node in sites.items() if not poutine.util.site_is_subsample(node)}
    deterministic = tuple(name for name, node in sites.items() if node["infer"].get("_deterministic"))
    observed = tuple(name for name, node in sites.items() if node["is_observed"] and name not in deterministic)
    latent = tuple(name for name in guide_trace.stochastic_nodes if name in sites)
    enumerated = tuple(name for name in sites if name not in {*deterministic, *observed, *latent})
    for name in enumerated:
        if sites[name]["infer"].get("enumerate") != "parallel":
            raise InputError(
                f"site {name!r} is in the model but not in the guide; add it there, or mark it "
                "infer={'enumerate': 'parallel'} if it is discrete"
            )
    frames = {frame for node in sites.values() for frame in node["cond_indep_stack"] if frame.vectorized}
    lengths = {frame.name: frame.size for frame in frames}
    rows = len(data[0]) if data and isinstance(data[0], Tensor) and data[0].ndim else None
    as_long = [name for name, length in lengths.items() if length == rows]
    row_plate = ROW_PLATE if ROW_PLATE in lengths else as_long[0] if len(as_long) == 1 else None
    per_row = frozenset(
        name for name, node in sites.items() if any(f.name == row_plate for f in node["cond_indep_stack"])
    )
    return Structure(
        plate_depth=max((-frame.dim for frame in frames), default=0),
        row_plate=row_plate,
        latent=latent,
        enumerated=enumerated,
        sums=bool(enumerated) or any(guide_trace.nodes[name]["infer"].get("enumerate") for name in latent),
        deterministic=tuple(name for name in deterministic if not (enumerated and name in per_row)),
        observed=observed,
        per_row=per_row,
    )
