"""Parallel prefix scan of an associative operation, in a logarithmic number of rounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["Elements", "associative_scan"]

Elements = tuple[Tensor, ...]
"""Elements of a scan: tensors with a common time axis."""


def associative_scan(
    combine: Callable[[Elements, Elements], Elements], elements: Elements, *, dim: int, reverse: bool = False
) -> Elements:
    """Compute the products of all prefixes of a sequence, or of all suffixes.

    Adjacent elements are combined in pairs, the pairs' prefixes are computed recursively, and one more round computes
    the steps between: about 2 T combinations in 2 log2 T rounds (Blelloch 1990, Prefix sums and their applications).

    Parameters
    ----------
    combine
        The operation, ``combine(earlier, later)``, on many pairs at once: the time axis of both is a batch axis.
    elements
        Tensors with a time axis of length T >= 1; other axes may differ, and ``combine`` must preserve them.
    dim
        The time axis, as a negative index.
    reverse
        Combine suffixes instead: step t holds ``e_t e_{t+1} ... e_T``, in time order.

    Returns
    -------
    Elements
        Shapes as ``elements``; step t holds ``e_1 e_2 ... e_t``.
    """
    if reverse:
        reversed_products = associative_scan(
            lambda later, earlier: combine(earlier, later), _flip(elements, dim), dim=dim
        )
        return _flip(reversed_products, dim)
    num_steps = elements[0].shape[dim]
    if num_steps == 1:
        return elements
    pairs = combine(_steps(elements, slice(0, num_steps - 1, 2), dim), _steps(elements, slice(1, None, 2), dim))
    odd_products = associative_scan(combine, pairs, dim=dim)
    first = _steps(elements, slice(0, 1), dim)
    if num_steps == 2:
        return _concatenate(first, odd_products, dim)
    between = combine(
        _steps(odd_products, slice(0, (num_steps - 1) // 2), dim), _steps(elements, slice(2, None, 2), dim)
    )
    return _interleave(_concatenate(first, between, dim), odd_products, dim)


def _steps(elements: Elements, steps: slice, dim: int) -> Elements:
    index: tuple[Any, ...] = (..., steps, *(slice(None),) * (-1 - dim))
    return tuple(element[index] for element in elements)


def _flip(elements: Elements, dim: int) -> Elements:
    return tuple(element.flip(dim) for element in elements)


def _concatenate(head: Elements, tail: Elements, dim: int) -> Elements:
    return tuple(torch.cat(pair, dim) for pair in zip(head, tail, strict=True))


def _interleave(even: Elements, odd: Elements, dim: int) -> Elements:
    """Interleave two sequences, ``even`` first; it may be one step longer."""
    num_pairs = odd[0].shape[dim]
    interleaved = tuple(
        torch.stack(pair, dim).flatten(dim - 1, dim)
        for pair in zip(_steps(even, slice(0, num_pairs), dim), odd, strict=True)
    )
    return _concatenate(interleaved, _steps(even, slice(num_pairs, None), dim), dim)
