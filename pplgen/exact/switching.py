"""Switching linear Gaussian models: Kim's filter and smoother.

A regime ``s_1 ~ Cat(pi)``, ``s_t ~ Cat(P[s_{t-1}])`` picks the dynamics of a continuous state and how it is seen. The
exact posterior is a mixture of K^T Gaussians; Kim's filter keeps one Gaussian per regime, with the mixture's mean and
covariance (Kim 1994, Dynamic linear models with Markov-switching, Journal of Econometrics 60, 1-22; Kim and Nelson
1999, State-Space Models with Regime Switching, chapter 5). ``enumeration`` is exact on short series, ``particles`` is
unbiased on long ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pplgen.errors import InputError
from pplgen.exact.kalman import backward_kernel, predict, update
from pplgen.exact.linear_gaussian import matvec, symmetrise
from pplgen.exact.shapes import check_dtypes, check_series, stack_steps
from pplgen.story.dynamics import SwitchingLinearGaussian

__all__ = [
    "SwitchingFiltered",
    "SwitchingSmoothed",
    "collapse",
    "first_step",
    "insert_batch_axes",
    "kim_filter",
    "kim_smoother",
    "next_step",
    "per_regime",
]


class SwitchingFiltered(NamedTuple):
    """What each observation and those before it say, one Gaussian per regime."""

    log_densities: Tensor
    """``log p(y_t | y_1:t-1)`` in nats, shape ``(..., T)``."""
    probabilities: Tensor
    """``p(s_t | y_1:t)``, shape ``(..., T, K)``."""
    mean: Tensor
    """``E[x_t | s_t, y_1:t]``, shape ``(..., T, K, D)``."""
    covariance: Tensor
    """``Cov[x_t | s_t, y_1:t]``, shape ``(..., T, K, D, D)``."""

    @property
    def log_likelihood(self) -> Tensor:
        """``log p(y_1:T)`` in nats, shape ``(...)``."""
        return self.log_densities.sum(dim=-1)


class SwitchingSmoothed(NamedTuple):
    """What all observations say, regimes averaged out of the state."""

    probabilities: Tensor
    """``p(s_t | y_1:T)``, shape ``(..., T, K)``."""
    mean: Tensor
    """``E[x_t | y_1:T]``, shape ``(..., T, D)``."""
    covariance: Tensor
    """``Cov[x_t | y_1:T]``, shape ``(..., T, D, D)``."""


def kim_filter(
    y: Tensor, parameters: SwitchingLinearGaussian, *, log_transition: Callable[[Tensor], Tensor] | None = None
) -> SwitchingFiltered:
    """Filter a series, collapsing the K^2 Gaussians of each step to K.

    Parameters
    ----------
    y
        Observations, NaN where missing, shape ``(..., T, E)``.
    parameters
        Of y's dtype. Batch axes, the same in front of each parameter and then a regime axis wherever ``per_regime``
        gives one, broadcast with y's.
    log_transition
        Where the next regime depends on the state: ``log p(s_t | s_{t-1}, x_{t-1})`` at states of shape
        ``(..., D)``, shape ``(..., K, K)``, used at each regime's filtered mean in place of ``P``.

    Returns
    -------
    SwitchingFiltered
        Exact for the first two steps, an approximation after.

    Raises
    ------
    InputError
        Where shapes or dtypes do not fit.
    torch.linalg.LinAlgError
        Where an observation's predictive covariance is not positive definite.
    """
    parameters = per_regime(y, parameters)
    branching = insert_batch_axes(parameters, 1)
    log_P = parameters.P.log()
    mean, covariance, log_density = first_step(y[..., 0, :], parameters)
    log_joint = parameters.pi.log() + log_density
    steps = [(log_joint, mean, covariance)]
    for t in range(1, y.shape[-2]):
        if log_transition is not None:
            log_P = log_transition(mean).diagonal(dim1=-3, dim2=-2).mT
        *branches, log_density = next_step(y[..., t, None, :], mean, covariance, branching)
        log_pairs = log_joint.log_softmax(dim=-1).unsqueeze(-1) + log_P + log_density
        # a regime that cannot be reached weighs nothing; the floor keeps its moments and all gradients finite
        log_pairs = log_pairs.clamp_min(torch.finfo(y.dtype).min)
        mean, covariance = collapse(log_pairs.softmax(dim=-2), *branches, dim=-2)
        log_joint = log_pairs.logsumexp(dim=-2)
        steps.append((log_joint, mean, covariance))
    log_joints, *moments = stack_steps(steps, -2, -3, -4)
    return SwitchingFiltered(log_joints.logsumexp(dim=-1), log_joints.softmax(dim=-1), *moments)


def kim_smoother(filtered: SwitchingFiltered, parameters: SwitchingLinearGaussian) -> SwitchingSmoothed:
    """Smooth a filtered series; once the next regime is known, later observations leave this one as it was.

    Parameters
    ----------
    filtered
        What ``kim_filter`` returned.
    parameters
        Those it ran with.

    Raises
    ------
    torch.linalg.LinAlgError
        Where a predicted covariance after the first is not positive definite.
    """
    least = torch.finfo(filtered.mean.dtype).tiny
    _, probabilities, mean, covariance = filtered
    parameters = insert_batch_axes(parameters, 2)
    # axes of the pairs: this regime, the next
    pairs = probabilities[..., :-1, :, None] * (parameters.P.unsqueeze(-3) if parameters.pi.ndim > 1 else parameters.P)
    turned = pairs / pairs.sum(dim=-2, keepdim=True).clamp_min(least)
    G, g, L = backward_kernel(
        mean[..., :-1, :, None, :], covariance[..., :-1, :, None, :, :], parameters.A, parameters.b, parameters.Q
    )
    probabilities, mean, covariance = probabilities[..., -1, :], mean[..., -1, :, :], covariance[..., -1, :, :, :]
    steps = [(probabilities, *collapse(probabilities, mean, covariance))]
    for t in reversed(range(turned.shape[-3])):
        joint = turned[..., t, :, :] * probabilities.unsqueeze(-2)
        probabilities = joint.sum(dim=-1)
        G_t = G[..., t, :, :, :, :]
        mean, covariance = collapse(
            joint / probabilities.unsqueeze(-1).clamp_min(least),
            matvec(G_t, mean.unsqueeze(-3)) + g[..., t, :, :, :],
            symmetrise(G_t @ covariance.unsqueeze(-4) @ G_t.mT) + L[..., t, :, :, :, :],
        )
        steps.append((probabilities, *collapse(probabilities, mean, covariance)))
    return SwitchingSmoothed(*stack_steps(steps[::-1], -2, -2, -3))


def collapse(weights: Tensor, mean: Tensor, covariance: Tensor, *, dim: int = -1) -> tuple[Tensor, Tensor]:
    """Return the mean and covariance of a mixture of Gaussians.

    Parameters
    ----------
    weights
        Summing to one along ``dim``.
    mean, covariance
        Of the components: the axes of ``weights``, then ``(D,)`` and ``(D, D)``.
    dim
        Axis of the components, negative: counted from the end of ``weights``.
    """
    weights = weights.unsqueeze(-1)
    centre = (weights * mean).sum(dim=dim - 1, keepdim=True)
    deviation = (mean - centre).unsqueeze(-1)
    spread = (weights.unsqueeze(-1) * (covariance + deviation @ deviation.mT)).sum(dim=dim - 2)
    return centre.squeeze(dim - 1), spread


def first_step(y: Tensor, parameters: SwitchingLinearGaussian) -> tuple[Tensor, Tensor, Tensor]:
    """Condition the start on ``y_1``, of shape ``(..., E)``, under each regime; returns what ``next_step`` returns."""
    _, _, m0, S0, _, _, _, C, d, R = parameters
    mean, covariance, log_density = update(m0.unsqueeze(-2), S0.unsqueeze(-3), y.unsqueeze(-2), C, d, R)
    return mean, covariance.expand(*mean.shape, -1), log_density


def next_step(
    y: Tensor, mean: Tensor, covariance: Tensor, parameters: SwitchingLinearGaussian
) -> tuple[Tensor, Tensor, Tensor]:
    """Filter one step ahead under each regime.

    Parameters
    ----------
    y
        ``y_t``, shape ``(..., E)``.
    mean, covariance
        Of ``x_{t-1}``, shapes ``(..., D)`` and ``(..., D, D)``.
    parameters
        As ``per_regime`` returns them.

    Returns
    -------
    mean, covariance, log_density : Tensor
        Of ``x_t`` and of ``y_t`` given what came before and ``s_t``, shapes ``(..., K, D)``, ``(..., K, D, D)`` and
        ``(..., K)``.
    """
    _, _, _, _, A, b, Q, C, d, R = parameters
    predicted = predict(mean.unsqueeze(-2), covariance.unsqueeze(-3), A, b, Q)
    return update(*predicted, y.unsqueeze(-2), C, d, R)


def per_regime(y: Tensor, parameters: SwitchingLinearGaussian) -> SwitchingLinearGaussian:
    """Give every parameter that the regimes share a regime axis.

    Raises
    ------
    InputError
        Where shapes or dtypes do not fit.
    """
    check_dtypes(y=y, **parameters._asdict())
    check_series(y)
    batch = parameters.pi.shape[:-1]
    E, K, D = y.shape[-1], parameters.pi.shape[-1], parameters.m0.shape[-1]
    fixed = {"pi": (K,), "P": (K, K), "m0": (D,), "S0": (D, D)}
    switching = {"A": (D, D), "b": (D,), "Q": (D, D), "C": (E, D), "d": (E,), "R": (E, E)}
    for name, sizes in (fixed | switching).items():
        shape = tuple(getattr(parameters, name).shape)
        expected = [sizes] if name in fixed else [(K, *sizes)] if batch else [sizes, (K, *sizes)]
        if shape not in [(*batch, *each) for each in expected]:
            raise InputError(f"{name} has shape {shape}; expected {' or '.join(str((*batch, *s)) for s in expected)}")
    return parameters._replace(
        **{name: getattr(parameters, name).expand(*batch, K, *sizes) for name, sizes in switching.items()}
    )


def insert_batch_axes(parameters: SwitchingLinearGaussian, number: int) -> SwitchingLinearGaussian:
    """Put axes between the batch axes and the regimes of what the regimes set, where there are batch axes."""
    if parameters.pi.ndim == 1:
        return parameters
    axes = {"A": -3, "b": -2, "Q": -3, "C": -3, "d": -2, "R": -3}
    return parameters._replace(
        **{
            name: part[(..., *(None,) * number, *(slice(None),) * -axis)]
            for name, axis in axes.items()
            for part in [getattr(parameters, name)]
        }
    )
