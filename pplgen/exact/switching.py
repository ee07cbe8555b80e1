"""Switching linear Gaussian models: Kim's filter and smoother.

A regime ``s_1 ~ Cat(pi)``, ``s_t ~ Cat(P[s_{t-1}])`` selects dynamics and observation model of a continuous state. The
exact posterior is a mixture of K^T Gaussians; Kim's filter keeps one Gaussian per regime, with the mixture's mean and
covariance (Kim 1994, Dynamic linear models with Markov-switching, Journal of Econometrics 60, 1-22; Kim and Nelson
1999, State-Space Models with Regime Switching, chapter 5). ``enumeration`` is exact on short series, ``particles`` is
unbiased on long ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from pplgen.errors import InputError, renamed
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

__getattr__ = renamed(__name__, {"with_axes": "insert_batch_axes"})


class SwitchingFiltered(NamedTuple):
    """Results of Kim's filter, one Gaussian per regime."""

    log_densities: Float[Tensor, "... time"]
    """``log p(y_t | y_1:t-1)`` in nats."""
    probabilities: Float[Tensor, "... time regimes"]
    """``p(s_t | y_1:t)``."""
    mean: Float[Tensor, "... time regimes state"]
    """``E[x_t | s_t, y_1:t]``."""
    covariance: Float[Tensor, "... time regimes state state"]
    """``Cov[x_t | s_t, y_1:t]``."""

    @property
    def log_likelihood(self) -> Float[Tensor, "..."]:
        """``log p(y_1:T)`` in nats."""
        return self.log_densities.sum(dim=-1)


class SwitchingSmoothed(NamedTuple):
    """Results of smoothing; state moments are marginal over regimes."""

    probabilities: Float[Tensor, "... time regimes"]
    """``p(s_t | y_1:T)``."""
    mean: Float[Tensor, "... time state"]
    """``E[x_t | y_1:T]``."""
    covariance: Float[Tensor, "... time state state"]
    """``Cov[x_t | y_1:T]``."""


def kim_filter(
    y: Float[Tensor, "... time observed"],
    parameters: SwitchingLinearGaussian,
    *,
    log_transition: Callable[[Tensor], Tensor] | None = None,
) -> SwitchingFiltered:
    """Run Kim's filter, which collapses the K^2 Gaussians of each step to K.

    Parameters
    ----------
    y
        Observations, NaN if missing.
    parameters
        Parameters of y's dtype. Their batch axes, the same for each parameter and followed by a regime axis wherever
        ``per_regime`` adds one, broadcast with y's.
    log_transition
        If the next regime depends on the state: ``log p(s_t | s_{t-1}, x_{t-1})`` at states of shape
        ``(..., D)``, shape ``(..., K, K)``, evaluated at each regime's filtered mean, in place of ``P``.

    Returns
    -------
    SwitchingFiltered
        Exact for the first two steps, then approximate.

    Raises
    ------
    InputError
        If shapes or dtypes do not match.
    torch.linalg.LinAlgError
        If an observation's predictive covariance is not positive definite.
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
        # the floor keeps moments and gradients of unreachable regimes finite
        log_pairs = log_pairs.clamp_min(torch.finfo(y.dtype).min)
        mean, covariance = collapse(log_pairs.softmax(dim=-2), *branches, dim=-2)
        log_joint = log_pairs.logsumexp(dim=-2)
        steps.append((log_joint, mean, covariance))
    log_joints, *moments = stack_steps(steps, -2, -3, -4)
    return SwitchingFiltered(log_joints.logsumexp(dim=-1), log_joints.softmax(dim=-1), *moments)


def kim_smoother(filtered: SwitchingFiltered, parameters: SwitchingLinearGaussian) -> SwitchingSmoothed:
    """Run Kim's smoother, which assumes that regimes are independent of later observations given the next regime.

    Parameters
    ----------
    filtered
        Result of ``kim_filter``.
    parameters
        Parameters of the filter.

    Raises
    ------
    torch.linalg.LinAlgError
        If a predicted covariance after the first is not positive definite.
    """
    tiny = torch.finfo(filtered.mean.dtype).tiny
    _, probabilities, mean, covariance = filtered
    parameters = insert_batch_axes(parameters, 2)
    # axes of the pairs: this regime, the next
    pairs = probabilities[..., :-1, :, None] * (parameters.P.unsqueeze(-3) if parameters.pi.ndim > 1 else parameters.P)
    backward_probabilities = pairs / pairs.sum(dim=-2, keepdim=True).clamp_min(tiny)
    G, g, L = backward_kernel(
        mean[..., :-1, :, None, :], covariance[..., :-1, :, None, :, :], parameters.A, parameters.b, parameters.Q
    )
    probabilities, mean, covariance = probabilities[..., -1, :], mean[..., -1, :, :], covariance[..., -1, :, :, :]
    steps = [(probabilities, *collapse(probabilities, mean, covariance))]
    for t in reversed(range(backward_probabilities.shape[-3])):
        joint = backward_probabilities[..., t, :, :] * probabilities.unsqueeze(-2)
        probabilities = joint.sum(dim=-1)
        G_t = G[..., t, :, :, :, :]
        mean, covariance = collapse(
            joint / probabilities.unsqueeze(-1).clamp_min(tiny),
            matvec(G_t, mean.unsqueeze(-3)) + g[..., t, :, :, :],
            symmetrise(G_t @ covariance.unsqueeze(-4) @ G_t.mT) + L[..., t, :, :, :, :],
        )
        steps.append((probabilities, *collapse(probabilities, mean, covariance)))
    return SwitchingSmoothed(*stack_steps(steps[::-1], -2, -2, -3))


def collapse(
    weights: Float[Tensor, "..."],
    mean: Float[Tensor, "... state"],
    covariance: Float[Tensor, "... state state"],
    *,
    dim: int = -1,
) -> tuple[Float[Tensor, "... state"], Float[Tensor, "... state state"]]:
    """Return the mean and covariance of a mixture of Gaussians.

    Parameters
    ----------
    weights
        Weights that sum to one along ``dim``.
    mean, covariance
        Moments of the components: the axes of ``weights``, then ``(D,)`` and ``(D, D)``.
    dim
        Axis of the components in ``weights``, as a negative index.
    """
    weights = weights.unsqueeze(-1)
    centre = (weights * mean).sum(dim=dim - 1, keepdim=True)
    residual = (mean - centre).unsqueeze(-1)
    total_covariance = (weights.unsqueeze(-1) * (covariance + residual @ residual.mT)).sum(dim=dim - 2)
    return centre.squeeze(dim - 1), total_covariance


def first_step(
    y: Float[Tensor, "... observed"], parameters: SwitchingLinearGaussian
) -> tuple[Float[Tensor, "... regimes state"], Float[Tensor, "... regimes state state"], Float[Tensor, "... regimes"]]:
    """Condition the initial state on ``y_1``, in each regime; returns as ``next_step``."""
    _, _, m0, S0, _, _, _, C, d, R = parameters
    mean, covariance, log_density = update(m0.unsqueeze(-2), S0.unsqueeze(-3), y.unsqueeze(-2), C, d, R)
    return mean, covariance.expand(*mean.shape, -1), log_density


def next_step(
    y: Float[Tensor, "... observed"],
    mean: Float[Tensor, "... state"],
    covariance: Float[Tensor, "... state state"],
    parameters: SwitchingLinearGaussian,
) -> tuple[Float[Tensor, "... regimes state"], Float[Tensor, "... regimes state state"], Float[Tensor, "... regimes"]]:
    """Predict and update by one step in each regime.

    Parameters
    ----------
    y
        ``y_t``.
    mean, covariance
        Moments of ``x_{t-1}``.
    parameters
        Parameters from ``per_regime``.

    Returns
    -------
    mean, covariance, log_density : Tensor
        Moments of ``x_t`` and log density of ``y_t`` given the past and ``s_t``.
    """
    _, _, _, _, A, b, Q, C, d, R = parameters
    predicted = predict(mean.unsqueeze(-2), covariance.unsqueeze(-3), A, b, Q)
    return update(*predicted, y.unsqueeze(-2), C, d, R)


def per_regime(y: Float[Tensor, "... time observed"], parameters: SwitchingLinearGaussian) -> SwitchingLinearGaussian:
    """Expand parameters that regimes share along a regime axis.

    Raises
    ------
    InputError
        If shapes or dtypes do not match.
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
    """Insert axes between batch and regime axes of regime-specific parameters, if there are batch axes."""
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
