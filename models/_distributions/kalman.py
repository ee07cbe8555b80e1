"""The Kalman filter in parallel over time, and the derivatives of what it says.

The covariances of the states given the past do not depend on the values seen. They come first, from maps between
filtered covariances a step apart, and two, and four (Särkkä and García-Fernández 2021, Temporal parallelization of
Bayesian smoothers, IEEE Transactions on Automatic Control 66, 299-306); complete series share them, and all maps of one
length are then the same. With the gains the means are a linear recursion, ``m_{t+1} = F_t m_t + g_t``, summed up in
log2 T rounds.

A matrix has the axes ``(rows, columns, series, steps)``, the last two of length one where it is constant; products of
small ones are then sums of whole series, which a compiler fuses.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pplgen.story.dynamics import LinearGaussian

SMALL = 8
"""Length of sums below which products are written out."""


class Step(NamedTuple):
    """One step of the filter, from what is known of ``x_t`` before ``y_t`` is."""

    log_density: Tensor
    """``log p(y_t | y_1:t-1)``, shape ``(series, steps)``."""
    mean: Tensor
    """``E[x_{t+1} | y_1:t]``."""
    covariance: Tensor
    """``Cov[x_{t+1} | y_1:t]``."""
    pull: Tensor
    """``C' S^-1 v``, the derivative of the log density in the mean."""
    information: Tensor
    """``C' S^-1 C``."""
    F: Tensor
    """``A - A P C' S^-1 C``, the derivative of the next mean in this."""


def one_step(y: Tensor, m: Tensor, P: Tensor, parts: LinearGaussian) -> Step:
    """Take one step of the filter at all times."""
    _, _, A, b, Q, C, d, R = parts
    across = _times(C, P)
    precision, log_volume = _inverse(_times(across, transposed(C)) + R)
    v = y - _times(C, m) - d
    whitened, back = _times(precision, v), _times(transposed(C), precision)
    pull, information = _times(transposed(C), whitened), _times(back, C)
    AP = _times(A, P)
    F = A - _times(AP, information)
    density = -0.5 * ((v * whitened).sum((0, 1)) + log_volume + len(y) * math.log(2 * math.pi))
    return Step(density, _times(A, m) + b + _times(AP, pull), _times(AP, transposed(F)) + Q, pull, information, F)


def predicted(y: Tensor, parts: LinearGaussian) -> tuple[Tensor, Tensor, Step, list[Tensor]]:
    """Return mean and covariance of each state given what came before, the steps from there, and products of F."""
    m0, S0, A, _, Q, C, _, R = parts
    T = y.shape[-1]
    first, later = slice(None, 1), slice(1, None)
    P = S0
    if T > 1:
        # filtered covariances: that of the first step, and maps p(x_t | x_{t-1}, y_t) with p(y_t | x_{t-1})
        filtered = _update(S0, _at(C, first), _at(R, first))[0]
        spread, gain, precision = _update(Q, _at(C, later), _at(R, later))
        CA = _times(_at(C, later), A)
        maps = (A - _times(gain, CA), spread, _times(_times(transposed(CA), precision), CA))
        filtered = _covariances(filtered, maps, T - 1)[..., :-1]
        later_P = _times(_times(A, filtered), transposed(A)) + Q
        P = torch.cat([S0.expand(*later_P.shape[:-1], 1), later_P], -1)
    # the means' recursion is affine: its constant is what a step makes of zero, less the gain of the prediction
    step = one_step(y, torch.zeros_like(m0), P, parts)
    products = _products(step.F)
    starts = m0.expand(*m0.shape[:2], y.shape[-2], 1)
    m = torch.cat([starts, step.mean[..., :-1]], -1)
    stride = 1
    for product in products:
        moved = m[..., stride:] + _times(product, m[..., :-stride])
        m, stride = torch.cat([m[..., :stride], moved], -1), 2 * stride
    return m, P, one_step(y, m, P, parts), products


def adjoints(step: Step, products: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the derivatives of ``log p(y)`` in each step's predicted mean and covariance."""
    pull, N, stride = step.pull, step.information, 1
    for product in products:
        back = transposed(product)
        pulled = pull[..., :-stride] + _times(back, pull[..., stride:])
        informed = N[..., :-stride] + _times(_times(back, N[..., stride:]), product)
        pull = torch.cat([pulled, pull[..., -stride:]], -1)
        N, stride = torch.cat([informed, N[..., -stride:]], -1), 2 * stride
    return pull, (_times(pull, transposed(pull)) - N) / 2


def _products(F: Tensor) -> list[Tensor]:
    """Multiply neighbours: the transitions of one step, of two, of four; all that begin and end within the series."""
    products, stride, transitions = [], 1, F[..., :-1]
    while transitions.shape[-1]:
        products.append(transitions)
        transitions = _times(transitions[..., stride:], transitions[..., :-stride])
        stride *= 2
    return products


def _covariances(P: Tensor, maps: tuple[Tensor, Tensor, Tensor], num_maps: int) -> Tensor:
    """Follow a covariance through maps ``P -> A (1 + P J)^-1 P A' + C``: itself and what follows each map."""
    if num_maps == 0:
        return P
    pairs = num_maps // 2
    if pairs:
        before = tuple(_at(part, slice(0, 2 * pairs, 2)) for part in maps)
        after = tuple(_at(part, slice(1, 2 * pairs, 2)) for part in maps)
        P = _covariances(P, _composed(before, after), pairs)
    num_odd = (num_maps + 1) // 2
    A, C, J = (_at(part, slice(0, None, 2)) for part in maps)
    even = P[..., :num_odd]
    left = _times(A, _inverse(_plus_one(_times(even, J)))[0])
    odd = _times(_times(left, even), transposed(A)) + C
    both = torch.stack([even.expand_as(odd), odd], -1).flatten(-2)
    return both if num_maps % 2 else torch.cat([both, P[..., -1:].expand(*both.shape[:-1], 1)], -1)


def _composed(before: tuple[Tensor, ...], after: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Compose two maps."""
    (A1, C1, J1), (A2, C2, J2) = before, after
    middle = _inverse(_plus_one(_times(C1, J2)))[0]
    left, right = _times(A2, middle), _times(middle, A1)
    return (
        _times(left, A1),
        _times(_times(left, C1), transposed(A2)) + C2,
        _times(_times(transposed(A1), J2), right) + J1,
    )


def _update(P: Tensor, C: Tensor, R: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the covariance once ``C x + N(0, R)`` is seen, in Joseph's form, with the gain and the precision."""
    across = _times(C, P)
    precision = _inverse(_times(across, transposed(C)) + R)[0]
    gain = _times(transposed(across), precision)
    left = _plus_one(-_times(gain, C))
    return _times(_times(left, P), transposed(left)) + _times(_times(gain, R), transposed(gain)), gain, precision


def _inverse(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the inverse and the logarithm of the determinant, which is positive."""
    size = len(matrix)
    if size > 2:
        last = matrix.permute(2, 3, 0, 1)
        return torch.linalg.inv_ex(last).inverse.permute(2, 3, 0, 1), torch.linalg.slogdet(last).logabsdet
    if size == 1:
        return matrix.reciprocal(), matrix[0, 0].log()
    signs = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=matrix.dtype, device=matrix.device)
    cofactors = matrix.flip((0, 1)) * signs.reshape(2, 2, 1, 1)
    determinant = (matrix[0] * cofactors[0]).sum(0)
    return transposed(cofactors) / determinant, determinant.log()


def _plus_one(matrix: Tensor) -> Tensor:
    """Add the identity."""
    return matrix + torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device).reshape(len(matrix), -1, 1, 1)


def _times(left: Tensor, right: Tensor) -> Tensor:
    """Multiply matrices whose last two axes are those of series and steps."""
    if left.shape[1] == 1:
        return left * right
    if left.shape[1] < SMALL:
        return (left.unsqueeze(2) * right.unsqueeze(0)).sum(1)
    return torch.einsum("mk...,kn...->mn...", left, right)


def transposed(matrix: Tensor) -> Tensor:
    """Transpose."""
    return matrix.transpose(0, 1)


def _at(part: Tensor, steps: slice) -> Tensor:
    """Choose steps of what has them."""
    return part if part.shape[-1] == 1 else part[..., steps]
