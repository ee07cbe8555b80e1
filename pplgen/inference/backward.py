"""Where a gradient goes wrong on its way back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["first_bad"]


def first_bad(total: Tensor, parameters: list[Tensor]) -> tuple[str, Tensor]:
    """Find the first operation on the way back whose gradient is not finite though what came in was."""
    found: list[tuple[str, Tensor]] = []
    handles = []

    def hook(name: str) -> Any:
        def look(inputs: Any, outputs: Any) -> None:
            came = [each for each in outputs if each is not None]
            left = [each for each in inputs if each is not None and not bool(each.isfinite().all())]
            if left and not found and all(bool(each.isfinite().all()) for each in came):
                found.append((name, left[0].detach()))

        return look

    waiting, seen = [total.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        name = node.name().partition("Backward")[0].rpartition("::")[2].lower()
        handles.append(node.register_hook(hook(name)))
        waiting.extend(following for following, _ in node.next_functions)
    try:
        gradients = torch.autograd.grad(total, parameters, retain_graph=True, allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    bad = [each for each in gradients if each is not None and not bool(each.isfinite().all())]
    return found[0] if found else ("its sum", bad[0])
