"""Make Pyro traceable by disabling value-dependent code, and compare results with Pyro's."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer import traceenum_elbo
from pyro.infer.util import Dice, torch_item
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Distribution, lowrank_multivariate_normal
from torch.overrides import TorchFunctionMode

import pplgen
from pplgen.compiler.random_fills import FILLS
from pplgen.compiler.recording import is_known, name_value, named_source, refusal

__all__ = ["FunctionalFills", "NotTraceable", "require_equal", "traceable"]


class NotTraceable(Exception):
    """A pair cannot be traced faithfully; the message gives the reason in one line."""


_CONVERSIONS = {
    Tensor.__bool__: "bool",
    Tensor.__int__: "int",
    Tensor.__float__: "float",
    Tensor.__index__: "int",
    Tensor.tolist: "list",
    Tensor.numpy: "NumPy array",
    Tensor.__array__: "NumPy array",
    Tensor.__dlpack__: "array",
    Tensor.untyped_storage: "storage",
    Tensor.item: "number",
}
_INTEGERS = {torch.int64, torch.int32, torch.int16, torch.int8}
_LIBRARIES = tuple(str(Path(str(module.__file__)).parent) for module in (torch, pyro, pplgen))
_STORIES = str(Path(str(pplgen.__file__)).parent / "models")


class FunctionalFills(TorchFunctionMode):
    """Replaces in-place random fills by functions, so that ``vmap`` draws separately for each batch element."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace random fills."""
        return FILLS.get(func, func)(*args, **(kwargs or {}))


class _TraceMode(TorchFunctionMode):
    """Keeps values that Pyro converts to numbers as tensors, and rejects branches on values."""

    def __init__(self) -> None:
        super().__init__()
        self.in_dice = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in FILLS:
            return FILLS[func](*args, **kwargs)
        by_library = func in (Tensor.item, Tensor.untyped_storage) and not _called_by_user()
        if func is Tensor.item and by_library and not is_known(args[0]):
            return args[0].detach()
        if self.in_dice:
            # Dice drops terms of probability zero by a mask; here they are set to zero
            if func is Tensor.all:
                return False
            if func is Tensor.masked_select:
                return torch.where(args[1], args[0], 0.0)
        if func is Tensor.__getitem__:
            args = _without_scalar_indices(*args)
        if func in _CONVERSIONS and not by_library and not is_known(args[0]):
            source = named_source(args[0])
            what = f"a tensor computed from {source!r}" if source else "a tensor"
            raise refusal(
                NotTraceable(
                    f"the pair branches on values: it converts {what} to a Python {_CONVERSIONS[func]}{_users_line()}"
                )
            )
        return func(*args, **kwargs)


def _without_scalar_indices(value: Tensor, index: Any) -> tuple[Tensor, Any]:
    """Select by scalar tensors of an index, such as one sampled label, whose values torch would read as numbers."""
    entries = list(index) if isinstance(index, tuple) else [index]
    for axis in reversed(range(len(entries))):
        entry = entries[axis]
        scalar = isinstance(entry, Tensor) and entry.ndim == 0 and entry.dtype in _INTEGERS
        if scalar and all(map(_takes_one_axis, entries[:axis])) and not is_known(entry):
            value = value[(*[slice(None)] * axis, entry.reshape(1))].squeeze(axis)
            del entries[axis]
    return value, tuple(entries) if isinstance(index, tuple) or len(entries) != 1 else index


def _takes_one_axis(entry: Any) -> bool:
    """Whether an entry of an index is for one axis of the tensor."""
    if isinstance(entry, Tensor):
        return entry.dtype in _INTEGERS
    return isinstance(entry, (int, slice)) and not isinstance(entry, bool)


def _called_by_user() -> bool:
    """Whether a function of tensors is called by a model or guide, also by way of Pyro's ``torch_item``."""
    frame: Any = sys._getframe(2)
    while frame.f_code is torch_item.__code__:
        frame = frame.f_back
    return _is_users(frame)


def _is_users(frame: Any) -> bool:
    """Whether a frame is of a model or guide."""
    path = frame.f_code.co_filename
    return path.startswith(_STORIES) or not path.startswith((*_LIBRARIES, "<"))


def _users_line() -> str:
    """Return file and line of the innermost call from a model or guide; empty if there is none."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        if _is_users(frame):
            return f" ({Path(frame.f_code.co_filename).name}, line {frame.f_lineno})"
        frame = frame.f_back
    return ""


class _NamedSites(Messenger):
    """Names the values of latent sites in the graph that is being recorded."""

    def _pyro_post_sample(self, msg: Any) -> None:
        if not msg["is_observed"]:
            name_value(msg["value"], msg["name"])


def _capacitance_tril(W: Tensor, D: Tensor) -> Tensor:
    """Return the Cholesky factor of ``I + W' D^-1 W``; torch adds I in place, which ``vmap`` cannot batch."""
    K = (W.mT / D.unsqueeze(-2)) @ W
    return torch.linalg.cholesky(K + torch.eye(K.shape[-1], dtype=K.dtype, device=K.device))


@contextlib.contextmanager
def traceable() -> Iterator[None]:
    """Make Pyro traceable: no validation, no value-dependent warnings, Dice without data-dependent shapes."""
    mode = _TraceMode()
    originals: list[tuple[Any, str, Any]] = [
        (module, name, getattr(module, name))
        for module_name, module in list(sys.modules.items())
        if module_name.startswith("pyro.") and module is not None
        for name in ("warn_if_nan", "warn_if_inf")
        if name in vars(module)
    ]
    # existing distributions have their own validation setting
    originals.append((Distribution, "_validate_sample", Distribution._validate_sample))
    expectation, common_scale = Dice.compute_expectation, traceenum_elbo._get_common_scale
    capacitance_tril = lowrank_multivariate_normal._batch_capacitance_tril

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
        # Pyro's compares scales by value; it runs unmodified when the graph is compared with Pyro
        traceenum_elbo._get_common_scale = lambda scales: scales[0]
        lowrank_multivariate_normal._batch_capacitance_tril = _capacitance_tril
        with mode, pyro.validation_enabled(False), _NamedSites():
            yield
    finally:
        for module, name, original in originals:
            setattr(module, name, original)
        Dice.compute_expectation, traceenum_elbo._get_common_scale = expectation, common_scale
        lowrank_multivariate_normal._batch_capacitance_tril = capacitance_tril


def require_equal(what: str, ours: Tensor, theirs: Tensor, whose: str = "Pyro's") -> None:
    """Raise ``NotTraceable`` if two results differ by more than the rounding error of a long sum."""
    tolerance = 1e-3 if theirs.dtype == torch.float32 else 1e-8
    reference = theirs.detach().double()
    size = reference.nan_to_num().abs().max().clamp(min=1e-3) if reference.numel() else torch.ones(())
    if not torch.allclose(ours.double(), reference, rtol=0, atol=float(tolerance * size), equal_nan=True):
        difference = float((ours.double() - reference).abs().nan_to_num(torch.inf).max() / size)
        raise NotTraceable(f"the {what} differs from {whose} by {difference:.1e} of its size")
