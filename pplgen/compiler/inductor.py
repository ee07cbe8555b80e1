"""Compilation of a graph by TorchInductor."""

from __future__ import annotations

import contextlib
import getpass
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pplgen.errors import DataWarning, first_line

__all__ = ["compile_graph", "compiling_repays", "use_writable_cache", "why_not_compiled"]

MIN_SECONDS = 30.0
"""Minimum expected run time of the uncompiled graph, in seconds, for which it is compiled."""
SECONDS_PER_NODE = 0.05
"""The same per node of the graph: a graph of thousands of nodes takes minutes to compile."""


@contextlib.contextmanager
def _ignore_torch_warnings() -> Iterator[None]:
    """Suppress deprecation warnings that torch's compiler raises about torch itself."""
    with warnings.catch_warnings():
        for category in (FutureWarning, DeprecationWarning):
            warnings.filterwarnings("ignore", category=category, module="torch")
        yield


def use_writable_cache() -> None:
    """Use a temporary cache of compiled code if torch's directory, which its optimisers need too, cannot be written."""
    name = "TORCHINDUCTOR_CACHE_DIR"
    directory = Path(os.environ.get(name) or Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        os.environ[name] = tempfile.mkdtemp(prefix="torchinductor_")
        message = (
            f"compiled code is cached in {os.environ[name]!r}, because {str(directory)!r} cannot be written: {error}"
        )
        warnings.warn(message, DataWarning, stacklevel=2)


def compile_graph(
    module: Any, arguments: tuple[Tensor, ...], *, cpp_wrapper: bool = False, cudagraphs: bool = True
) -> Any:
    """Compile a graph for inputs of these shapes; compiled code is cached on disk.

    ``cudagraphs=False`` is for graphs that communicate between processes. With ``cpp_wrapper`` the kernel launches are
    compiled as well, which takes longer and pays off if a call takes a fraction of a millisecond, such as one
    likelihood; the engine already takes many steps per call.
    """
    with _ignore_torch_warnings(), torch.no_grad():
        from torch._guards import TracingContext, tracing
        from torch._inductor import compile_fx, config
        from torch._subclasses import FakeTensorMode
        from torch.fx.experimental.symbolic_shapes import ShapeEnv

        cudagraphs = arguments[0].is_cuda and cudagraphs
        # random numbers come from torch's generator, so that compiled and traced steps draw the same numbers
        options: dict[str, Any] = {"fallback_random": True, "triton.cudagraphs": cudagraphs, "cpp_wrapper": cpp_wrapper}
        if hasattr(config, "reorder_for_peak_memory"):  # before torch 2.13 it reorders random numbers
            options["reorder_for_peak_memory"] = False
        # the cache on disk is used only if a tracing context has the shapes
        with config.patch(options), tracing(TracingContext(FakeTensorMode(shape_env=ShapeEnv()))):
            return compile_fx.compile_fx(module, list(arguments))


def compiling_repays(seconds: float, num_nodes: int) -> bool:
    """Whether an uncompiled graph of ``num_nodes`` would run for so long, in seconds, that compiling it is faster."""
    return seconds > max(MIN_SECONDS, SECONDS_PER_NODE * num_nodes)


def why_not_compiled() -> str | None:
    """Return the reason why graphs cannot be compiled; ``None`` if they can."""
    try:
        with _ignore_torch_warnings():
            from torch._inductor.cpp_builder import get_cpp_compiler

            get_cpp_compiler()
    except Exception as error:
        return (
            f"graphs cannot be compiled here, so the uncompiled graph runs: {type(error).__name__}: {first_line(error)}"
        )
    return None
