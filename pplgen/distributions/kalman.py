"""Kalman filter in parallel over time, and the adjoints of its log-likelihood.

The predicted covariances do not depend on the observed values. They are computed first, from maps between filtered
covariances one step apart, two, four, ... (Särkkä and García-Fernández 2021, Temporal parallelization of
Bayesian smoothers, IEEE Transactions on Automatic Control 66, 299-306); complete series share them, and all maps of one
length are then equal. Given the gains the means follow a linear recursion, ``m_{t+1} = F_t m_t + g_t``, computed by a
parallel scan in log2 T rounds.

Matrices have axes ``(rows, columns, series, steps)``, the last two of length one if constant; products of small
matrices are then sums over whole series, which a compiler fuses.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from pplgen.story.dynamics import LinearGaussian

SMALL = 8
"""Inner dimension below which matrix products are written out as sums."""


class Step(NamedTuple):
    """One filter step, from the prediction of ``x_t`` to that of ``x_{t+1}``."""

    log_density: Float[Tensor, "series time"]
    """``log p(y_t | y_1:t-1)``."""
    mean: Float[Tensor, "state 1 series time"]
    """``E[x_{t+1} | y_1:t]``."""
    covariance: Float[Tensor, "state state #series #time"]
    """``Cov[x_{t+1} | y_1:t]``."""
    score: Float[Tensor, "state 1 series time"]
    """``C' S^-1 v``, the derivative of the log density in the predicted mean; v is the innovation."""
    information: Float[Tensor, "state state #series #time"]
    """``C' S^-1 C``."""
    F: Float[Tensor, "state state #series #time"]
    """``A - A P C' S^-1 C``, the derivative of the next predicted mean in this one."""


def one_step(
    y: Float[Tensor, "observed 1 series time"],
    m: Float[Tensor, "state 1 #series #time"],
    P: Float[Tensor, "state state #series #time"],
    parts: LinearGaussian,
) -> Step:
    """Take one filter step at all times at once."""
    _, _, A, b, Q, C, d, R = parts
    across = _matmul(C, P)
    precision, log_volume = _inverse(_matmul(across, transposed(C)) + R)
    v = y - _matmul(C, m) - d
    whitened, back = _matmul(precision, v), _matmul(transposed(C), precision)
    score, information = _matmul(transposed(C), whitened), _matmul(back, C)
    AP = _matmul(A, P)
    F = A - _matmul(AP, information)
    density = -0.5 * ((v * whitened).sum((0, 1)) + log_volume + len(y) * math.log(2 * math.pi))
    return Step(density, _matmul(A, m) + b + _matmul(AP, score), _matmul(AP, transposed(F)) + Q, score, information, F)


def predict(
    y: Float[Tensor, "observed 1 series time"], parts: LinearGaussian
) -> tuple[
    Float[Tensor, "state 1 series time"],
    Float[Tensor, "state state #series #time"],
    Step,
    list[Float[Tensor, "state state _ _"]],
]:
    """Return each state's predicted mean and covariance, the filter steps from there, and products of F."""
    m0, S0, A, _, Q, C, _, R = parts
    T = y.shape[-1]
    first, later = slice(None, 1), slice(1, None)
    P = S0
    if T > 1:
        # filtered covariances: of the first step, then by the maps of p(x_t | x_{t-1}, y_t) and p(y_t | x_{t-1})
        filtered = _update(S0, _at(C, first), _at(R, first))[0]
        conditional, gain, precision = _update(Q, _at(C, later), _at(R, later))
        CA = _matmul(_at(C, later), A)
        maps = (A - _matmul(gain, CA), conditional, _matmul(_matmul(transposed(CA), precision), CA))
        filtered = _covariances(filtered, maps, T - 1)[..., :-1]
        later_P = _matmul(_matmul(A, filtered), transposed(A)) + Q
        P = torch.cat([S0.expand(*later_P.shape[:-1], 1), later_P], -1)
    # the recursion of the means is affine: a step from zero gives its constant, its derivative F the linear map
    step = one_step(y, torch.zeros_like(m0), P, parts)
    products = _products(step.F)
    starts = m0.expand(*m0.shape[:2], y.shape[-2], 1)
    m = torch.cat([starts, step.mean[..., :-1]], -1)
    stride = 1
    for product in products:
        moved = m[..., stride:] + _matmul(product, m[..., :-stride])
        m, stride = torch.cat([m[..., :stride], moved], -1), 2 * stride
    return m, P, one_step(y, m, P, parts), products


def adjoints(
    step: Step, products: list[Float[Tensor, "state state _ _"]]
) -> tuple[Float[Tensor, "state 1 series time"], Float[Tensor, "state state #series #time"]]:
    """Return the adjoints: derivatives of ``log p(y)`` in each step's predicted mean and covariance."""
    score, N, stride = step.score, step.information, 1
    for product in products:
        back = transposed(product)
        scored = score[..., :-stride] + _matmul(back, score[..., stride:])
        informed = N[..., :-stride] + _matmul(_matmul(back, N[..., stride:]), product)
        score = torch.cat([scored, score[..., -stride:]], -1)
        N, stride = torch.cat([informed, N[..., -stride:]], -1), 2 * stride
    return score, (_matmul(score, transposed(score)) - N) / 2


def _products(F: Float[Tensor, "state state series time"]) -> list[Float[Tensor, "state state _ _"]]:
    """Return products of successive F over one, two, four, ... steps, for all windows inside the series."""
    products, stride, transitions = [], 1, F[..., :-1]
    while transitions.shape[-1]:
        products.append(transitions)
        transitions = _matmul(transitions[..., stride:], transitions[..., :-stride])
        stride *= 2
    return products


def _covariances(
    P: Float[Tensor, "state state series _"],
    maps: tuple[Float[Tensor, "state state _ _"], Float[Tensor, "state state _ _"], Float[Tensor, "state state _ _"]],
    num_maps: int,
) -> Float[Tensor, "state state _ _"]:
    """Iterate maps ``P -> A (1 + P J)^-1 P A' + C``: return P and the result of each map."""
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
    left = _matmul(A, _inverse(_add_identity(_matmul(even, J)))[0])
    odd = _matmul(_matmul(left, even), transposed(A)) + C
    both = torch.stack([even.expand_as(odd), odd], -1).flatten(-2)
    return both if num_maps % 2 else torch.cat([both, P[..., -1:].expand(*both.shape[:-1], 1)], -1)


def _composed(
    before: tuple[Tensor, ...], after: tuple[Tensor, ...]
) -> tuple[
    Float[Tensor, "state state series steps"],
    Float[Tensor, "state state series steps"],
    Float[Tensor, "state state series steps"],
]:
    """Compose two covariance maps."""
    (A1, C1, J1), (A2, C2, J2) = before, after
    middle = _inverse(_add_identity(_matmul(C1, J2)))[0]
    left, right = _matmul(A2, middle), _matmul(middle, A1)
    return (
        _matmul(left, A1),
        _matmul(_matmul(left, C1), transposed(A2)) + C2,
        _matmul(_matmul(transposed(A1), J2), right) + J1,
    )


def _update(
    P: Float[Tensor, "state state #series #time"],
    C: Float[Tensor, "observed state #series #time"],
    R: Float[Tensor, "observed observed #series #time"],
) -> tuple[
    Float[Tensor, "state state #series #time"],
    Float[Tensor, "state observed #series #time"],
    Float[Tensor, "observed observed #series #time"],
]:
    """Return the covariance given ``C x + N(0, R)`` (Joseph form), the Kalman gain and the innovation precision."""
    across = _matmul(C, P)
    precision = _inverse(_matmul(across, transposed(C)) + R)[0]
    gain = _matmul(transposed(across), precision)
    left = _add_identity(-_matmul(gain, C))
    return _matmul(_matmul(left, P), transposed(left)) + _matmul(_matmul(gain, R), transposed(gain)), gain, precision


def _inverse(
    matrix: Float[Tensor, "size size series time"],
) -> tuple[Float[Tensor, "size size series time"], Float[Tensor, "series time"]]:
    """Return the inverse and the log determinant of positive definite matrices."""
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


def _add_identity(matrix: Float[Tensor, "size size series time"]) -> Float[Tensor, "size size series time"]:
    """Add the identity."""
    return matrix + torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device).reshape(len(matrix), -1, 1, 1)


def _matmul(
    left: Float[Tensor, "rows inner #series #time"], right: Float[Tensor, "inner columns #series #time"]
) -> Float[Tensor, "rows columns #series #time"]:
    """Multiply matrices whose last two axes are series and steps."""
    if left.shape[1] == 1:
        return left * right
    if left.shape[1] < SMALL:
        return (left.unsqueeze(2) * right.unsqueeze(0)).sum(1)
    return torch.einsum("mk...,kn...->mn...", left, right)


def transposed(matrix: Shaped[Tensor, "rows columns ..."]) -> Shaped[Tensor, "columns rows ..."]:
    """Transpose the matrix axes."""
    return matrix.transpose(0, 1)


def _at(part: Float[Tensor, "rows columns series _"], steps: slice) -> Float[Tensor, "rows columns series _"]:
    """Index the steps, unless constant over time."""
    return part if part.shape[-1] == 1 else part[..., steps]
