"""Making Pyro traceable: ``make_fx`` without what depends on values, and the proof that nothing else was lost."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import torch
from pyro.infer import traceenum_elbo
from pyro.infer.util import Dice
from torch import Tensor, fx
from torch._guards import TracingContext, tracing
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.distributions import Distribution
from torch.fx.experimental import proxy_tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

__all__ = ["FreshFills", "NotTraceable", "operations_of", "require_equal", "traceable"]


class NotTraceable(Exception):
    """Why a pair cannot be traced faithfully, in one line."""


def operations_of(function: Callable[..., Any], *inputs: Tensor) -> fx.GraphModule:
    """Run a function once and return the ATen operations that it ran, as a graph of its inputs."""
    with _shapes_alone():
        return make_fx(function)(*inputs)


@contextlib.contextmanager
def _shapes_alone() -> Iterator[None]:
    """Let ``make_fx`` note of each node a tensor without entries, made directly.

    It makes them itself through the dispatcher, under a mode of its own for every node, which takes half of its time.
    """
    mode, torchs = FakeTensorMode(), vars(proxy_tensor)
    original = torchs["extract_val"]

    def extract_val(value: Any, include_real: bool = False) -> Any:
        if type(value) is not Tensor or value.layout is not torch.strided:
            return original(value, include_real)
        like = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
        return FakeTensor(mode, like, value.device)

    torchs["extract_val"] = extract_val
    try:
        with tracing(TracingContext(mode)):
            yield
    finally:
        torchs["extract_val"] = original


_FILLS: dict[Any, Callable[..., Tensor]] = {
    Tensor.normal_: lambda x, mean=0.0, std=1.0, **_: torch.randn_like(x) * std + mean,
    Tensor.uniform_: lambda x, low=0.0, high=1.0, **_: torch.rand_like(x) * (high - low) + low,
    Tensor.exponential_: lambda x, rate=1.0, **_: torch.ops.aten.exponential(x, rate),
    Tensor.bernoulli_: lambda x, p=0.5, **_: torch.ops.aten.bernoulli.p(x, p),
    Tensor.cauchy_: lambda x, median=0.0, sigma=1.0, **_: torch.ops.aten.cauchy(x, median, sigma),
}
"""In-place random fills of fresh tensors, which a batch of parameter sets could not share, as functions."""

_DECISIONS = {Tensor.__bool__: "bool", Tensor.__int__: "int", Tensor.__float__: "float", Tensor.__index__: "int"}


class FreshFills(TorchFunctionMode):
    """Turns in-place random fills into functions, so that ``vmap`` can draw for each of a batch."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace the fills alone."""
        return _FILLS.get(func, func)(*args, **(kwargs or {}))


class _TraceMode(TorchFunctionMode):
    """Keeps as tensors what Pyro turns into numbers, and refuses decisions that would be baked into the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.in_dice = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _FILLS:
            return _FILLS[func](*args, **kwargs)
        if func is Tensor.item:
            return args[0].detach()
        if self.in_dice:
            # Dice drops terms of probability zero by a mask; here they stay, as zeros
            if func is Tensor.all:
                return False
            if func is Tensor.masked_select:
                return torch.where(args[1], args[0], 0.0)
        if func in _DECISIONS:
            raise NotTraceable(f"it turns a tensor into a Python {_DECISIONS[func]}, and so branches on values")
        return func(*args, **kwargs)


@contextlib.contextmanager
def traceable() -> Iterator[None]:
    """Make Pyro traceable: no validation, no warnings that look at values, Dice without data-dependent shapes."""
    mode = _TraceMode()
    originals: list[tuple[Any, str, Any]] = [
        (module, name, getattr(module, name))
        for module_name, module in list(sys.modules.items())
        if module_name.startswith("pyro.") and module is not None
        for name in ("warn_if_nan", "warn_if_inf")
        if name in vars(module)
    ]
    # a distribution that was made before keeps its own setting of validation
    originals.append((Distribution, "_validate_sample", Distribution._validate_sample))
    expectation, common_scale = Dice.compute_expectation, traceenum_elbo._get_common_scale

    def compute_expectation(self: Dice, costs: Any) -> Any:
        mode.in_dice = True
        try:
            return expectation(self, costs)
        finally:
            mode.in_dice = False

    try:
        for module, name, _ in originals:
            setattr(module, name, lambda value, *args, **kwargs: value)
        Dice.compute_expectation = compute_expectation
        # compares scales by value, as it does once more where the graph is held against Pyro
        traceenum_elbo._get_common_scale = lambda scales: scales[0]
        with mode, pyro.validation_enabled(False):
            yield
    finally:
        for module, name, original in originals:
            setattr(module, name, original)
        Dice.compute_expectation, traceenum_elbo._get_common_scale = expectation, common_scale


def require_equal(what: str, ours: Tensor, theirs: Tensor, whose: str = "Pyro's") -> None:
    """Raise ``NotTraceable`` where two results differ by more than the rounding of a long sum."""
    tolerance = 1e-3 if theirs.dtype == torch.float32 else 1e-8
    reference = theirs.detach().double()
    size = reference.nan_to_num().abs().max().clamp(min=1e-3) if reference.numel() else torch.ones(())
    if not torch.allclose(ours.double(), reference, rtol=0, atol=float(tolerance * size), equal_nan=True):
        difference = float((ours.double() - reference).abs().nan_to_num(torch.inf).max() / size)
        raise NotTraceable(f"the {what} differs from {whose} by {difference:.1e} of its size")
