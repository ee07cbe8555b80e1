"""Locate the operation in the backward pass whose gradient is not finite."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["first_nonfinite_gradient"]


def first_nonfinite_gradient(total: Tensor, parameters: list[Tensor]) -> tuple[str, Tensor]:
    """Return the first operation of the backward pass with finite incoming but non-finite outgoing gradient."""
    faults: list[tuple[str, Tensor]] = []
    handles = []

    def hook(name: str) -> Any:
        def inspect(inputs: Any, outputs: Any) -> None:
            incoming = [each for each in outputs if each is not None]
            non_finite = [each for each in inputs if each is not None and not bool(each.isfinite().all())]
            if non_finite and not faults and all(bool(each.isfinite().all()) for each in incoming):
                faults.append((name, non_finite[0].detach()))

        return inspect

    queue, visited = [total.grad_fn], set()
    while queue:
        node = queue.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        name = node.name().partition("Backward")[0].rpartition("::")[2].lower()
        handles.append(node.register_hook(hook(name)))
        queue.extend(parent for parent, _ in node.next_functions)
    try:
        gradients = torch.autograd.grad(total, parameters, retain_graph=True, allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    non_finite = [each for each in gradients if each is not None and not bool(each.isfinite().all())]
    return faults[0] if faults else ("its sum", non_finite[0])
